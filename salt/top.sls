base:
  # Before anything listens that it protects.
  'I@firewall:srun_ports:* and ( I@roles:controller or I@roles:node )':
    - match: compound
    - firewall
  'I@elastic:tunnel:address:* and I@roles:controller':
    - match: compound
    - tunnel.server
  'G@saltmarsh_network:tunnel and I@roles:node':
    - match: compound
    - tunnel.client
  'roles:controller':
    - match: pillar
    - salt.master
    - salt.api
    - dns.server
    - dns.client
    - chrony.server
    - users
    - nfs.server
    - munge
    - slurm.controller
    - slurm.standin
    - pki.authority
    - hypervisor.client
  'roles:host':
    - match: pillar
    - dns.client
    - users
    - munge
    - slurm.host
    - hypervisor
    - lease
  'roles:node':
    - match: pillar
    - ssh
    - dns.client
    - chrony.client
    - users
    - nfs.client
    - munge
    - slurm.node
    - gate
