# slurmctld, with a configuration that follows from pillar.
include:
  - munge

slurmctld packages:
  pkg.installed:
    - pkgs: [slurmctld, slurm-client]

{%- for direction in ['up', 'down'] %}

/usr/local/libexec/saltmarsh/slurm-power-{{ direction }}:
  file.managed:
    - source: salt://slurm/files/slurm-power-{{ direction }}
    - makedirs: True
    - mode: '0755'
    - require_in:
      - slurm: /etc/slurm
{%- endfor %}

# Replaces the files only if slurmctld accepts them. Where it does not run yet, it starts with them.
/etc/slurm:
  slurm.config_pushed:
    - require:
      - pkg: slurmctld packages
      - service: munge

slurmctld:
  service.running:
    - enable: True
    - require:
      - slurm: /etc/slurm

# A slurmctld that knows nothing of the past would start nodes of pools for jobs.
pools:
  slurm.pools_parked:
    - require:
      - service: slurmctld
