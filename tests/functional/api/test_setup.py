"""What the state sets up: files that only root can read, and a certificate for exactly this."""

import os
import stat

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

SERVICES = {"salt-master", "salt-api"}  # nothing starts services where the test applies the state


def test_the_state_can_be_applied(site):
    failed = {chunk["name"]: chunk["comment"] for chunk in site.applied if chunk["result"] is False}
    assert failed.keys() == SERVICES, failed


def test_only_root_reads_keys_and_passwords(site):
    assert stat.S_IMODE(site.users.stat().st_mode) == 0o700
    there = {path.name: stat.S_IMODE(path.stat().st_mode) for path in site.users.iterdir()}
    secret = {"users", "server.key", "operator.password", "slurm.password", "monitor.password"}
    assert there.keys() == secret | {"server.crt"}
    assert {there[name] for name in secret} == {0o600}


def test_the_certificate_is_for_this_server_alone(site):
    certificate = x509.load_pem_x509_certificate((site.users / "server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(name.value) for name in names} == {"127.0.0.1", "localhost"}
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_applying_it_again_changes_nothing(site):
    before = {path: path.read_bytes() for path in site.users.iterdir()}
    again = site.apply("salt.api")
    assert {chunk["name"] for chunk in again if chunk["changes"]} <= SERVICES
    assert {path: path.read_bytes() for path in site.users.iterdir()} == before


def test_the_test_leaves_the_machines_own_files_alone(site):
    assert not os.path.exists("/etc/salt/api")
