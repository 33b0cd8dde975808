# The reference cluster in a box, see docs/howto/pools.md for every key.
elastic:
  cluster: lab
  controller: {name: ctl, address: 10.77.0.1}
  network:
    prefix: 24
    nameservers: [10.77.0.1]
    domain: lab
  hosts:
    hv1: {address: 10.77.0.11}
    hv2: {address: 10.77.0.12}
  pools:
    virtual:
      nodes: vn[001-016]
      addresses: 10.77.0.101-116
      profile: virtual
      image: node.qcow2
      cpus: 1
      memory: 256
      partition: virtual
      features: [vm]
      weight: 10
      limits: {max_nodes: 16, boot_timeout: 600}
