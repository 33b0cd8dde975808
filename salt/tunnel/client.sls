# A node's end of the tunnel. Its key and its file came with its identity: without them, no state would have.
wireguard-tools:
  pkg.installed: []

/etc/wireguard/saltmarsh.conf:
  file.managed:
    - replace: False
    - user: root
    - group: root
    - mode: '0600'
    - require:
      - pkg: wireguard-tools

wg-quick@saltmarsh:
  service.running:
    - enable: True
    - require:
      - file: /etc/wireguard/saltmarsh.conf
