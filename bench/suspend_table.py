"""
Ways of making a machine step aside: what each keeps, frees and costs. The table of docs/explain/suspend-pause-stop.md.

Machines are made by plain salt-cloud, and everything is done to them by virsh alone: this measures libvirt and QEMU, not
Saltmarsh. A way keeps a machine's processes if a process that was begun before is still there afterwards.
"""

import contextlib
import json
import subprocess
import time
from dataclasses import dataclass

from labtools import cluster, container
from labtools.settings import CTL, MACHINES, STATE
from suspend import agent, clock, resident
from vm import read

SIZES = (256, 512)  # MiB
NAME = "vn016"
HOST = MACHINES["hv1"]
FILE = "/srv/states/bench.memory"
BOOT_SECONDS = 300
COLUMNS = ("memory", "filled with", "way", "processes kept", "RAM freed", "CPU freed", "on disk", "out", "in", "out s/GB")


@dataclass(frozen=True)
class Way:
    """How a machine steps aside and comes back: virsh commands, and the file that it leaves."""

    name: str
    out: tuple[tuple[str, ...], ...]
    back: tuple[tuple[str, ...], ...]
    file: str | None = None


def _save(name, *options):
    return Way(name, (("save", NAME, FILE, *options),), (("restore", FILE, *options[:1]),), FILE)


_DISK = f"/srv/nodes/{NAME}.aside"
WAYS = (
    Way("pause", (("suspend", NAME),), (("resume", NAME),)),
    Way("suspend, raw", (("save", NAME, FILE, "--image-format", "raw"),), (("restore", FILE),), FILE),
    Way("suspend, zstd", (("save", NAME, FILE, "--image-format", "zstd"),), (("restore", FILE),), FILE),
    _save("suspend, raw, bypass-cache", "--bypass-cache", "--image-format", "raw"),
    _save("suspend, zstd, bypass-cache", "--bypass-cache", "--image-format", "zstd"),
    Way(
        "checkpoint (snapshot with memory)",
        (("snapshot-create-as", NAME, "aside"),),
        (("snapshot-revert", NAME, "aside"), ("snapshot-delete", NAME, "aside")),
    ),
    Way(
        "snapshot (disk only)",
        (("snapshot-create-as", NAME, "aside", "--disk-only", "--diskspec", f"vda,file={_DISK}"),),
        (("destroy", NAME), ("start", NAME)),
        _DISK,
    ),
    Way("stop", (("shutdown", NAME),), (("start", NAME),)),
)


@dataclass(frozen=True)
class Measured:
    """One row: sizes in MiB, times in seconds, CPU in percent of one."""

    memory: int
    filled: str
    way: str
    kept: bool
    ram: float
    cpu: float
    disk: float
    out: float
    back: float


def measure(say):
    """
    Measure every way with machines of each size, idle and full of random data.

    :param say: called with lines of progress
    :rtype: list[Measured]
    """
    cluster.up()
    rows = []
    for memory in SIZES:
        for filled in ("nothing", "random data"):
            with machine(memory):
                if filled != "nothing":
                    fill(memory)
                for way in WAYS:
                    say(f"{memory} MiB, filled with {filled}: {way.name}")
                    rows.append(go(way, memory, filled))
                    if not rows[-1].kept:
                        fill(memory) if filled != "nothing" else None
    return rows


@contextlib.contextmanager
def machine(memory):
    """A machine of this size that runs nothing but a burner of CPU."""
    entry = {NAME: {"address": "10.77.0.116", "memory": memory, "deploy": False, "host": HOST.name}}
    made = STATE / "export/shared/bench.map"
    made.write_text(json.dumps({"virtual": [entry]}))
    read(CTL, "salt-cloud", "--assume-yes", "-m", "/srv/export/shared/bench.map")
    try:
        wait_agent()
        yield
    finally:
        container.execute(HOST, ["virsh", "snapshot-delete", NAME, "aside", "--metadata"], capture_output=True)
        read(CTL, "salt-cloud", "--assume-yes", "-d", NAME)
        made.unlink()


def go(way, memory, filled):
    """Let the machine step aside and come back."""
    process = begin("/bin/sleep", "1000000")
    before = resident(guest())
    seconds = {}
    with clock(seconds, "out"):
        for command in way.out:
            virsh(*command)
        if way.name == "stop":
            wait_off()
    freed, busy = before - resident(guest()), cpu_percent()
    disk = size(way.file)
    with clock(seconds, "in"):
        for command in way.back:
            virsh(*command)
        wait_agent()
    if way.file:
        forget(way)
    return Measured(memory, filled, way.name, is_there(process), freed, busy, disk, seconds["out"], seconds["in"])
