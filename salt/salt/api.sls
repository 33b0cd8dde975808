# salt-api for scripts, over TLS, with roles from pillar (api); without that, there is none. What the master has to know of
# it is in salt.master.
{%- set api = salt['pillar.get']('api') %}
include:
  - salt.master
  - pki.authority
{%- if api %}

{{ api.directory }}:
  elastic_api.users:
    - users: {{ api.users | list | json }}

{{ api.directory }}/server.key:
  x509.private_key_managed:
    - algo: ec
    - keysize: 256
    - mode: '0600'
    - require:
      - elastic_api: {{ api.directory }}

{{ api.directory }}/server.crt:
  x509.certificate_managed:
    - signing_private_key: /etc/pki/saltmarsh/authority.key
    - signing_cert: /etc/pki/CA/cacert.pem
    - private_key: {{ api.directory }}/server.key
    - CN: {{ api.names[0] }}
    - subjectAltName: {{ (['IP:' ~ api.address] + api.names | map('regex_replace', '^', 'DNS:') | list) | join(', ') }}
    - authorityKeyIdentifier: keyid:always
    - keyUsage: critical digitalSignature
    - extendedKeyUsage: serverAuth
    - days_valid: 365
    - days_remaining: 30
    - require:
      - x509: /etc/pki/CA/cacert.pem
      - x509: {{ api.directory }}/server.key

/etc/systemd/system/salt-api.service:
  file.managed:
    - source: salt://salt/files/salt-api.service
    - template: jinja

salt-api:
  service.running:
    - enable: True
    - require:
      - service: salt-master
    - watch:
      - file: /etc/salt/master.d/saltmarsh.conf
      - file: /etc/systemd/system/salt-api.service
      - x509: {{ api.directory }}/server.key
      - x509: {{ api.directory }}/server.crt
{%- endif %}
