# dnsmasq serves the site's machines, and the nodes from a directory that the ledger's operations keep.
{%- set hostsdir = salt['pillar.get']('elastic:state_dir', '/var/lib/saltmarsh') ~ '/dns' %}

dnsmasq:
  pkg.installed: []
  service.running:
    - enable: True
    - watch:
      - file: /etc/dnsmasq.d/saltmarsh.conf
      - file: /etc/saltmarsh/machines
    - require:
      - pkg: dnsmasq
      - file: {{ hostsdir }}

{{ hostsdir }}:
  file.directory:
    - makedirs: True
    - mode: '0755'

/etc/saltmarsh/machines:
  file.managed:
    - makedirs: True
    - contents:
{%- for name, address in salt['pillar.get']('site:machines').items() %}
      - {{ address }} {{ name }} {{ name }}.{{ salt['pillar.get']('site:domain') }}
{%- endfor %}

/etc/dnsmasq.d/saltmarsh.conf:
  file.managed:
    - makedirs: True
    - contents: |
        # Written by Salt (state dns.server).
        bind-dynamic
        listen-address=127.0.0.1,{{ salt['pillar.get']('site:controller:address') }}
        no-resolv
        no-hosts
        domain={{ salt['pillar.get']('site:domain') }}
        local=/{{ salt['pillar.get']('site:domain') }}/
        domain-needed
        addn-hosts=/etc/saltmarsh/machines
        hostsdir={{ hostsdir }}
        # A name is claimed and freed at any time: nobody may remember an old answer.
        local-ttl=0
        no-negcache
