# NFSv4 by nfs-ganesha: it needs no server in the kernel, so it also runs where the controller is a container.
{%- set exports = salt['pillar.get']('nfs:exports') %}

nfs-ganesha:
  pkg.installed:
    - pkgs: [nfs-ganesha, nfs-ganesha-vfs]
  service.running:
    - enable: True
    - watch:
      - file: /etc/ganesha/ganesha.conf
    - require:
{%- for directory in exports %}
      - file: {{ directory }}
{%- endfor %}

/etc/ganesha/ganesha.conf:
  file.managed:
    - source: salt://nfs/files/ganesha.conf.jinja
    - template: jinja
    - makedirs: True

{%- for directory, export in exports.items() %}

{{ directory }}:
  file.directory:
    - makedirs: True

{#- The server sees its exports where its clients do. #}
{{ export.mount }}:
  mount.mounted:
    - device: {{ directory }}
    - fstype: none
    - opts: bind
    - mkmnt: True
    - persist: True
    # Or the second time, the options of the disk would be written into fstab, too.
    - bind_mount_copy_active_opts: False
    - require:
      - file: {{ directory }}

{%- if export.mount == '/home' %}
{%- for name, user in salt['pillar.get']('users', {}).items() %}

{{ directory }}/{{ name }}:
  file.directory:
    - user: {{ user.uid }}
    - group: {{ user.uid }}
    - mode: '0700'
    - require:
      - file: {{ directory }}
{%- endfor %}
{%- endif %}
{%- endfor %}
