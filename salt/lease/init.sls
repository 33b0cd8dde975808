# A host on which nodes live under leases: what slurmd and systemd run there when a lease starts and ends. It works while
# the Salt master is away, so it has the library and its configuration here.
{%- set elastic = salt['pillar.get']('elastic') %}
{%- set hypervisor = salt['pillar.get']('hypervisor') %}
{%- set hosts = {} %}
{%- for name in elastic.hosts %}
{%- set uri = 'qemu:///system' if name == grains.id else 'qemu+tls://' ~ name ~ '/system' %}
{%- do hosts.update({name: {'uri': uri} }) %}
{%- endfor %}
{%- set provider = dict(hypervisor.provider, cluster=elastic.cluster, hosts=hosts, state_dir=hypervisor.state_dir) %}

/usr/local/lib/saltmarsh/saltmarsh:
  file.recurse:
    - source: salt://_utils/saltmarsh
    - clean: True
    - exclude_pat: E@__pycache__

/etc/saltmarsh/lease.json:
  file.serialize:
    - makedirs: True
    - serializer: json
    - dataset: {{ {'host': grains.id, 'elastic': elastic, 'provider': provider} | json }}

{%- for program in ['lease', 'slurm-prolog', 'slurm-epilog'] %}

/usr/local/libexec/saltmarsh/{{ program }}:
  file.managed:
    - source: salt://lease/files/{{ program }}.jinja
    - template: jinja
    - makedirs: True
    - mode: '0755'
    - context:
        python: {{ grains.pythonexecutable }}
        partition: {{ elastic.get('lease', {}).get('partition', 'lease') }}
        user: {{ elastic.get('lease', {}).get('user', 'slurm') }}
{%- endfor %}

{%- for unit in ['saltmarsh-lease@', 'saltmarsh-lease-again@'] %}

/etc/systemd/system/{{ unit }}.service:
  file.managed:
    - source: salt://lease/files/{{ unit }}.service
    - onchanges_in:
      - module: the units of leases are known
{%- endfor %}

the units of leases are known:
  module.run:
    - service.systemctl_reload: []
