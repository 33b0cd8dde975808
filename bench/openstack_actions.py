#!/usr/bin/env python3
"""
What ways of making an OpenStack server step aside keep, free and cost: see docs/explain/suspend-pause-stop.md.

Run by ``make bench-openstack`` with one real guest in lab/openstack. All is done through the cloud's own API: this
measures Nova, not Saltmarsh.
"""

import base64
import contextlib
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(CHECKOUT / "lab"), str(CHECKOUT / "salt/_utils")]

import openstack  # noqa: E402

from labtools import guests, network  # noqa: E402
from labtools import openstack as lab  # noqa: E402
from saltmarsh.identity import user_data  # noqa: E402

PATIENCE = 600  # seconds
HEAD = "| action | process kept | RAM freed, MiB | Placement | quota | out, s | in, s |"
# Tells on the serial console that it is still the same process.
COUNTER = """\
#!/bin/sh
read -r boot < /proc/sys/kernel/random/boot_id
while :; do
    echo "counted $boot $$ $((count += 1))" > /dev/ttyS0
    sleep 0.3
done
"""
UNIT = "[Service]\nExecStart=/usr/local/bin/counter\n[Install]\nWantedBy=multi-user.target\n"
CLOUD_CONFIG = {
    "write_files": [
        {"path": "/usr/local/bin/counter", "content": COUNTER, "permissions": "0755"},
        {"path": "/etc/systemd/system/counter.service", "content": UNIT},
    ],
    "runcmd": [
        # The golden image does without, and nobody would hear that Nova asks it to shut down.
        ["systemctl", "unmask", "systemd-logind.service"],
        ["systemctl", "start", "systemd-logind.service"],
        ["systemctl", "enable", "--now", "counter.service"],
    ],
}


@dataclass(frozen=True)
class Way:
    """How a server steps aside and comes back: each step a method of :class:`Server`, and the status then."""

    name: str
    out: tuple[tuple[str, str], ...]
    back: tuple[str, str]


WAYS = (
    Way("pause", (("pause_server", "PAUSED"),), ("unpause_server", "ACTIVE")),
    Way("suspend", (("suspend_server", "SUSPENDED"),), ("resume_server", "ACTIVE")),
    Way("stop", (("stop_server", "SHUTOFF"),), ("start_server", "ACTIVE")),
    Way(
        "shelve and offload",
        (("shelve_server", "SHELVED"), ("offload", "SHELVED_OFFLOADED")),
        ("unshelve_server", "ACTIVE"),
    ),
    Way("snapshot", (("snapshot", "ACTIVE"),), ("rebuild", "ACTIVE")),
)


def main():
    """Print the table as it comes."""
    for verb in ("up", "guests"):
        subprocess.run([CHECKOUT / "lab/openstack", verb], check=True)
    with network.entered(lab.reach()), contextlib.closing(Server()) as server:
        print(
            f"\n{server.process()} MiB has QEMU of a server of 512 MiB that counts; booted in {server.booted:.0f} s\n"
        )
        print(f"{HEAD}\n{'| --- ' * (HEAD.count('|') - 1)}|", flush=True)
        for way in WAYS:
            print(go(server, way), flush=True)


def go(server, way):
    """Have the server step aside and come back; one row."""
    before, ram = server.counted(), server.process()
    out, told = 0.0, ""
    for verb, status in way.out:
        out += clock(server.act, verb, status)
        told = server.told()
    freed = ram - server.process()
    back = clock(server.act, *way.back) + clock(server.wait_counts)
    kept = "yes" if server.counted() == before else "**no**"
    return f"| {way.name} | {kept} | {freed} | {told} | {out:.1f} | {back:.1f} |"


def clock(act, *arguments):
    """Seconds to do something."""
    begun = time.monotonic()
    act(*arguments)
    return time.monotonic() - begun


class Server:
    """One real guest, in which a process counts, as its cloud's member and its cloud's administrator see it."""

    def __init__(self):
        self._member, self._admin = (
            openstack.connect(load_envvars=False, auth=lab.auth(guests.CLOUD, *who), region_name="RegionOne")
            for who in ((), ("admin", "admin"))
        )
        compute, begun = self._member.compute, time.monotonic()
        port = self._member.network.create_port(
            network_id=self._member.network.find_network("provider").id, is_port_security_enabled=False
        )
        self._port, self._image, self._read = port, None, 0
        self._server = compute.create_server(
            name="aside",
            image_id=self._member.image.find_image("golden").id,
            flavor_id=compute.find_flavor("m1.guest").id,
            availability_zone="real",
            networks=[{"port": port.id}],
            config_drive=True,
            user_data=base64.b64encode(user_data("aside", cloud_config=CLOUD_CONFIG).encode()).decode(),
        )
        self._wait(lambda: self._status() == "ACTIVE", "the server is built")
        self.wait_counts()
        self.booted = time.monotonic() - begun

    def close(self):
        """Leave nothing of it."""
        self._member.compute.delete_server(self._server)
        self._member.compute.wait_for_delete(self._server, wait=PATIENCE)
        self._member.network.delete_port(self._port)
        if self._image:
            self._member.image.delete_image(self._image)

    def act(self, verb, status):
        """Do something to it, and wait until that is done."""
        self._read = len(guests.console(self._server.id))
        getattr(self, f"_{verb}", lambda: getattr(self._member.compute, verb)(self._server))()
        self._wait(lambda: self._status() == status, verb)

    def wait_counts(self):
        """Until the process in it has said something since the last :meth:`act`."""

        def said():
            text = guests.console(self._server.id)
            # A machine that was written to disk or is new has a new file.
            return re.search(r"counted .*\n", text[self._read if len(text) >= self._read else 0 :])

        self._wait(said, "it counts")

    def counted(self):
        """Boot and pid of the process that said something last."""
        return re.findall(r"counted (\S+ \S+) \d+\r?\n", guests.console(self._server.id))[-1]

    def process(self):
        """MiB of memory that its QEMU has; 0 if there is none."""
        found = 0
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if b"-uuid\0" + self._server.id.encode() in (directory / "cmdline").read_bytes():
                    rollup = (directory / "smaps_rollup").read_text()
                    found += int(re.search(r"^Pss: +(\d+) kB", rollup, re.MULTILINE)[1]) // 1024
        return found

    def told(self):
        """What Placement and the quota count for it, in MiB."""
        allocations = self._admin.placement.get(f"/allocations/{self._server.id}").json()["allocations"].values()
        placed = sum(each["resources"]["MEMORY_MB"] for each in allocations)
        limits = self._member.compute.get("/limits").json()["limits"]["absolute"]
        return f"{f'{placed} MiB taken' if placed else '**freed**'} | {limits['totalRAMUsed']} MiB"

    def _offload(self):
        # Only an administrator may; many clouds do it by themselves after a shelve.
        self._admin.compute.post(f"/servers/{self._server.id}/action", json={"shelveOffload": None})

    def _snapshot(self):
        self._image = self._member.compute.create_server_image(self._server, "aside", wait=True, timeout=PATIENCE)

    def _rebuild(self):
        self._member.compute.rebuild_server(self._server, image=self._image.id)

    def _status(self):
        now = self._admin.compute.get_server(self._server.id)
        if now.status == "ERROR":
            raise RuntimeError(f"the server is in ERROR: {now.fault}")
        return now.status if not now.task_state else None

    def _wait(self, condition, what):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {PATIENCE} s")
            time.sleep(0.2)


if __name__ == "__main__":
    main()
