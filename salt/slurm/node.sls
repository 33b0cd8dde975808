# A VM: its slurmd fetches the configuration from slurmctld. It is installed and ready here, but not started: only a
# node that has passed the ready gate may get jobs.
slurm packages:
  pkg.installed:
    - pkgs: [slurmd, slurm-client]

/etc/default/slurmd:
  file.managed:
    - contents: SLURMD_OPTIONS="--conf-server {{ salt['pillar.get']('site:controller:name') }}:6817"
    - require:
      - pkg: slurm packages

# A node outlives a slurmctld that is away, or that had a configuration which ends slurmd.
/etc/systemd/system/slurmd.service.d/saltmarsh.conf:
  file.managed:
    - makedirs: True
    - contents: |
        [Unit]
        StartLimitIntervalSec=0
        [Service]
        Restart=on-failure
        RestartSec=5

slurmd does not start at boot:
  service.disabled:
    - name: slurmd
    - require:
      - pkg: slurm packages
