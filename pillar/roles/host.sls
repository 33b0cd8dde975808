roles:
  - host

hypervisor:
  authority: ctl                  # the minion that signs this host's certificate
  clients: [ctl, hv1, hv2]        # who may connect over TLS, by common name
  storage_pools:
    images: /srv/images
    nodes: /srv/nodes
    states: /srv/states
  state_dir: /srv/states          # one of these: the memory of suspended machines
  provider:                       # the rest of what cloud.providers.d says, for a host that acts without the master
    image_pool: images
    disk_pool: nodes
    shared_storage: True
  qemu_conf:                      # the lab's hosts are containers: no cgroup controllers, no own mount namespace for QEMU
    user: '"root"'
    group: '"root"'
    security_driver: '"none"'
    cgroup_controllers: '[]'
    namespaces: '[]'
    remember_owner: 0
    dynamic_ownership: 0
    stdio_handler: '"file"'
