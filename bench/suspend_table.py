#!/usr/bin/env -S .venv/bin/python -B
"""
Ways of making a machine step aside, what each keeps, frees and costs: the tables of docs/explain/suspend-pause-stop.md.

Run by make bench-suspend. Machines are made by plain salt-cloud, and all is done to them by virsh alone: this measures
libvirt and QEMU, not Saltmarsh.
"""

import contextlib
import json
import os
import statistics
import sys
import time
from dataclasses import astuple, dataclass
from pathlib import Path

from guests import Guest, clock
from vm import read

from labtools import cluster, container
from labtools.settings import CTL, MACHINES, NODE_ADDRESSES, STATE

SIZES = (256, 512)  # MiB
ROUNDS = 3
GUEST = Guest("vn016", MACHINES["hv1"])
SPARE = 48  # MiB that a full machine has left
MEMORY = "/srv/states/bench.memory"
DEFINITION = "/srv/states/bench.xml"
OVERLAY = f"/srv/nodes/{GUEST.name}.aside"
FILES = [STATE / path.removeprefix("/srv/") for path in (MEMORY, OVERLAY)]
HEAD = "| way | process kept | RAM freed, MiB | CPU used after, % | on disk, MiB | out, s | in, s | out + in, s/GB |"
FILL = f"""
free=$(awk '/^MemAvailable/ {{ print int($2 / 1024) - {SPARE} }}' /proc/meminfo)
mkdir -p /run/full && mount -t tmpfs -o size=100% none /run/full && head -c "${{free}}M" /dev/urandom > /run/full/random
"""
POWER_OFF = json.dumps(
    {"execute": "guest-exec", "arguments": {"path": "/usr/bin/systemctl", "arg": ["start", "poweroff.target"]}}
)
USED = 'awk \'{ kib[$1] = $2 } END { print (kib["MemTotal:"] - kib["MemFree:"]) / 1024 }\' /proc/meminfo'


@dataclass(frozen=True)
class Way:
    """How a machine steps aside and comes back, in virsh commands."""

    name: str
    out: tuple[tuple[str, ...], ...]
    back: tuple[tuple[str, ...], ...]
    writes_memory: bool = False


def _suspend(format_, *cache):
    words = ", ".join(["suspend to disk", format_, *(option.strip("-") for option in cache)])
    save = ("save", GUEST.name, MEMORY, "--image-format", format_, *cache)
    return Way(words, (save,), (("restore", MEMORY, *cache),), True)


WAYS = (
    Way("pause", (("suspend", GUEST.name),), (("resume", GUEST.name),)),
    _suspend("raw"),
    _suspend("raw", "--bypass-cache"),
    _suspend("zstd"),
    _suspend("zstd", "--bypass-cache"),
    Way(
        "checkpoint (snapshot with memory)",
        (("snapshot-create-as", GUEST.name, "aside"),),
        (("destroy", GUEST.name), ("snapshot-revert", GUEST.name, "aside"), ("snapshot-delete", GUEST.name, "aside")),
        True,
    ),
    Way(
        "snapshot (disk only)",
        (("snapshot-create-as", GUEST.name, "aside", "--disk-only", "--diskspec", f"vda,file={OVERLAY}"),),
        # Back to the disk as it was: the definition of before names it.
        (
            ("destroy", GUEST.name),
            ("snapshot-delete", GUEST.name, "aside", "--metadata"),
            ("define", DEFINITION),
            ("start", GUEST.name),
        ),
    ),
    # The image has no logind, without which virsh shutdown does nothing.
    Way("stop", (("qemu-agent-command", GUEST.name, POWER_OFF),), (("start", GUEST.name),)),
)


@dataclass(frozen=True)
class Measured:
    """One time aside and back: MiB, percent of one CPU, seconds."""

    kept: float
    ram: float
    cpu: float
    disk: float
    out: float
    back: float
    per_gigabyte: float


def main():
    """Measure, and print Markdown as it comes."""
    cluster.up()
    print(f"\n{setting()}", flush=True)
    for memory in SIZES:
        for full in (False, True):
            with machine(memory):
                prepare(full)
                print(f"\n### {memory} MiB, {'full of random data' if full else 'idle'}\n\n{use()}\n")
                print(f"{HEAD}\n{'| --- ' * (HEAD.count('|') - 1)}|", flush=True)
                print_ways(full)


def print_ways(full):
    """The rows of one machine: medians of several rounds."""
    rounds = [[go(way, full) for way in WAYS] for _ in range(ROUNDS)]
    for way, *measured in zip(WAYS, *rounds, strict=True):
        kept, ram, cpu, _, *seconds = map(statistics.median, zip(*map(astuple, measured), strict=True))
        # A disk image keeps the room of a checkpoint that was deleted, for the next one.
        disk = max(each.disk for each in measured)
        sizes, times = map(round, (ram, cpu, disk)), [f"{value:.1f}" for value in seconds]
        cells = ["yes" if kept else "**no**", *sizes, *times[:2], times[2] if way.writes_memory else ""]
        print(f"| {way.name} | {' | '.join(map(str, cells))} |", flush=True)


def go(way, full):
    """Have the machine step aside and come back; it is as before then."""
    process = GUEST.begin("/bin/sleep", "infinity")
    _, boot = GUEST.run("cat /proc/sys/kernel/random/boot_id")
    used, ram, disk, seconds = memory_used(), GUEST.resident(), GUEST.disk(), {}
    with clock(seconds, "out"):
        for command in way.out:
            GUEST.virsh(*command)
        if way.name == "stop":
            GUEST.wait_off()
    freed, busy, written = ram - GUEST.resident(), GUEST.cpu_percent(), GUEST.disk() - disk
    # An urgent job has run meanwhile.
    GUEST.drop_caches()
    with clock(seconds, "in"):
        for command in way.back:
            GUEST.virsh(*command)
        GUEST.wait_agent()
    kept, _ = GUEST.run(f"kill -0 {process} && [ $(cat /proc/sys/kernel/random/boot_id) = {boot.strip()} ]")
    for path in FILES:
        path.unlink(missing_ok=True)
    if kept != 0:
        prepare(full)
    per_gigabyte = (seconds["out"] + seconds["in"]) / used * 1024
    return Measured(kept == 0, freed, busy, written, seconds["out"], seconds["in"], per_gigabyte)


def use():
    """What the machine costs its host as long as it is not aside."""
    return (
        f"The guest uses {memory_used():.0f} MiB of its memory, "
        f"QEMU {GUEST.resident():.0f} MiB and {GUEST.cpu_percent():.0f} % of a CPU of its host."
    )


def memory_used():
    """MiB of memory in use, as the guest sees it: caches are."""
    return float(GUEST.run(USED)[1])


def setting():
    """Where this is measured, in one line."""
    versions = read(GUEST.host, "virsh", "version").splitlines()
    libvirt, qemu = (line.split(": ")[1] for line in versions[1:4:2])
    model = next(line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1024**3
    storage = read(GUEST.host, "df", "--output=fstype,source", "/srv/states").split()[-2:]
    machine = f"{os.cpu_count()} CPUs ({model}), {memory:.0f} GiB; {' on '.join(storage)}, {write_rate():.0f} MiB/s"
    return (
        f"{time.strftime('%Y-%m-%d')}: {libvirt}, {qemu}, one CPU, domain type qemu (**software emulation**); "
        f"{machine}; medians of {ROUNDS} rounds"
    )


def write_rate():
    """MiB a second that the storage takes, past the page cache."""
    seconds, options = {}, ("bs=1M", "count=256", "oflag=direct", "status=none")
    with clock(seconds, "write"):
        read(GUEST.host, "dd", "if=/dev/zero", "of=/srv/states/bench.write", *options)
    (STATE / "states/bench.write").unlink()
    return 256 / seconds["write"]


@contextlib.contextmanager
def machine(memory):
    """A machine of this size, made by salt-cloud, with nothing to do."""
    entry = {"address": NODE_ADDRESSES[GUEST.name], "memory": memory, "deploy": False, "host": GUEST.host.name}
    made, defined = STATE / "export/shared/bench.map", STATE / DEFINITION.removeprefix("/srv/")
    made.write_text(json.dumps({"virtual": [{GUEST.name: entry}]}))
    try:
        read(CTL, "salt-cloud", "--log-level=quiet", "--assume-yes", "--map", f"/srv/export/shared/{made.name}")
        definition = GUEST.virsh("dumpxml", "--inactive", "--security-info", GUEST.name)
        defined.write_text(definition)
        yield
    finally:
        for command in (["destroy", GUEST.name], ["snapshot-delete", GUEST.name, "aside", "--metadata"]):
            container.execute(GUEST.host, ["virsh", *command], capture_output=True)
        read(CTL, "salt-cloud", "--log-level=quiet", "--assume-yes", "--destroy", GUEST.name)
        for path in (made, defined, *FILES):
            path.unlink(missing_ok=True)


def prepare(full):
    """Wait for a machine that boots, fill its memory if it shall be full, and give it something to do."""
    GUEST.wait_agent()
    if full and GUEST.run(FILL)[0] != 0:
        raise RuntimeError(f"the memory of {GUEST.name} can't be filled")
    GUEST.begin("/bin/sh", "-c", "while :; do :; done")


if __name__ == "__main__":
    sys.exit(main())
