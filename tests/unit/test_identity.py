"""What a machine is told at boot."""

import io

import pycdlib
import pytest
import salt.utils.yaml
from hypervisors import spec

from saltmarsh import identity
from saltmarsh.identity import Minion

MINION = Minion(
    config={"id": "vn001", "master": "10.77.0.1", "grains": {"pool": "virtual"}},
    private_key="-----BEGIN RSA PRIVATE KEY-----\nsecret\n-----END RSA PRIVATE KEY-----\n",
    public_key="-----BEGIN PUBLIC KEY-----\nvn001\n-----END PUBLIC KEY-----\n",
    master_key="-----BEGIN PUBLIC KEY-----\nmaster\n-----END PUBLIC KEY-----\n",
)


def credentials(asked, minion=MINION):
    return {each.name: each for each in identity.by_credentials(asked, minion).credentials}


def seed(asked, minion=MINION, cloud_config=None):
    """The files of a seed, read back from the ISO image by Rock Ridge names."""
    image = pycdlib.PyCdlib()
    image.open_fp(io.BytesIO(identity.by_nocloud(asked, "vn001-1", minion, cloud_config).seed))
    assert image.pvd.volume_identifier.decode().strip() == "CIDATA"
    files = {}
    for child in image.list_children(rr_path="/"):
        if child.is_file():
            content = io.BytesIO()
            image.get_file_from_iso_fp(content, rr_path=f"/{child.rock_ridge.name().decode()}")
            files[child.rock_ridge.name().decode()] = content.getvalue().decode()
    return files


def test_credentials_carry_what_the_golden_image_expects():
    given = credentials(spec())
    assert given["system.hostname"].value == "vn001"
    assert given["salt.minion.pem"].value == MINION.private_key
    assert given["salt.minion.pub"].value == MINION.public_key
    assert given["salt.master.pub"].value == MINION.master_key
    assert salt.utils.yaml.safe_load(given["salt.minion.conf"].value) == MINION.config


def test_the_private_key_and_the_configuration_are_secrets():
    assert {name for name, each in credentials(spec()).items() if each.secret} == {
        "salt.minion.pem",
        "salt.minion.conf",
    }


def test_the_network_is_static_and_asks_nobody():
    assert credentials(spec())["network.network.10-eth0"].value.splitlines() == [
        "[Match]",
        "MACAddress=52:54:00:4d:00:65",
        "",
        "[Network]",
        "Address=10.77.0.101/24",
        "Gateway=10.77.0.254",
        "DNS=10.77.0.1",
        "Domains=lab",
        "DHCP=no",
        "LinkLocalAddressing=no",
        "IPv6AcceptRA=no",
        "LLMNR=no",
        "MulticastDNS=no",
    ]


def test_a_network_without_gateway_and_domain_says_nothing_of_them():
    lines = credentials(spec(network={"bridge": "br0", "prefix": 24}))["network.network.10-eth0"].value
    assert not [key for key in ("Gateway=", "Domains=", "\nDNS=") if key in lines]


@pytest.mark.parametrize("identify", [identity.by_credentials, lambda asked: identity.by_nocloud(asked, "vn001-1")])
def test_a_machine_without_a_minion_is_told_nothing_about_salt(identify):
    told = identify(spec())
    assert "salt" not in " ".join(each.name for each in told.credentials)
    assert b"salt" not in (told.seed or b"")


def test_no_secret_is_in_a_representation():
    told = [identity.by_credentials(spec(), MINION), identity.by_nocloud(spec(), "vn001-1", MINION), MINION]
    assert not [word for word in ("-----BEGIN RSA", "PRIVATE KEY") if word in repr(told)]


def test_a_seed_tells_name_and_instance():
    files = seed(spec())
    assert set(files) == {"meta-data", "user-data", "network-config"}
    assert salt.utils.yaml.safe_load(files["meta-data"]) == {"instance-id": "vn001-1", "local-hostname": "vn001"}
    assert files["user-data"].startswith("#cloud-config\n")
    config = salt.utils.yaml.safe_load(files["user-data"])
    assert (config["hostname"], config["fqdn"]) == ("vn001", "vn001.lab")


def test_a_seed_installs_the_minions_files_the_key_for_root_alone():
    files = {file["path"]: file for file in salt.utils.yaml.safe_load(seed(spec())["user-data"])["write_files"]}
    assert {path: (file["permissions"], file["owner"]) for path, file in files.items()} == {
        "/etc/salt/pki/minion/minion.pem": ("0600", "root:root"),
        "/etc/salt/pki/minion/minion.pub": ("0644", "root:root"),
        "/etc/salt/pki/minion/minion_master.pub": ("0644", "root:root"),
        "/etc/salt/minion.d/saltmarsh.conf": ("0600", "root:root"),
    }
    assert files["/etc/salt/pki/minion/minion.pem"]["content"] == MINION.private_key
    assert salt.utils.yaml.safe_load(files["/etc/salt/minion.d/saltmarsh.conf"]["content"]) == MINION.config


TOLD = "[Interface]\nPrivateKey = c2VjcmV0\n"


def test_a_tunnel_is_a_secret_credential():
    given = {each.name: each for each in identity.by_credentials(spec(), MINION, TOLD).credentials}
    assert (given["salt.tunnel.conf"].value, given["salt.tunnel.conf"].secret) == (TOLD, True)
    assert "c2VjcmV0" not in repr(given)


def test_a_seed_opens_the_tunnel_first_from_a_file_for_root_alone():
    own = {"runcmd": ["salt-minion"]}
    config = salt.utils.yaml.safe_load(identity.user_data("vn001", None, MINION, own, TOLD).partition("\n")[2])
    [file] = [file for file in config["write_files"] if "wireguard" in file["path"]]
    assert file == {
        "path": "/etc/wireguard/saltmarsh.conf", "content": TOLD, "permissions": "0600", "owner": "root:root",
    }  # fmt: skip
    assert config["runcmd"] == [["systemctl", "enable", "--now", "wg-quick@saltmarsh.service"], "salt-minion"]
    assert own == {"runcmd": ["salt-minion"]}


def test_a_seed_has_one_static_interface():
    config = salt.utils.yaml.safe_load(seed(spec())["network-config"])
    assert config == {
        "version": 2,
        "ethernets": {
            "eth0": {
                "match": {"macaddress": "52:54:00:4d:00:65"},
                "set-name": "eth0",
                "dhcp4": False,
                "dhcp6": False,
                "addresses": ["10.77.0.101/24"],
                "routes": [{"to": "0.0.0.0/0", "via": "10.77.0.254"}],
                "nameservers": {"addresses": ["10.77.0.1"], "search": ["lab"]},
            }
        },
    }


def test_a_profile_adds_its_own_cloud_config_and_cannot_take_the_minions_files_away():
    own = {"packages": ["salt-minion"], "write_files": [{"path": "/etc/motd", "content": "hi"}], "hostname": "other"}
    config = salt.utils.yaml.safe_load(seed(spec(), cloud_config=own)["user-data"])
    assert config["packages"] == ["salt-minion"]
    assert config["hostname"] == "vn001"
    assert [file["path"] for file in config["write_files"]][-1] == "/etc/motd"
    assert len(config["write_files"]) == 5
    assert own["write_files"] == [{"path": "/etc/motd", "content": "hi"}]
