"""Names, addresses and paths of the lab. Scripts elsewhere rely on the names: they are fixed."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
STATE = CHECKOUT / ".lab"
CACHE = Path(os.environ.get("SALTMARSH_CACHE", "/var/cache/saltmarsh"))
LOG = STATE / "log"

SUITE = "trixie"
VENV = "/opt/saltmarsh"

# Network namespaces are global to the machine; several checkouts may each have their lab up.
TAG = "sm" + hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:6]


@dataclass(frozen=True)
class Machine:
    """A container that plays a machine of the site."""

    name: str
    address: str
    role: str

    @property
    def root(self):
        """Its root file system, an overlay over the shared base."""
        return STATE / "machines" / self.name / "root"

    @property
    def namespace(self):
        """Its network namespace."""
        return f"{TAG}-{self.name}"


CTL = Machine("ctl", "10.77.0.1", "controller")
HOSTS = (Machine("hv1", "10.77.0.11", "host"), Machine("hv2", "10.77.0.12", "host"))
MACHINES = {machine.name: machine for machine in (CTL, *HOSTS)}
PREFIX = 24
NODE_ADDRESSES = {f"vn{number:03d}": f"10.77.0.{100 + number}" for number in range(1, 17)}
