"""The lab as a whole: up, down, status, and how to get into its machines and nodes."""

import os
import shlex
import shutil
import subprocess

from labtools import container, images, network, salt
from labtools.settings import CTL, HOSTS, LOG, MACHINES, NODE_ADDRESSES, STATE
from labtools.steps import StepFailed, run, say, step

SHARED = {"home": "/home", "shared": "/shared", "software": "/software"}


def up():
    """Build what is missing, boot what is down, and bring every machine to its highstate."""
    if os.geteuid() != 0:
        raise StepFailed("the lab needs root (network namespaces, mounts, containers)")
    images.install_tools()
    base = images.machine_root()
    image = images.node_image()
    LOG.mkdir(parents=True, exist_ok=True)
    _shared_directories(image)
    with step("network"):
        network.up()
    for machine in MACHINES.values():
        if container.leader(machine) is None:
            with step(f"boot {machine.name}"):
                container.prepare(machine, base)
                container.boot(machine, _binds(machine))
    with step("start salt-master on ctl"):
        salt.bootstrap_master()
    with step("give the machines their Salt keys"):
        salt.accept_minions()
        for machine in MACHINES.values():
            salt.start_minion(machine)
    with step("highstate of ctl"):
        salt.highstate(CTL)
        salt.refresh_pillar(CTL)
    with step("highstate of hv1, hv2"):
        salt.highstate(*HOSTS)


def down():
    """Stop everything and leave nothing: no process, mount, namespace, nor a file outside .lab/."""
    for machine in (*HOSTS, CTL):
        if machine.root.parent.exists():
            with step(f"stop {machine.name}"):
                container.stop(machine)
    if network.namespaces():
        with step("network"):
            network.down()
    for directory in ("nodes", "states", "images", "export", "machines"):
        shutil.rmtree(STATE / directory, ignore_errors=True)


def status():
    """Print one line per machine; True if all run."""
    running = True
    for machine in MACHINES.values():
        pid = container.leader(machine)
        running &= pid is not None
        systemd = ""
        if pid is not None:
            systemd = container.execute(
                machine, ["systemctl", "is-system-running"], capture_output=True, text=True
            ).stdout.strip()
        say(f"{machine.name:5} {machine.address:12} {machine.role:10} {systemd or 'down'}")
    return running


def execute(name, argv):
    """Run a command in a machine, or by ssh in a node; returns its exit status."""
    return subprocess.run(entry(name, argv), env=container.ENVIRONMENT).returncode


def entry(name, argv):
    """The argument list that runs a command in a machine, or by ssh in a node; in ``container.ENVIRONMENT``."""
    if name in MACHINES:
        return container.entry(MACHINES[name], argv)
    if name in NODE_ADDRESSES:
        return container.entry(CTL, [*ssh(name), shlex.join(map(str, argv))])
    known = ", ".join((*MACHINES, "vn001 to vn016"))
    raise StepFailed(f"no machine or node is called {name!r} (there are: {known})")


def ssh(node):
    """The argument list that reaches a node by ssh from ctl."""
    # A node makes a new host key each time it is grown.
    trust = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")
    return ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", *trust, f"root@{NODE_ADDRESSES[node]}", "--"]


def logs(name):
    """Show what the lab, the machine's console and its journal, or the node's serial console have said."""
    if name in MACHINES:
        machine = MACHINES[name]
        for path in sorted(LOG.glob(f"{name}[.-]*")):
            say(f"==> {path}")
            say(path.read_text(errors="replace"))
        if container.leader(machine) is None:
            return 0
        say(f"==> journal of {name}")
        return container.execute(machine, ["journalctl", "--no-pager", "--boot"]).returncode
    console = STATE / "nodes" / f"{name}.lab.console"
    if name in NODE_ADDRESSES and console.exists():
        say(console.read_text(errors="replace"))
        return 0
    raise StepFailed(f"there is no log of {name!r}")


def _shared_directories(image):
    for directory in SHARED:
        (STATE / "export" / directory).mkdir(parents=True, exist_ok=True)
    (STATE / "export/shared").chmod(0o1777)
    for directory in ("nodes", "states", "images"):
        (STATE / directory).mkdir(exist_ok=True)
    for source in image.iterdir():
        target = STATE / "images" / source.name
        if target.exists() and not os.path.samefile(source, target):
            target.unlink()
        if not target.exists():
            run("cp", "--link", source, target)


def _binds(machine):
    if machine is CTL:
        return [f"--bind={STATE / 'export'}:/srv/export"]
    # The hosts are containers on a kernel without an NFS client: they see the exported directories themselves.
    shared = [f"--bind={STATE / 'export' / name}:{target}" for name, target in SHARED.items()]
    own = [f"--bind={STATE / name}:/srv/{name}" for name in ("nodes", "states")]
    return [*shared, f"--bind-ro={STATE / 'images'}:/srv/images", *own]
