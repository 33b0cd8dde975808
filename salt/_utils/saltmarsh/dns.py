"""
The nodes' names in DNS: one file per node in the directory that dnsmasq watches (``hostsdir`` in dnsmasq(8)).

Measured with dnsmasq 2.91: a name is served as soon as its file is there, and no longer once it is removed.
"""

import os
import tempfile
from pathlib import Path


class HostsDirectory:
    """
    The directory, and the DNS domain its names are in.

    :param path: the directory; made if it is not there
    :param str domain: the domain, or None
    """

    def __init__(self, path, domain=None):
        self._path = Path(path)
        self._domain = domain
        self._path.mkdir(parents=True, exist_ok=True)

    def add(self, addresses):
        """
        Serve names.

        :param dict addresses: the address of each node by name
        """
        for name, address in addresses.items():
            names = f"{name} {name}.{self._domain}" if self._domain else name
            # dnsmasq leaves out files whose names begin with a dot, and reads one that is moved in.
            handle, new = tempfile.mkstemp(prefix=".", dir=self._path)
            with os.fdopen(handle, "w") as file:
                file.write(f"{address} {names}\n")
                os.fchmod(handle, 0o644)
            Path(new).rename(self._path / name)

    def remove(self, names):
        """
        Serve names no longer; ones that are not served are no error.

        :param names: the names
        """
        for name in names:
            (self._path / name).unlink(missing_ok=True)

    def names(self):
        """
        The names that are served.

        :rtype: frozenset[str]
        """
        return frozenset(file.name for file in self._path.iterdir() if not file.name.startswith("."))
