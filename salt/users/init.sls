# Accounts that exist with the same numbers everywhere; homes lie on NFS.
{%- for name, user in salt['pillar.get']('users', {}).items() %}
{{ name }}:
  group.present:
    - gid: {{ user.uid }}
  user.present:
    - uid: {{ user.uid }}
    - gid: {{ user.uid }}
    - home: /home/{{ name }}
    - createhome: False
    - shell: /bin/bash
    - require:
      - group: {{ name }}
{%- endfor %}
