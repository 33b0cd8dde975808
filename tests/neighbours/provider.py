"""The provider behind the stub driver: a directory with one file for each machine, and the faults it is to show."""

import json
from pathlib import Path

STUB = Path(__file__).parent / "stub"
KILL = "kill"


def open_gate(name, call):
    """Lets every call to the provider through."""
    return call()


gate = open_gate


class Provider:
    """
    A provider for every pool's first profile, with the site's hosts and the pools' images, and one in reserve for the
    others, with a host ``reserve``.

    Its faults are files, so that the driver finds them in whatever process it runs.

    :param pathlib.Path directory: where it keeps its machines and salt-cloud's configuration
    :param saltmarsh.pools.Site site: the site
    :param bool deploy: whether salt-cloud makes minion keys
    """

    def __init__(self, directory, site, deploy):
        self.store = directory / "store"
        self.configuration = directory / "salt/cloud"
        self.keys = directory / "pki/master/minions"
        settings = {
            "salt/master": {"root_dir": str(directory), "pki_dir": "/pki/master", "module_dirs": [str(STUB)]},
            "salt/cloud": {},
            "salt/cloud.providers.d/stub.conf": {
                "stub": {
                    "driver": "stub",
                    "store": str(self.store),
                    "hosts": list(site.hosts),
                    "images": [pool.image for pool in site.pools.values()],
                },
                # For the same machines, so that nothing else must know of it.
                "reserve": {
                    "driver": "stub",
                    "store": str(self.store),
                    "hosts": ["reserve"],
                    "images": [pool.image for pool in site.pools.values()],
                },
            },
            "salt/cloud.profiles.d/stub.conf": {
                profile: {
                    "provider": "stub" if profile == pool.profile else "reserve",
                    "deploy": deploy,
                    "keysize": 2048,
                    "minion": {"master": site.controller.address},
                }
                for pool in site.pools.values()
                for profile in pool.profiles
            },
        }
        waiting, rejected = self.keys.with_name("minions_pre"), self.keys.with_name("minions_rejected")
        for path in (
            self.machine_files,
            self.volumes,
            self.others,
            self.store / "faults",
            self.keys,
            waiting,
            rejected,
        ):
            path.mkdir(parents=True, exist_ok=True)
        for name, content in settings.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))

    @property
    def machine_files(self):
        """The directory with one file for each machine."""
        return self.store / "machines"

    @property
    def volumes(self):
        """The directory with one file for each machine that is gone and whose volumes are not."""
        return self.store / "volumes"

    @property
    def others(self):
        """The directory with one file for each machine that is somebody else's."""
        return self.store / "others"

    def machines(self):
        """The machines that exist: what salt-cloud handed over for each, by name."""
        return {path.name: json.loads(path.read_text()) for path in self.machine_files.iterdir()}

    def add(self, name, host="hv1"):
        """Make a machine behind everybody's back."""
        (self.machine_files / name).write_text(json.dumps({"name": name, "host": host}))

    def fail(self, function, name, why, kind=None):
        """
        Let the driver fail.

        :param str function: ``create`` (nothing is made), ``created`` (it fails afterwards), ``destroy``,
            ``remove_strays``, ``host``, or ``NoCapacity`` or ``QuotaExceeded`` (nothing is made at this provider)
        :param str name: the machine, the host that is down, or the provider
        :param str why: the error, or KILL: the process is killed at this point
        :param kind: the class of saltmarsh.errors that the driver has met
        """
        self._fault(function, name).write_text(f"{kind.__name__}|{why}" if kind else why)

    def mend(self, function, name):
        """Let the driver not fail any more."""
        self._fault(function, name).unlink(missing_ok=True)

    def _fault(self, function, name):
        return self.store / "faults" / f"{function}.{name}"
