# The lab's assignment of pillar. On a site: replace the minion ids; keep who sees what.
base:
  'ctl or ctl_master':
    - match: compound
    - ignore_missing: True
    - site
    - elastic
    - slurm
    - api
    - roles.controller
    - secret
  'hv*':
    - ignore_missing: True
    - site
    - elastic
    - slurm
    - roles.host
    - secret
  'vn* or cn*':
    - match: compound
    - ignore_missing: True
    - site
    - roles.node
    - access
    - secret
