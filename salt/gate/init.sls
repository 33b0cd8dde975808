# Last on a node: only what passes the gate gets a slurmd, and with it jobs.
{%- set mounts = {} %}
{%- for export in salt['pillar.get']('nfs:exports').values() %}
{%- do mounts.update({export.mount: export.get('gate', 'ro' if export.access == 'RO' else 'rw')}) %}
{%- endfor %}

# What the controller asks for by the guest agent when it suspends and resumes the node.
{%- for program in ('job-processes', 'part') %}
/usr/local/libexec/saltmarsh/{{ program }}:
  file.managed:
    - source: salt://gate/files/{{ program }}
    - makedirs: True
    - mode: '0755'
{%- endfor %}

/usr/local/libexec/saltmarsh/ready-again:
  file.managed:
    - source: salt://gate/files/ready-again.jinja
    - template: jinja
    - context:
        mounts: {{ mounts | json }}
    - makedirs: True
    - mode: '0755'

the ready gate:
  ready_gate.passed:
    - name: {{ grains.id }}
    - controller: {{ salt['pillar.get']('site:controller:name') }}
    - mounts: {{ mounts | json }}
    - translated: {{ grains.get('saltmarsh_network') == 'floating' }}
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
