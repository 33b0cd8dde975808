roles:
  - controller

# The controller's minion signs the hosts' TLS certificates and tells them the authority's own.
x509_signing_policies:
  libvirt:
    - minions: 'hv*'
    - signing_private_key: /etc/pki/saltmarsh/authority.key
    - signing_cert: /etc/pki/CA/cacert.pem
    - keyUsage: critical digitalSignature, keyEncipherment
    - extendedKeyUsage: serverAuth, clientAuth
    - days_valid: 365
mine_functions:
  site_authority:
    - mine_function: x509.get_pem_entry
    - text: /etc/pki/CA/cacert.pem
    - pem_type: CERTIFICATE
