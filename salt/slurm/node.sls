# A VM: its slurmd fetches the configuration from slurmctld. It is installed and ready here, but not started: only a
# node that has passed the ready gate may get jobs.
include:
  - slurm.slurmd

/etc/default/slurmd:
  file.managed:
    - contents: SLURMD_OPTIONS="--conf-server {{ salt['pillar.get']('site:controller:name') }}:6817"
    - require:
      - pkg: slurm packages

slurmd does not start at boot:
  service.disabled:
    - name: slurmd
    - require:
      - pkg: slurm packages
