# Least open (docs/howto/networks.md): what the members of the cluster must reach on this machine, and nothing else. The
# rules are a table of their own; what else the site has in nftables stays as it is, and has its say as well.
{%- set role = 'controller' if 'controller' in salt['pillar.get']('roles', []) else 'node' %}

nftables:
  pkg.installed: []

/etc/nftables.d/saltmarsh.nft:
  file.managed:
    - source: salt://firewall/files/{{ role }}.nft.jinja
    - template: jinja
    - makedirs: True
    - mode: '0644'
    - check_cmd: nft --check --file
    - require:
      - pkg: nftables

/etc/systemd/system/saltmarsh-firewall.service:
  file.managed:
    - source: salt://firewall/files/saltmarsh-firewall.service

saltmarsh-firewall:
  service.running:
    - enable: True
    - reload: True
    - watch:
      - file: /etc/nftables.d/saltmarsh.nft
    - require:
      - file: /etc/systemd/system/saltmarsh-firewall.service
