# A bare-metal node: it keeps a copy of the configuration, so that it starts while the controller is away.
include:
  - munge
  - slurm.slurmd

/etc/slurm:
  slurm.config_copied:
    - require:
      - pkg: slurm packages

slurmd:
  service.running:
    - enable: True
    - require:
      - file: /etc/systemd/system/slurmd.service.d/saltmarsh.conf
      - slurm: /etc/slurm
      - service: munge
