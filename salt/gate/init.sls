# Last on a node: only what passes the gate gets a slurmd, and with it jobs.
{%- set mounts = {} %}
{%- for export in salt['pillar.get']('nfs:exports').values() %}
{%- do mounts.update({export.mount: export.get('gate', 'ro' if export.access == 'RO' else 'rw')}) %}
{%- endfor %}

the ready gate:
  ready_gate.passed:
    - name: {{ grains.id }}
    - controller: {{ salt['pillar.get']('site:controller:name') }}
    - mounts: {{ mounts | json }}
    - require:
      - sls: dns.client
      - sls: chrony.client
      - sls: users
      - sls: nfs.client
      - sls: munge
      - sls: slurm.node

slurmd:
  service.running:
    - require:
      - ready_gate: the ready gate
