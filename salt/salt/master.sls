# The Salt master with this project's runners, engine, reactor and cloud drivers, used in place from the checkout.
{%- set prefix = salt['pillar.get']('salt:prefix') %}

/etc/salt/master.d/saltmarsh.conf:
  file.managed:
    - source: salt://salt/files/master.conf.jinja
    - template: jinja
    - makedirs: True

/etc/salt/cloud:
  file.managed:
    - source: salt://salt/files/cloud.jinja
    - template: jinja

/etc/systemd/system/salt-master.service:
  file.managed:
    - source: salt://salt/files/salt-master.service
    - template: jinja

salt-master:
  service.running:
    - enable: True
    - require:
      - file: /etc/systemd/system/salt-master.service
    - watch:
      - file: /etc/salt/master.d/saltmarsh.conf
      - file: /etc/systemd/system/salt-master.service
