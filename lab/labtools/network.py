"""One bridge in its own network namespace, one namespace per machine, veth pairs between them."""

import contextlib
import ctypes
import json
import os

from labtools.settings import MACHINES, TAG
from labtools.steps import output, run

BRIDGE = "br0"

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET


def namespaces():
    """Names of the lab's network namespaces that exist."""
    known = json.loads(output("ip", "-json", "netns", "list") or "[]")
    return {entry["name"] for entry in known if entry["name"] == TAG or entry["name"].startswith(f"{TAG}-")}


def up():
    """Create what is missing of bridge, namespaces and links."""
    bridge()
    present = namespaces()
    for machine in MACHINES.values():
        if machine.namespace not in present:
            attach(machine.namespace, machine.name)


def bridge():
    """Create the bridge in its namespace, unless it is there."""
    if TAG not in namespaces():
        run("ip", "netns", "add", TAG)
        run("ip", "-n", TAG, "link", "set", "lo", "up")
        run("ip", "-n", TAG, "link", "add", BRIDGE, "type", "bridge")
        run("ip", "-n", TAG, "link", "set", BRIDGE, "up")


def attach(namespace, name):
    """Create a namespace that has a link ``host0`` to the bridge."""
    run("ip", "netns", "add", namespace)
    run("ip", "-n", namespace, "link", "set", "lo", "up")
    # The pair is made inside the namespaces: no name ever shows up on the machine itself.
    run("ip", "-n", TAG, "link", "add", f"to-{name}", "type", "veth",
        "peer", "name", "host0", "netns", namespace)  # fmt: skip
    run("ip", "-n", TAG, "link", "set", f"to-{name}", "master", BRIDGE, "up")


@contextlib.contextmanager
def entered(path):
    """Be in a network namespace as long as the block runs: this thread, and whatever it starts."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(namespace):
        if libc.setns(namespace.fileno(), _NEW_NETWORK) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), namespace.name)

    with open("/proc/self/ns/net") as before, open(path) as inside:
        enter(inside)
        try:
            yield
        finally:
            enter(before)


def down():
    """Delete the lab's namespaces, and with them every link inside."""
    for name in sorted(namespaces(), reverse=True):
        run("ip", "netns", "delete", name)
