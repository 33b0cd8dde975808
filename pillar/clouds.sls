# A pool whose nodes are in one of two OpenStack clouds. Assign it beside "elastic" (docs/howto/pools.md).
elastic:
  pools:
    cloud:
      nodes: cn[001-032]
      addresses: 10.77.0.161-192
      profile: virtual-engage1        # the preferred cloud
      fallback: [virtual-kaizen]      # when that has no room or no quota left
      image: node
      cpus: 1
      memory: 512
      partition: virtual
      features: [vm, cloud]
      weight: 20
      limits:
        max_nodes: 16
        # How many suspended nodes the clouds' hypervisors take beyond that; 0: their operators have changed nothing.
        overcommit_suspended: 0
