{%- import_yaml 'elastic.sls' as site %}
roles:
  - controller

# The controller's minion signs the hosts' TLS certificates and tells them the authority's own. For each host there is a
# policy of its id, which alone may use it: whatever it asks for, it gets a certificate for itself.
x509_signing_policies:
{%- for host in site.elastic.hosts %}
  {{ host }}:
    - minions: {{ host }}
    - signing_private_key: /etc/pki/saltmarsh/authority.key
    - signing_cert: /etc/pki/CA/cacert.pem
    - subject: CN={{ host }}
    - subjectAltName: DNS:{{ host }}
    - basicConstraints: critical CA:false
    - keyUsage: critical digitalSignature, keyEncipherment
    - extendedKeyUsage: serverAuth, clientAuth
    - days_valid: 365
    # Not for the host to say.
    - not_before: null
    - not_after: null
    - copypath: null
{%- endfor %}
mine_functions:
  site_authority:
    - mine_function: x509.get_pem_entry
    - text: /etc/pki/CA/cacert.pem
    - pem_type: CERTIFICATE
