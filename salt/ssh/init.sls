# Administrators' keys on the nodes.
{%- for key in salt['pillar.get']('ssh:authorized_keys', []) %}
root-key-{{ loop.index }}:
  ssh_auth.present:
    - name: {{ key }}
    - user: root
{%- endfor %}
