"""The controller's minion, asked by a host for a certificate as a hostile root there might ask."""

import datetime

import pytest
import salt.config
import salt.loader
import salt.pillar
from cryptography import x509
from cryptography.x509.oid import ExtensionOID as OID

HOST = "hv1"
YEAR = datetime.timedelta(days=365, minutes=1)


@pytest.fixture(scope="module")
def functions(pillar_roots, tmp_path_factory):
    """The execution modules of the controller's minion, with its pillar and an authority."""
    directory = tmp_path_factory.mktemp("authority")
    opts = dict(salt.config.minion_config(None, cache_minion_id=False))
    opts |= {"id": "ctl", "root_dir": str(directory), "cachedir": str(directory), "file_client": "local"}
    opts["pillar_roots"] = {"base": pillar_roots}
    grains = {"id": "ctl"}
    opts["pillar"] = salt.pillar.get_pillar(opts, grains, "ctl").compile_pillar()
    opts["grains"] = grains
    files = {"signing_private_key": str(directory / "authority.key"), "signing_cert": str(directory / "cacert.pem")}
    for policy in opts["pillar"]["x509_signing_policies"].values():
        policy[:] = [{key: files.get(key, value) for key, value in row.items()} for row in policy]
    functions = salt.loader.minion_mods(opts)
    functions["x509.create_private_key"](algo="ec", path=files["signing_private_key"])
    functions["x509.create_certificate"](
        signing_private_key=files["signing_private_key"], CN="authority", basicConstraints="critical CA:true",
        keyUsage="critical keyCertSign, cRLSign", days_valid=3650, path=files["signing_cert"],
    )  # fmt: skip
    return functions


@pytest.fixture
def sign(functions):
    """What a host's minion is answered: a certificate, or what is held against it."""

    def sign(policy=HOST, asked_by=HOST, **asked):
        answer = functions["x509.sign_remote_certificate"](policy, asked, __pub_id=asked_by)
        return answer["errors"] or x509.load_der_x509_certificate(answer["data"])

    return sign


@pytest.fixture(scope="module")
def key(functions):
    """The host's own private key."""
    return functions["x509.create_private_key"](algo="ec")


@pytest.fixture
def own(functions, key):
    """What an honest host asks for."""
    return {"public_key": functions["x509.get_public_key"](key)}


HOSTILE = {
    "nothing more": {},
    "another name": {"CN": "ctl"},
    "another name in the long form": {"commonName": "ctl"},
    "another subject": {"subject": "CN=ctl"},
    "a name that says more": {"O": "ctl", "OU": "CN=ctl"},
    "a subject that says more": {"subject": ["O=ctl"]},
    "another subject, in parts": {"subject": {"CN": "ctl"}},
    "more names": {"subjectAltName": "DNS:ctl, DNS:ctl.lab, IP:10.77.0.1"},
    "an authority of its own": {"basicConstraints": "critical CA:true", "keyUsage": "critical keyCertSign"},
    "a long life": {"days_valid": 36500, "not_after": "2099-01-01 00:00:00", "not_before": "2001-01-01 00:00:00"},
    "another authority": {"signing_cert": None, "signing_private_key": "/etc/ssl/private/ssl-cert-snakeoil.key"},
}


@pytest.mark.parametrize("more", HOSTILE.values(), ids=HOSTILE)
def test_whatever_a_host_asks_for_it_gets_a_certificate_for_itself(sign, own, more):
    assert_own(sign(**own, **more))


def test_a_request_in_another_name_gives_it_no_other_name(functions, sign, key, own):
    request = functions["x509.create_csr"](private_key=key, CN="ctl", subjectAltName="DNS:ctl.lab")
    assert_own(sign(csr=request, **own))


def test_nothing_is_written_on_the_controller_for_it(sign, own, tmp_path):
    sign(copypath=str(tmp_path), prepend_cn=True, **own)
    assert list(tmp_path.iterdir()) == []


def test_no_other_minion_gets_a_certificate_of_a_host(sign, own):
    assert sign(asked_by="hv2", **own) == ["minion not permitted to use specified signing policy"]
    assert sign(asked_by="hv11", **own) == ["minion not permitted to use specified signing policy"]
    assert sign(policy="ctl", asked_by="ctl", **own) == [
        "signing_policy must be specified and defined on signing minion"
    ]


def assert_own(certificate):
    """It says that this is the host, to the hosts' peers, for a year, and nothing else."""
    extensions = {each.oid: each.value for each in certificate.extensions}
    assert certificate.subject.rfc4514_string() == f"CN={HOST}"
    assert certificate.issuer.rfc4514_string() == "CN=authority"
    assert extensions[OID.SUBJECT_ALTERNATIVE_NAME].get_values_for_type(x509.DNSName) == [HOST]
    assert len(list(extensions[OID.SUBJECT_ALTERNATIVE_NAME])) == 1
    assert not extensions[OID.BASIC_CONSTRAINTS].ca
    assert not extensions[OID.KEY_USAGE].key_cert_sign
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc <= YEAR
    assert abs(certificate.not_valid_before_utc - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=5)
