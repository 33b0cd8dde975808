# The stand-in: a slurmd on the controller that answers slurmctld's pings for nodes that are suspended. It is in no
# partition and runs no job.
include:
  - slurm.controller
  - slurm.slurmd

slurmd:
  service.running:
    - enable: True
    - require:
      - file: /etc/systemd/system/slurmd.service.d/saltmarsh.conf
      - slurm: /etc/slurm
      - service: munge
