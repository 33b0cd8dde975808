nfs-common:
  pkg.installed: []

{%- for export in salt['pillar.get']('nfs:exports').values() %}

{{ export.mount }}:
  mount.mounted:
    - device: {{ salt['pillar.get']('nfs:server') }}:{{ export.pseudo }}
    - fstype: nfs4
    - mkmnt: True
    - opts: {{ 'ro' if export.access == 'RO' else 'rw' }},hard,vers=4.2,noresvport,nosuid,nodev
    - persist: True
    - require:
      - pkg: nfs-common
{%- endfor %}
