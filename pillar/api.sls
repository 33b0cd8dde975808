# The API for scripts, see docs/howto/api.md. The controller's only.
api:
  address: 10.77.0.1
  port: 8443
  names: [ctl, ctl.lab]           # by which it is called, for its certificate
  directory: /etc/salt/api        # of its key, its certificate, and the users' passwords
  max_body: 65536                 # bytes of the longest request
  threads: 20                     # requests that are served at a time; each may last as long as its verb
  token_seconds: 3600             # for how long a login is good
  roles:                          # which verbs of the runner elastic; '*' is all
    operator: ['*']
    scheduler: [suspend, resume]
    viewer: [status, report, timeline, pools, history]
  users:                          # each has one role
    operator: operator
    slurm: scheduler
    monitor: viewer
  # Minions that may call the same verbs without a password (publish.runner), by id. Only for one whose root is trusted.
  minions:
    ctl: viewer
