"""Who may enter the tunnel, with a wg(8) that writes down what it is told."""

import base64
import re
import shutil

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from saltmarsh.errors import ProviderError
from saltmarsh.pools import Site
from saltmarsh.tunnel import Peers

SERVER = "c2VydmVyIHNlcnZlciBzZXJ2ZXIgc2VydmVyIHNlcnY="
NODES = {"osg1": "10.78.0.51", "osg2": "10.78.0.52"}


@pytest.fixture
def wg(tmp_path, monkeypatch):
    """The interface: what is told it, while it is there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    interface = tmp_path / "interface"
    interface.touch()
    command = tmp_path / "wg"
    command.write_text(
        f"#!/bin/sh\n[ -e {interface} ] || {{ echo 'Unable to access interface: No such device' >&2; exit 1; }}\n"
        f'echo "$@" >> {interface}\n[ "$1" = set ] || echo {SERVER}\n'
    )
    command.chmod(0o755)
    return interface


@pytest.fixture
def peers(pillar, tmp_path):
    """The nodes that may enter, none as yet."""
    pillar["elastic"]["tunnel"] = {"address": "10.78.0.1", "prefix": 24, "endpoint": "203.0.113.5", "port": 4711}
    return Peers(tmp_path / "tunnel", Site.from_pillar(pillar))


def key_of(told):
    """The public key that belongs to the private one in a node's file."""
    private = base64.b64decode(re.search(r"^PrivateKey = (\S+)$", told, re.MULTILINE)[1])
    public = X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    return base64.b64encode(public).decode()


def told(wg):
    return [line for line in wg.read_text().splitlines() if line.startswith("set")]


def test_a_node_is_told_how_to_enter_and_the_way_to_the_site(peers, wg):
    text = peers.add(NODES)["osg1"]
    assert [line for line in text.splitlines() if not line.startswith("PrivateKey")] == [
        "[Interface]",
        "Address = 10.78.0.51/32",
        "",
        "[Peer]",
        f"PublicKey = {SERVER}",
        "Endpoint = 203.0.113.5:4711",
        "AllowedIPs = 10.78.0.0/24, 10.77.0.0/24",
        "PersistentKeepalive = 25",
    ]


def test_each_node_has_a_key_of_its_own_that_is_good_for_its_address_alone(peers, wg):
    files = peers.add(NODES)
    keys = {name: key_of(text) for name, text in files.items()}
    assert len(set(keys.values())) == 2
    assert told(wg) == [f"set saltmarsh peer {keys[name]} allowed-ips {NODES[name]}/32" for name in NODES]
    assert peers.names() == set(NODES)


def test_what_is_kept_is_what_wg_reads_when_the_tunnel_opens_and_no_private_key(peers, wg, tmp_path):
    files = peers.add(NODES)
    kept = {path.name: path.read_text() for path in (tmp_path / "tunnel").iterdir()}
    assert kept == {
        name: f"[Peer]\nPublicKey = {key_of(files[name])}\nAllowedIPs = {NODES[name]}/32\n" for name in NODES
    }


def test_a_node_that_is_revoked_is_shut_out_at_once_and_for_good(peers, wg):
    key = key_of(peers.add(NODES)["osg1"])
    peers.remove(["osg1"])
    assert told(wg)[-1] == f"set saltmarsh peer {key} remove"
    assert peers.names() == {"osg2"}


def test_a_node_that_is_made_again_gets_another_key_and_its_old_one_is_worth_nothing(peers, wg):
    old, new = (key_of(peers.add(NODES)["osg1"]) for _ in range(2))
    assert old != new
    assert told(wg).index(f"set saltmarsh peer {old} remove") < told(wg).index(
        f"set saltmarsh peer {new} allowed-ips 10.78.0.51/32"
    )


def test_nothing_is_asked_of_wg_for_nodes_that_could_not_enter(peers, wg):
    wg.unlink()
    peers.remove(NODES)
    assert peers.names() == frozenset()


def test_nobody_is_let_in_while_the_tunnel_is_closed(peers, wg):
    wg.unlink()
    with pytest.raises(
        ProviderError, match=r"^the tunnel \(state tunnel\.server on the controller\): Unable to access"
    ):
        peers.add(NODES)
    assert peers.names() == frozenset()


def test_a_node_counts_as_let_in_until_it_is_sure_that_it_is_not(peers, wg):
    peers.add(NODES)
    wg.unlink()
    with pytest.raises(ProviderError, match="No such device"):
        peers.remove(["osg1"])
    assert peers.names() == set(NODES)


def test_a_controller_without_wireguard_is_told_so(peers, wg, tmp_path):
    (tmp_path / "wg").unlink()
    assert shutil.which("wg") is None
    with pytest.raises(ProviderError, match=r"^the tunnel \(state tunnel\.server on the controller\): .*'wg'"):
        peers.add(NODES)
