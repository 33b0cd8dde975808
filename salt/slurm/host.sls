# A bare-metal node: it keeps a copy of the configuration, so that it starts while the controller is away.
slurm packages:
  pkg.installed:
    - pkgs: [slurmd, slurm-client]

/etc/slurm:
  slurm.config_copied:
    - require:
      - pkg: slurm packages

slurmd:
  service.running:
    - enable: True
    - require:
      - slurm: /etc/slurm
      - service: munge
