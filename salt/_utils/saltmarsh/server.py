"""
What a machine in an OpenStack cloud is: what is asked for, what there is, and how the cloud is reached.

Values only: nothing here talks to anything. Memory is in MiB, volumes are in GiB.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, IPvAnyAddress, model_validator

from saltmarsh.machine import Checked, Count, Machine, Name, PowerState

# The mark on everything that is made for a node; others are never touched.
CLUSTER, NODE, MADE, ADDRESS, IMAGE = (f"saltmarsh_{key}" for key in ("cluster", "node", "made", "address", "image"))
# On a suspended server: it is about to come back.
RESTORED = "saltmarsh_restored"
# A name of something in the cloud, or its id.
Named = Annotated[str, Field(min_length=1, max_length=255)]

_POWER = {
    "BUILD": PowerState.BUILDING,
    "REBUILD": PowerState.BUILDING,
    "ACTIVE": PowerState.RUNNING,
    "REBOOT": PowerState.RUNNING,
    "HARD_REBOOT": PowerState.RUNNING,
    "PAUSED": PowerState.PAUSED,
    "SUSPENDED": PowerState.SUSPENDED,
    "SHUTOFF": PowerState.STOPPED,
    "SHELVED": PowerState.STOPPED,
    "SHELVED_OFFLOADED": PowerState.STOPPED,
    "ERROR": PowerState.CRASHED,
}


class CloudConfig(Checked):
    """
    A salt-cloud provider of the driver ``openstack``.

    ``cluster`` marks every server, port, volume and floating address that is made; others are never touched. The cloud
    is one of ``clouds.yaml`` (``cloud``, and ``clouds_file`` where it is not in its usual place), or is given here by
    ``auth`` and ``auth_type``, as openstacksdk has them. ``create_timeout`` is how long a server may be built,
    ``request_timeout`` how long the cloud may take to answer; in seconds.
    """

    cluster: Name
    cloud: str | None = None
    clouds_file: str | None = None
    auth: dict[str, Any] | None = Field(default=None, repr=False)
    auth_type: str | None = None
    region_name: str | None = None
    interface: str | None = None
    cacert: str | None = None
    create_timeout: Count = 600
    request_timeout: Count = 60

    @model_validator(mode="after")
    def _one_way(self):
        if (self.cloud is None) == (self.auth is None):
            raise ValueError("expected either cloud (a name in clouds.yaml) or auth")
        return self

    @property
    def overrides(self):
        """What openstacksdk is told beside the name of the cloud."""
        keys = ("auth", "auth_type", "region_name", "interface", "cacert")
        given = {key: value for key in keys if (value := getattr(self, key)) is not None}
        return given | {"api_timeout": self.request_timeout}


class BootVolume(Checked):
    """A volume from which a server boots, instead of from a disk of its host."""

    size: Count
    type: Named | None = None


class ServerSpec(Checked):
    """
    One server as it is asked for.

    ``size`` is a flavor; where ``cpus`` and ``memory`` are given, it must have as many. ``floating_network`` is the
    network from which it gets a floating address, ``floating_address`` which one: one that the project has, or else a
    new one.
    """

    name: Name
    image: Named
    size: Named
    address: IPvAnyAddress
    network: Named
    cpus: Count | None = None
    memory: Count | None = None
    subnet: Named | None = None
    domain: str | None = None
    security_groups: tuple[Named, ...] | None = None
    port_security: bool | None = None
    key_pair: Named | None = None
    availability_zone: Named | None = None
    server_group: Named | None = None
    boot_volume: BootVolume | None = None
    floating_network: Named | None = None
    floating_address: IPvAnyAddress | None = None

    @model_validator(mode="after")
    def _fits_together(self):
        if self.floating_address and not self.floating_network:
            raise ValueError(f"floating_address {self.floating_address} needs a floating_network that it is of")
        return self


@dataclass(frozen=True)
class Server(Machine):
    """A machine of this cluster, as its cloud knows it; ``host`` is the name of the provider."""

    size: str
    public_address: str
    fault: str


def marks(cluster, name, made):
    """
    The mark of a server or a volume, as its metadata.

    :param str cluster: whose it is
    :param str name: the node for which it is made
    :param str made: what tells this making of it from all others
    """
    return {CLUSTER: cluster, NODE: name, MADE: made}


def description(cluster, name, made):
    """The mark of a port or a floating address, which have no metadata: their description."""
    return " ".join(("saltmarsh", cluster, name, made))


def power_state(status):
    """What Nova's status of a server means, as a :class:`saltmarsh.machine.PowerState`."""
    return _POWER.get(status, PowerState.UNKNOWN)
