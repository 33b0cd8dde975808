# A VM: its slurmd fetches the configuration from slurmctld. It is installed and ready here, but not started: only a
# node that has passed the ready gate may get jobs.
include:
  - slurm.slurmd

/etc/default/slurmd:
  file.managed:
    - contents: SLURMD_OPTIONS="--conf-server {{ salt['pillar.get']('site:controller:name') }}:6817"
    - require:
      - pkg: slurm packages

# slurm.conf names them for the hosts (state lease); a slurmd without them runs no job.
{%- for program in ['prolog', 'epilog'] %}

/usr/local/libexec/saltmarsh/slurm-{{ program }}:
  file.symlink:
    - target: /usr/bin/true
    - makedirs: True
{%- endfor %}

slurmd does not start at boot:
  service.disabled:
    - name: slurmd
    - require:
      - pkg: slurm packages
