# The controller's key and certificate to reach libvirtd on the hosts.
include:
  - pki.authority

/etc/pki/libvirt/private/clientkey.pem:
  x509.private_key_managed:
    - makedirs: True
    - algo: ec
    - keysize: 256
    - mode: '0600'

/etc/pki/libvirt/clientcert.pem:
  x509.certificate_managed:
    - makedirs: True
    - signing_private_key: /etc/pki/saltmarsh/authority.key
    - signing_cert: /etc/pki/CA/cacert.pem
    - private_key: /etc/pki/libvirt/private/clientkey.pem
    - CN: {{ grains.id }}
    - keyUsage: critical digitalSignature, keyEncipherment
    - extendedKeyUsage: clientAuth
    - days_valid: 365
    - days_remaining: 30
    - require:
      - x509: /etc/pki/CA/cacert.pem
      - x509: /etc/pki/libvirt/private/clientkey.pem
