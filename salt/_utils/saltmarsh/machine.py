"""
What a virtual machine is, wherever it runs: what is asked for, what there is, and the hosts it may be on.

Values only: nothing here talks to anything. Memory is in MiB, disks are in GiB.
"""

import ipaddress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, IPvAnyAddress, ValidationError, model_validator

from saltmarsh.errors import InvalidInput

# A DNS label (RFC 1123): without a dot in it, "vn1." can't be the beginning of another machine's volume names.
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
Count = Annotated[int, Field(strict=True, gt=0)]
# The name of a file in a storage pool: never a path.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$", max_length=200)]


class Checked(BaseModel):
    """Immutable, and checked as a whole when it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls, values, what):
        """
        Take the keys this type knows out of a mapping.

        :param dict values: for example a salt-cloud profile; keys that are not of this type are left alone
        :param str what: what the mapping is, for the message
        :raises InvalidInput: the first key that is missing or not acceptable, and what was expected
        """
        try:
            return cls.model_validate({key: values[key] for key in cls.model_fields if values.get(key) is not None})
        except ValidationError as err:
            first = err.errors()[0]
            key = ":".join(str(part) for part in first["loc"])
            expected = first["msg"].removeprefix("Value error, ")
            if first["type"] not in ("missing", "value_error"):
                expected += f", not {first['input']!r}"
            raise InvalidInput(f"{what}: {key + ': ' if key else ''}{expected}") from err


class Network(Checked):
    """How a machine is connected; there is no DHCP."""

    bridge: str
    prefix: Count
    gateway: IPvAnyAddress | None = None
    nameservers: tuple[IPvAnyAddress, ...] = ()
    domain: str | None = None


class MachineSpec(Checked):
    """
    One machine as it is asked for.

    ``host`` fixes the host; without it the machine is placed. ``disk`` is the size of its disk; without it, the
    image's. With ``kernel`` the host boots it directly: ``kernel`` and ``initrd`` are files of the image pool.
    ``virtualisation`` is the domain type of libvirt: ``kvm``, or ``qemu`` for software emulation. It is not
    guessed, because a /dev/kvm may exist and not work.
    """

    name: Name
    image: FileName
    cpus: Count
    memory: Count
    address: IPvAnyAddress
    network: Network
    disk: Count | None = None
    host: str | None = None
    kernel: FileName | None = None
    initrd: FileName | None = None
    cmdline: str | None = None
    machine: str = "pc"
    cpu: str | None = None
    virtualisation: Literal["kvm", "qemu"] = "kvm"

    @model_validator(mode="after")
    def _fits_together(self):
        if self.kernel is None and (self.initrd or self.cmdline):
            raise ValueError("initrd and cmdline need a kernel")
        bits = self.address.max_prefixlen
        if self.network.prefix > bits:
            raise ValueError(f"network:prefix of an IPv{self.address.version} address is at most {bits}")
        if self.network.gateway and self.network.gateway not in self.subnet:
            raise ValueError(
                f"network:gateway {self.network.gateway} is not in {self.subnet}, the network of {self.address}"
            )
        return self

    @property
    def subnet(self):
        """The network the address is in, for example ``10.77.0.0/24``."""
        return ipaddress.ip_network((self.address, self.network.prefix), strict=False)

    @property
    def mac(self):
        """
        The hardware address: QEMU's prefix and the last 24 bits of the IP address.

        So it is unique where the IP address is (up to a /8), and the same each time the machine is made.
        """
        low = (int(self.address) & 0xFFFFFF).to_bytes(3, "big")
        return ":".join(f"{byte:02x}" for byte in b"\x52\x54\x00" + low)


class HostConfig(Checked):
    """How one host is reached: a libvirt connection URI (libvirt.org/uri.html)."""

    uri: str


class ProviderConfig(Checked):
    """
    A salt-cloud provider of the driver ``libvirt``.

    ``cluster`` marks every machine that is made; others are never touched. ``image_pool`` and ``disk_pool`` are storage
    pools (directories) that each host has: one holds the images, one the machines' own volumes. ``reserved_memory`` is
    what each host keeps for itself, in MiB.

    ``state_dir`` is the directory on the hosts to which the memory of suspended machines is written; a storage pool
    must be there. ``state_format`` is the format of such a file, ``bypass_cache`` keeps it out of the host's page cache
    (the directory's file system must know O_DIRECT). With ``shared_storage`` all three directories are the same ones on
    every host: a machine can then come back on another.
    """

    cluster: Name
    hosts: dict[Name, HostConfig] = Field(min_length=1)
    image_pool: str
    disk_pool: str
    reserved_memory: int = Field(default=1024, ge=0)
    state_dir: Annotated[str, Field(pattern=r"^/[A-Za-z0-9_./+-]+$")] | None = None
    state_format: Literal["raw", "zstd", "gzip"] = "zstd"
    bypass_cache: bool = True
    shared_storage: bool = False


class PowerState(StrEnum):
    """What a machine does, in salt-cloud's words."""

    BUILDING = "building"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    CRASHED = "crashed"
    SUSPENDED = "suspended"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Host:
    """A hypervisor: its memory, what of it a new machine may have, its CPUs."""

    name: str
    memory_total: int  # MiB
    memory_free: int  # MiB: total, less what is reserved, less the memory of all machines defined; may be negative
    cpus: int


@dataclass(frozen=True)
class Machine:
    """A machine of this cluster, as its host knows it."""

    name: str
    host: str
    state: PowerState
    cluster: str
    memory: int  # MiB
    cpus: int
    address: str
    image: str
    image_written: float  # seconds since the epoch, as of the making; 0 where its disk does not build on the image
    uuid: str


class Phase(StrEnum):
    """How far the memory in a state file has come, and so what must be done to the machine's disk to fit it."""

    WRITTEN = "written"  # nothing: the machine has not run since
    RESTORED = "restored"  # put it back to its snapshot: the machine may have run since
    OVER = "over"  # it can't be done any more: the machine is at work again
    CHECKPOINT = "checkpoint"  # put it back to its snapshot; the machine is at work again, and this is kept beside it


@dataclass(frozen=True)
class Seen:
    """A machine of this cluster in an inventory."""

    name: str
    host: str
    state: PowerState


@dataclass(frozen=True)
class Inventory:
    """What a provider has of this cluster, and what it could not be asked."""

    machines: tuple[Seen, ...]
    saved: dict[str, int] = field(default_factory=dict)  # bytes of the state files on disk, by the machine's name
    silent: dict[str, str] = field(default_factory=dict)  # hosts that did not answer, and why
    strays: frozenset[str] = frozenset()  # names of which there are volumes with our mark, and no machine or memory
    others: frozenset[str] = frozenset()  # names of machines that are not ours, where two can't have the same

    @property
    def taken(self):
        """By name, what keeps a machine of this name from being made."""
        return (
            dict.fromkeys(self.strays, "volumes of a machine")
            | dict.fromkeys(self.saved, "a state file")
            | dict.fromkeys(self.others, "a machine that is not this cluster's")
            | {machine.name: f"a machine on {machine.host}" for machine in self.machines}
        )


@dataclass(frozen=True)
class Suspension:
    """What a machine was doing when it was suspended, and who wanted it; kept with the machine and with its memory."""

    at: float  # seconds since the epoch
    by: str
    why: str
    jobs: tuple[str, ...] = ()  # Slurm's handles of the jobs that were stopped for it
    drained: str = ""  # why Slurm had the node drained before
    ran: bool = False  # the machine has run since; said of a machine, never in a state file
    kept: bool = False  # its state file becomes a checkpoint when the machine is at work again
    phase: Phase = Phase.WRITTEN  # said in a state file; means nothing of a machine


@dataclass(frozen=True)
class StateFile:
    """The memory of a suspended machine, on disk."""

    name: str  # of the machine
    number: int  # of the file: later ones have higher numbers
    path: str  # on its host
    host: str  # one that sees it
    size: int  # bytes on disk
    written: float  # seconds since the epoch, by the host's clock
    machine: Machine | None  # as it was; None while the file is incomplete, or if it is damaged
    suspension: Suspension | None
    trouble: str = ""  # why the machine can't be restored from it

    @property
    def is_checkpoint(self):
        """Whether it is kept beside a machine that is at work."""
        return self.suspension is not None and self.suspension.phase is Phase.CHECKPOINT


@dataclass(frozen=True)
class Look:
    """What there is of a machine now."""

    machine: Machine | None  # None: no domain
    busy: bool  # libvirt is at work on it, for example saves its memory
    suspension: Suspension | None  # what it was marked with and not yet unmarked; None also without a domain
    state: StateFile | None  # the latest state file that is no checkpoint


@dataclass(frozen=True)
class Image:
    """A master image, and the hosts that have it."""

    name: str
    format: str
    capacity: float  # GiB, as the guest sees it
    hosts: tuple[str, ...]
