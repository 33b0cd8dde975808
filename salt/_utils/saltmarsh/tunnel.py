"""
The tunnel in which the controller and nodes meet that it can't reach otherwise: WireGuard, with one key pair per node.

Nothing else in the project calls wg(8). A node's keys are made here, before the node boots, and its private one is
handed to whoever makes the machine, and kept nowhere. What the controller keeps is one file per node that may enter, as
wg reads it: the state ``tunnel.server`` loads them when the tunnel is opened.
"""

import base64
import os
import re
import subprocess
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from saltmarsh.errors import ProviderError

INTERFACE = "saltmarsh"
_SECONDS = 30
_KEEPALIVE = 25  # seconds: so the controller reaches a node behind a router that translates (wg(8))


class Peers:
    """
    The nodes that may enter the tunnel.

    :param path: the directory with the nodes' files; made when the first is let in
    :param saltmarsh.pools.Site site: the site
    """

    def __init__(self, path, site):
        self._path = Path(path)
        self._site = site

    def add(self, addresses):
        """
        Make keys for nodes, and let them in. What a node of this name had before is worth nothing from then on.

        :param dict addresses: the address of each node in the tunnel, by name
        :returns: by name, what the node's machine must be told, a secret: the file for wg-quick(8)
        :rtype: dict[str, str]
        :raises ProviderError: the tunnel is not open
        """
        server = _wg("show", INTERFACE, "public-key").strip()
        self.remove(addresses)
        self._path.mkdir(mode=0o755, parents=True, exist_ok=True)
        told = {}
        for name, address in addresses.items():
            private = X25519PrivateKey.generate()
            public = _text(private.public_key().public_bytes_raw())
            self._write(name, f"[Peer]\nPublicKey = {public}\nAllowedIPs = {address}/32\n")
            _wg("set", INTERFACE, "peer", public, "allowed-ips", f"{address}/32")
            told[name] = self._node_file(address, _text(private.private_bytes_raw()), server)
        return told

    def remove(self, names):
        """
        Nodes can't enter any more; ones that could not are no error.

        :param names: the nodes
        :raises ProviderError: that is not sure
        """
        there = [name for name in names if (self._path / name).exists()]
        for name in there:
            _wg("set", INTERFACE, "peer", self._key(name), "remove")
            (self._path / name).unlink()

    def names(self):
        """
        The nodes that may enter.

        :rtype: frozenset[str]
        """
        if not self._path.exists():
            return frozenset()
        return frozenset(file.name for file in self._path.iterdir() if not file.name.startswith("."))

    def _key(self, name):
        return re.search(r"^PublicKey = (\S+)$", (self._path / name).read_text(), re.MULTILINE)[1]

    def _write(self, name, text):
        # A file that is half written would keep all the others out.
        handle, new = tempfile.mkstemp(prefix=".", dir=self._path)
        with os.fdopen(handle, "w") as file:
            file.write(text)
        Path(new).rename(self._path / name)

    def _node_file(self, address, private, server):
        tunnel = self._site.tunnel
        return (
            f"[Interface]\nAddress = {address}/32\nPrivateKey = {private}\n\n"
            f"[Peer]\nPublicKey = {server}\nEndpoint = {tunnel.endpoint}:{tunnel.port}\n"
            f"AllowedIPs = {tunnel.subnet}, {self._site.subnet}\nPersistentKeepalive = {_KEEPALIVE}\n"
        )


def _text(key):
    return base64.b64encode(key).decode()


def _wg(*argv):
    try:
        done = subprocess.run(["wg", *argv], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise ProviderError(f"the tunnel (state tunnel.server on the controller): {err}") from err
    if done.returncode != 0:
        raise ProviderError(f"the tunnel (state tunnel.server on the controller): {' '.join(done.stderr.split())}")
    return done.stdout
