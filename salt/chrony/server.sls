# The controller's clock is the cluster's time: munge refuses credentials from another one.
chrony:
  pkg.installed: []
  service.running:
    - enable: True
    - watch:
      - file: /etc/chrony/chrony.conf
      - file: /etc/default/chrony

/etc/chrony/chrony.conf:
  file.managed:
    - makedirs: True
    - contents: |
        # Written by Salt (state chrony.server).
        {%- for server in salt['pillar.get']('chrony:upstream', []) %}
        server {{ server }} iburst
        {%- endfor %}
        local stratum {{ salt['pillar.get']('chrony:stratum') }}
        {%- for network in [salt['pillar.get']('chrony:serve')] + salt['pillar.get']('site:further_networks', []) %}
        allow {{ network }}
        {%- endfor %}
        driftfile /var/lib/chrony/chrony.drift

/etc/default/chrony:
  file.managed:
    - contents: DAEMON_OPTS="{{ salt['pillar.get']('chrony:daemon_options', '') }}"
