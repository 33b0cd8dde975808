base:
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
