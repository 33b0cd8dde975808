/etc/resolv.conf:
  file.managed:
    - follow_symlinks: False
    - contents:
      - search {{ salt['pillar.get']('site:domain') }}
{%- for address in salt['pillar.get']('dns:nameservers') %}
      - nameserver {{ address }}
{%- endfor %}
