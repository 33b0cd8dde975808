# What every slurmd has, on bare metal and in a VM.
slurm packages:
  pkg.installed:
    - pkgs: [slurmd, slurm-client]

# It outlives a slurmctld that is away, and a configuration that ends slurmd until the good one is back. Its jobs go on
# meanwhile: they are not in the service's main process (KillMode=process).
/etc/systemd/system/slurmd.service.d/saltmarsh.conf:
  file.managed:
    - makedirs: True
    - contents: |
        [Unit]
        StartLimitIntervalSec=0
        [Service]
        Restart=on-failure
        RestartSec=5
