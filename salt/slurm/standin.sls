# The stand-in: a slurmd on the controller that answers slurmctld's pings for nodes that are suspended. It is in no
# partition and runs no job. Its own file lacks the programs that it would run for those nodes.
include:
  - slurm.controller
  - slurm.slurmd

/etc/default/slurmd:
  file.managed:
    - contents: SLURMD_OPTIONS="-f /etc/slurm/standin.conf"
    - require:
      - pkg: slurm packages

# Without it, the nodes it answers for lose their jobs after SlurmdTimeout, however it ended.
/etc/systemd/system/slurmd.service.d/standin.conf:
  file.managed:
    - contents: |
        [Service]
        Restart=always
        RestartSec=1
    - require:
      - file: /etc/systemd/system/slurmd.service.d/saltmarsh.conf

slurmd:
  service.running:
    - enable: True
    - watch:
      - file: /etc/default/slurmd
    - require:
      - file: /etc/systemd/system/slurmd.service.d/standin.conf
      - slurm: /etc/slurm
      - service: munge
