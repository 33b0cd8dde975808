# A host: libvirtd reachable over TLS for the controller, and the storage pools the cloud provider names.
{%- set hypervisor = salt['pillar.get']('hypervisor') %}
{%- set authority = salt['mine.get'](hypervisor.authority, 'site_authority').get(hypervisor.authority, '') %}

libvirt:
  pkg.installed:
    - pkgs: [libvirt-daemon-system, libvirt-daemon-driver-qemu, libvirt-clients, qemu-system-x86, qemu-utils, zstd]

{%- if not authority %}

the authority's certificate is known:
  test.fail_without_changes:
    - name: minion {{ hypervisor.authority }} has not published its certificate (apply pki.authority there first)
    - failhard: True
{%- endif %}

/etc/pki/CA/cacert.pem:
  file.managed:
    - makedirs: True
    - contents: |
        {{ authority | indent(8) }}

{%- for end, usage in {'server': 'serverAuth', 'client': 'clientAuth'}.items() %}

/etc/pki/libvirt/private/{{ end }}key.pem:
  x509.private_key_managed:
    - makedirs: True
    - algo: ec
    - keysize: 256
    - mode: '0600'

/etc/pki/libvirt/{{ end }}cert.pem:
  x509.certificate_managed:
    - makedirs: True
    - ca_server: {{ hypervisor.authority }}
    - signing_policy: {{ grains.id }}
    - private_key: /etc/pki/libvirt/private/{{ end }}key.pem
    - days_remaining: 30
    - require:
      - x509: /etc/pki/libvirt/private/{{ end }}key.pem
    - require_in:
      - service: libvirtd
{%- endfor %}

# Machines that move while they run: QEMU's own connection, with a key that QEMU may read.
/etc/pki/qemu/server-key.pem:
  x509.private_key_managed:
    - makedirs: True
    - algo: ec
    - keysize: 256
    - mode: '0640'
    - group: libvirt-qemu
    - require:
      - pkg: libvirt

/etc/pki/qemu/server-cert.pem:
  x509.certificate_managed:
    - ca_server: {{ hypervisor.authority }}
    - signing_policy: {{ grains.id }}
    - private_key: /etc/pki/qemu/server-key.pem
    - days_remaining: 30
    - require:
      - x509: /etc/pki/qemu/server-key.pem
{%- for link, target in {'client-key.pem': 'server-key.pem', 'client-cert.pem': 'server-cert.pem',
                         'ca-cert.pem': '/etc/pki/CA/cacert.pem'}.items() %}

/etc/pki/qemu/{{ link }}:
  file.symlink:
    - target: {{ target }}
    - require:
      - x509: /etc/pki/qemu/server-cert.pem
{%- endfor %}

/etc/libvirt/libvirtd.conf:
  file.managed:
    - contents: |
        # Written by Salt (state hypervisor).
        tls_allowed_dn_list = ["{{ hypervisor.clients | map('regex_replace', '^', 'CN=') | join('", "') }}"]
        max_clients = 200
        max_workers = 40
        max_client_requests = 20

/etc/libvirt/qemu.conf:
  file.managed:
    - contents: |
        # Written by Salt (state hypervisor).
        {%- for key, value in hypervisor.get('qemu_conf', {}).items() %}
        {{ key }} = {{ value }}
        {%- endfor %}

{%- for name, directory in hypervisor.storage_pools.items() %}

/etc/libvirt/storage/{{ name }}.xml:
  file.managed:
    - makedirs: True
    - contents: |
        <pool type='dir'>
          <name>{{ name }}</name>
          <target><path>{{ directory }}</path></target>
        </pool>

/etc/libvirt/storage/autostart/{{ name }}.xml:
  file.symlink:
    - target: /etc/libvirt/storage/{{ name }}.xml
    - makedirs: True
    - watch_in:
      - service: libvirtd
{%- endfor %}

{%- for socket in ['libvirtd.socket', 'libvirtd-ro.socket', 'libvirtd-tls.socket'] %}

{{ socket }}:
  service.running:
    - enable: True
    - require_in:
      - service: libvirtd
{%- endfor %}

libvirtd:
  service.running:
    - enable: True
    - watch:
      - file: /etc/libvirt/libvirtd.conf
      - file: /etc/libvirt/qemu.conf
      - file: /etc/pki/CA/cacert.pem
      - x509: /etc/pki/libvirt/servercert.pem
