"""
The parts of the bench with real machines, in the lab: what a grow costs beside the boot that nobody can save.

The bare boot is the golden image with everything a node needs already in place (munge key, resolver, slurmd's options),
defined and started by virsh, until Slurm has it idle: no Salt, no salt-cloud, no ledger.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT / "lab"))

from labtools import cluster, container  # noqa: E402
from labtools.settings import CTL, MACHINES, NODE_ADDRESSES, STATE, VENV  # noqa: E402

HOST = MACHINES["hv1"]
BARE_SECONDS = 300
CREDENTIALS = "opt/io.systemd.credentials/"


def measure():
    """
    Grow one node, boot the same bare, grow two.

    :returns: seconds by name
    :rtype: dict[str, float]
    """
    cluster.up()
    one, name, domain = grow_one()
    bare = boot_bare(name, domain)
    two = run_salt("elastic.grow", "2")
    run_salt("elastic.shrink", "2")
    return {
        "grow 1": one,
        "bare boot": bare,
        "grow 2": max(node["seconds"]["total"] for node in two["nodes"].values()),
    }


def grow_one():
    """Grow a node on one host and shrink it again; returns its seconds, its name, and its domain's XML."""
    grown = run_salt("elastic.grow", "1", f"host={HOST.name}")
    ((name, node),) = grown["nodes"].items()
    domain = read(HOST, "virsh", "dumpxml", "--inactive", "--security-info", name)
    run_salt("elastic.shrink", name)
    return node["seconds"]["total"], name, domain


def boot_bare(name, domain):
    """Boot the golden image under a node's name by virsh alone; returns the seconds until Slurm has it idle."""
    nodes = STATE / "nodes"
    credential = nodes / "bare.tmpfiles"
    credential.touch(mode=0o600)
    credential.write_text(tmpfiles())
    (nodes / "bare.xml").write_text(bare_domain(domain, f"/srv/nodes/{credential.name}"))
    backing = ("-F", "qcow2", "-b", "/srv/images/node.qcow2")
    read(HOST, "qemu-img", "create", "-q", "-f", "qcow2", *backing, "/srv/nodes/bare.qcow2")
    addresses = {name: NODE_ADDRESSES[name]}
    ask_slurm(f"slurm.expect({addresses})")
    started = time.monotonic()
    try:
        read(HOST, "virsh", "create", "/srv/nodes/bare.xml")
        wait_idle(name)
        return time.monotonic() - started
    finally:
        container.execute(HOST, ["virsh", "destroy", name], capture_output=True)
        ask_slurm(f"slurm.release({addresses}, timeout=120)")
        for path in nodes.glob("bare.*"):
            path.unlink()


def tmpfiles():
    """What the states would have written, as a systemd-tmpfiles credential (tmpfiles.d(5))."""
    key = read(CTL, "base64", "--wrap=0", "/etc/munge/munge.key").strip()
    return (
        f"f~ /etc/munge/munge.key 0400 munge munge - {key}\n"
        f"f+ /etc/resolv.conf 0644 root root - nameserver {CTL.address}\n"
        f'f+ /etc/default/slurmd 0644 root root - SLURMD_OPTIONS="--conf-server {CTL.address}:6817"\n'
    )


def bare_domain(xml, credential):
    """A grown node's domain with another disk, without its minion, and with slurmd started at boot."""
    domain = ElementTree.fromstring(xml)
    sysinfo = domain.find("sysinfo")
    for entry in list(sysinfo):
        if entry.get("name").startswith(f"{CREDENTIALS}salt."):
            sysinfo.remove(entry)
    ElementTree.SubElement(sysinfo, "entry", {"name": f"{CREDENTIALS}tmpfiles.extra", "file": credential})
    domain.find("os/cmdline").text += " systemd.wants=slurmd.service"
    domain.find("devices/disk[@device='disk']/source").set("file", "/srv/nodes/bare.qcow2")
    for serial in domain.findall("devices/serial/log") + domain.findall("devices/console/log"):
        serial.set("file", "/srv/nodes/bare.console")
    return ElementTree.tostring(domain, encoding="unicode")


def wait_idle(name):
    """Wait until Slurm has a node idle."""
    deadline = time.monotonic() + BARE_SECONDS
    while "State=IDLE+CLOUD " not in read(CTL, "scontrol", "show", "node", name):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name} was not idle within {BARE_SECONDS} s")
        time.sleep(0.2)


def ask_slurm(call):
    """Call the project's own seam to Slurm on the controller."""
    python = ("env", "PYTHONPATH=/srv/saltmarsh/salt/_utils", f"{VENV}/bin/python", "-c")
    read(CTL, *python, f"from saltmarsh import slurm; {call}")


def run_salt(*arguments):
    """Run a runner; returns its answer."""
    argv = ["salt-run", "--log-level=quiet", "--out=json", *arguments]
    done = container.execute(CTL, argv, stdout=subprocess.PIPE, text=True)
    answer = json.loads(done.stdout)
    if done.returncode != 0:
        raise RuntimeError(answer["error"])
    return answer


def read(machine, *argv):
    """The output of a command on a machine of the lab."""
    return container.execute(machine, argv, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
