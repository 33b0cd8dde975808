"""One bridge in its own network namespace, one namespace per machine, veth pairs between them."""

import json

from labtools.settings import MACHINES, TAG
from labtools.steps import output, run

BRIDGE = "br0"


def namespaces():
    """Names of the lab's network namespaces that exist."""
    known = json.loads(output("ip", "-json", "netns", "list") or "[]")
    return {entry["name"] for entry in known if entry["name"] == TAG or entry["name"].startswith(f"{TAG}-")}


def up():
    """Create what is missing of bridge, namespaces and links."""
    present = namespaces()
    if TAG not in present:
        run("ip", "netns", "add", TAG)
        run("ip", "-n", TAG, "link", "set", "lo", "up")
        run("ip", "-n", TAG, "link", "add", BRIDGE, "type", "bridge")
        run("ip", "-n", TAG, "link", "set", BRIDGE, "up")
    for machine in MACHINES.values():
        if machine.namespace in present:
            continue
        run("ip", "netns", "add", machine.namespace)
        run("ip", "-n", machine.namespace, "link", "set", "lo", "up")
        # The pair is made inside the namespaces: no name ever shows up on the machine itself.
        run("ip", "-n", TAG, "link", "add", f"to-{machine.name}", "type", "veth",
            "peer", "name", "host0", "netns", machine.namespace)  # fmt: skip
        run("ip", "-n", TAG, "link", "set", f"to-{machine.name}", "master", BRIDGE, "up")


def down():
    """Delete the lab's namespaces, and with them every link inside."""
    for name in sorted(namespaces(), reverse=True):
        run("ip", "netns", "delete", name)
