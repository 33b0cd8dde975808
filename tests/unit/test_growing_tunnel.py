"""grow and shrink of nodes in the tunnel: each comes with a key of its own, which is worth nothing once it has gone."""

import base64
import logging
import re

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from views import assert_undone

from saltmarsh.errors import OperationFailed, ProviderError
from saltmarsh.growing import grow, plan
from saltmarsh.pools import parse_nodes
from saltmarsh.shrinking import shrink


@pytest.fixture
def pillar(pillar):
    """The site, with one pool in the tunnel and a second provider for it."""
    pillar["elastic"]["tunnel"] = {"address": "10.78.0.1", "prefix": 24, "endpoint": "203.0.113.5"}
    pillar["elastic"]["pools"]["osg"] |= {
        "addresses": "10.78.0.51-54",
        "network": {"kind": "tunnel", "addresses": "192.168.5.11-14"},
        "fallback": ["osg-reserve"],
    }
    return pillar


@pytest.fixture
def wg(tmp_path, monkeypatch):
    """The interface of the tunnel: who may enter by which address."""
    directory = tmp_path / "wg"
    directory.mkdir()
    command = directory / "wg"
    command.write_text(
        f"""#!/bin/sh
        case $1 in
            show) echo c2VydmVy ;;
            set) case $5 in
                remove) /bin/sed -i "\\#^$4 #d" {directory}/peers ;;
                *) echo "$4 $6" >> {directory}/peers ;;
            esac ;;
        esac
        """
    )
    command.chmod(0o755)
    (directory / "peers").touch()
    monkeypatch.setenv("PATH", str(directory))
    return directory / "peers"


def private_keys(provider):
    ends = [machine["tunnel"] for machine in provider.machines().values()]
    return [re.search(r"^PrivateKey = (\S+)$", end, re.MULTILINE)[1] for end in ends]


def test_each_machine_is_made_with_its_own_address_and_its_end_of_the_tunnel(controller, provider, wg):
    grow(controller, 2, "osg")
    for name, at, own in (("osg1", "10.78.0.51", "192.168.5.11"), ("osg2", "10.78.0.52", "192.168.5.12")):
        machine = provider.machines()[name]
        assert machine["address"] == own
        assert f"Address = {at}/32" in machine["tunnel"]
        assert controller.slurm.nodes()[name].address == at
    assert len(set(private_keys(provider))) == 2
    assert sorted(line.split()[1] for line in wg.read_text().splitlines()) == ["10.78.0.51/32", "10.78.0.52/32"]


def test_a_private_key_is_told_to_nobody_but_the_machine(controller, provider, wg, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    said = []
    told = grow(controller, 2, "osg", map_out=tmp_path / "map", say=said.append)
    seen = [caplog.text, repr(told), *said]
    elsewhere = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent != provider.machine_files]
    seen += [path.read_bytes().decode(errors="replace") for path in elsewhere]
    assert len(private_keys(provider)) == 2
    assert [key for key in private_keys(provider) for text in seen if key in text] == []


def test_nobody_may_enter_who_is_only_planned(controller, wg):
    plan(controller, 2, "osg")
    assert wg.read_text() == ""


def test_a_machine_that_is_made_by_the_second_provider_has_the_same_key(controller, provider, wg):
    provider.fail("NoCapacity", "stub", "no room")
    grow(controller, 1, "osg")
    [key] = private_keys(provider)
    public = X25519PrivateKey.from_private_bytes(base64.b64decode(key)).public_key().public_bytes_raw()
    assert wg.read_text() == f"{base64.b64encode(public).decode()} 10.78.0.51/32\n"


def test_shrink_revokes_the_keys_of_what_goes_and_of_nothing_else(controller, wg):
    grow(controller, 2, "osg")
    shrink(controller, parse_nodes("osg1"), "osg")
    assert [line.split()[1] for line in wg.read_text().splitlines()] == ["10.78.0.52/32"]
    assert controller.tunnel.names() == {"osg2"}


def test_a_grow_that_fails_leaves_nobody_who_may_enter(controller, provider, minions, wg):
    provider.fail("create", "osg2", "no")
    with pytest.raises(OperationFailed):
        grow(controller, 2, "osg")
    assert_undone(controller)
    assert wg.read_text() == ""


def test_a_grow_without_a_tunnel_makes_no_machine(controller, provider, wg):
    wg.with_name("wg").unlink()
    with pytest.raises(ProviderError, match=r"state tunnel\.server on the controller"):
        grow(controller, 2, "osg")
    assert provider.machines() == {}
    assert_undone(controller)
