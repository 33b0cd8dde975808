# slurmctld, with a configuration that follows from pillar.
include:
  - munge

slurmctld packages:
  pkg.installed:
    - pkgs: [slurmctld, slurm-client]

{%- for what in ['up', 'down', 'failed'] %}

/usr/local/libexec/saltmarsh/slurm-power-{{ what }}:
  file.managed:
    - source: salt://slurm/files/slurm-power
    - makedirs: True
    - mode: '0755'
    - require_in:
      - slurm: /etc/slurm
{%- endfor %}

# All that slurmctld may do here is ring for the engine.
/var/lib/saltmarsh/power:
  file.directory:
    - user: slurm
    - mode: '0700'
    - makedirs: True
    - require:
      - pkg: slurmctld packages

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
