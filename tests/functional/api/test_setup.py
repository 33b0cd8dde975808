"""What the state sets up: files that only root can read, and a certificate for exactly this."""

import os
import stat
import subprocess

import pytest
import yaml
from apisite import Site
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


# What changes later. Nothing runs here.


@pytest.fixture(scope="module")
def other(site, checkout, tmp_path_factory):
    """A second site, to be changed."""
    other = Site(tmp_path_factory.mktemp("other"), checkout)
    other.apply("salt.api")
    return other


def master_settings(site):
    return yaml.safe_load((site.etc / "master.d/saltmarsh.conf").read_text())


def is_signed(site):
    """Whether the site's authority has signed the server's certificate, and it is for the server's key."""
    authority, certificate = site.upper / "pki/CA/cacert.pem", site.users / "server.crt"
    verified = subprocess.run(
        ["openssl", "verify", "-CAfile", authority, certificate], capture_output=True, check=False
    )
    ours = subprocess.run(
        ["openssl", "pkey", "-pubout", "-in", site.users / "server.key"], capture_output=True, check=True
    )
    theirs = subprocess.run(
        ["openssl", "x509", "-noout", "-pubkey", "-in", certificate], capture_output=True, check=True
    )
    return verified.returncode == 0 and ours.stdout == theirs.stdout


def test_who_is_no_user_in_pillar_any_more_has_no_role_and_no_password(other):
    other.write_pillar(users={"operator": "operator", "extra": "viewer"})
    other.apply("salt.api")
    assert set(master_settings(other)["external_auth"]["file"]) == {"^filename", "^hashtype", "operator", "extra"}
    passwords = {path.name for path in other.users.glob("*.password")}
    assert passwords == {"operator.password", "extra.password"}


def test_a_site_without_the_api_in_pillar_has_none(site, checkout, tmp_path):
    without = Site(tmp_path, checkout)
    (without.directory / "pillar/api.sls").write_text("{}")
    applied = without.apply("salt.api")
    assert {chunk["name"] for chunk in applied if chunk["result"] is False} == {"salt-master"}
    assert not master_settings(without).keys() & {"elastic_api", "external_auth", "netapi_enable_clients", "peer_run"}
    assert not without.users.exists()


@pytest.mark.parametrize("lost", ["salt/api/server.key", "pki/saltmarsh/authority.key"])
def test_a_new_key_gets_a_new_certificate(other, lost):
    before = (other.users / "server.crt").read_bytes()
    assert is_signed(other)
    (other.upper / lost).unlink()
    other.apply("salt.api")
    assert is_signed(other)
    assert (other.users / "server.crt").read_bytes() != before
