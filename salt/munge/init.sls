# The key that all members of the cluster share: who has it may speak for any user. Only members' pillar has it.
munge:
  pkg.installed: []
  service.running:
    - enable: True
    - watch:
      - file: munge key
      - file: /etc/munge/munge.key

/etc/munge:
  file.directory:
    - user: munge
    - group: munge
    - mode: '0700'
    - require:
      - pkg: munge

munge key:
  file.decode:
    - name: /etc/munge/munge.key
    - encoding_type: base64
    - contents_pillar: munge:key
    - require:
      - file: /etc/munge

/etc/munge/munge.key:
  file.managed:
    - replace: False
    - user: munge
    - group: munge
    - mode: '0400'
    - require:
      - file: munge key
