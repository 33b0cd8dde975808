# The controller's end of the tunnel (docs/howto/networks.md). Who may enter is a file each in the directory of the
# ledger's operations: they let nodes in and shut them out while the tunnel is open, and the next time it opens, their
# files are read.
{%- set tunnel = salt['pillar.get']('elastic:tunnel', {}) %}
{%- set nodes = salt['pillar.get']('elastic:state_dir', '/var/lib/saltmarsh') ~ '/tunnel' %}

wireguard-tools:
  pkg.installed: []

/etc/wireguard:
  file.directory:
    - mode: '0700'
    - require:
      - pkg: wireguard-tools

the key of the tunnel:
  cmd.run:
    - name: wg genkey > /etc/wireguard/saltmarsh.key
    - umask: '077'
    - creates: /etc/wireguard/saltmarsh.key
    - require:
      - file: /etc/wireguard

{{ nodes }}:
  file.directory:
    - makedirs: True
    - mode: '0755'

/etc/wireguard/saltmarsh.conf:
  file.managed:
    - mode: '0600'
    - contents: |
        # Written by Salt (state tunnel.server).
        [Interface]
        Address = {{ tunnel.get('address') }}/{{ tunnel.get('prefix') }}
        ListenPort = {{ tunnel.get('port', 51820) }}
        PostUp = wg set %i private-key /etc/wireguard/saltmarsh.key
        PostUp = find {{ nodes }} -type f ! -name '.*' -exec wg addconf %i {} \;
    - require:
      - cmd: the key of the tunnel
      - file: {{ nodes }}

# Nodes in there meet each other, and the rest of the site, by way of the controller.
net.ipv4.ip_forward:
  sysctl.present:
    - value: 1

wg-quick@saltmarsh:
  service.running:
    - enable: True
    - watch:
      - file: /etc/wireguard/saltmarsh.conf
