# The site's own certificate authority, for libvirt's TLS. Its private key never leaves the controller.
/etc/pki/saltmarsh:
  file.directory:
    - makedirs: True
    - mode: '0700'

/etc/pki/saltmarsh/authority.key:
  x509.private_key_managed:
    - algo: ec
    - keysize: 256
    - mode: '0600'
    - require:
      - file: /etc/pki/saltmarsh

/etc/pki/CA/cacert.pem:
  x509.certificate_managed:
    - makedirs: True
    - signing_private_key: /etc/pki/saltmarsh/authority.key
    - CN: {{ salt['pillar.get']('site:domain') }} authority
    - basicConstraints: critical CA:true
    - keyUsage: critical keyCertSign, cRLSign
    - subjectKeyIdentifier: hash
    - days_valid: 3650
    - days_remaining: 90
    - require:
      - x509: /etc/pki/saltmarsh/authority.key

publish the authority's certificate:
  module.run:
    - mine.update: []
    - onchanges:
      - x509: /etc/pki/CA/cacert.pem
