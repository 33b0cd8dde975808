chrony:
  pkg.installed: []
  service.running:
    - enable: True
    - watch:
      - file: /etc/chrony/chrony.conf

/etc/chrony/chrony.conf:
  file.managed:
    - makedirs: True
    - contents: |
        # Written by Salt (state chrony.client).
        {%- for server in salt['pillar.get']('chrony:servers') %}
        server {{ server }} iburst
        {%- endfor %}
        driftfile /var/lib/chrony/chrony.drift
        # A node that was away (suspended, moved) may step at any time, not only at boot.
        makestep 0.5 -1
        rtcsync
