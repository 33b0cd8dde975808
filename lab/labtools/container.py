"""Machines as systemd-nspawn containers over an overlay of the shared base."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from labtools.settings import CHECKOUT, LOG, PREFIX, STATE, Machine
from labtools.steps import StepFailed, run, wait_until

ENVIRONMENT = {
    "PATH": "/opt/saltmarsh/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}

NETWORK = """\
[Match]
Name={name}
[Network]
{settings}
LinkLocalAddressing=no
ConfigureWithoutCarrier=yes
"""
BRIDGE_DEVICE = "[NetDev]\nName=br0\nKind=bridge\n"

UNUSED_UNITS = (
    "run-rpc_pipefs.mount rpcbind.service rpcbind.socket ssh.service ssh.socket systemd-resolved.service "
    "systemd-timesyncd.service chrony.service dnsmasq.service munge.service slurmctld.service slurmd.service "
    "nfs-ganesha.service nfs-ganesha-lock.service libvirtd.service libvirtd.socket libvirtd-ro.socket "
    "libvirtd-admin.socket virtlogd.service virtlogd.socket libvirt-guests.service "
    "systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer "
    "e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-tmpfiles-clean.timer getty.target "
    "console-getty.service virtlockd.socket virtlockd.service"
).split()
NEVER_IN_A_CONTAINER = {
    "run-rpc_pipefs.mount", "systemd-networkd-wait-online.service"
}  # fmt: skip


def prepare(machine: Machine, base: Path):
    """Mount the machine's root file system and write what it needs to boot: name and network. No services."""
    supervisor = _supervisor(machine)
    if supervisor is not None and not _gone_within(supervisor, 20):  # it has just been powered off from inside
        raise StepFailed(f"{machine.name} neither runs nor ends (process {supervisor})")
    directory = machine.root.parent
    for part in ("upper", "work", "root"):
        (directory / part).mkdir(parents=True, exist_ok=True)
    if not os.path.ismount(machine.root):
        layers = f"lowerdir={base},upperdir={directory / 'upper'},workdir={directory / 'work'}"
        run("mount", "-t", "overlay", f"{STATE.name}-{machine.name}", "-o", layers, machine.root)
    network = machine.root / "etc/systemd/network"
    network.mkdir(parents=True, exist_ok=True)
    (machine.root / "etc/hostname").write_text(f"{machine.name}\n")
    (machine.root / "etc/machine-id").write_text("")
    (machine.root / "etc/resolv.conf").unlink(missing_ok=True)
    (network / "10-br0.netdev").write_text(BRIDGE_DEVICE)
    (network / "10-br0.network").write_text(NETWORK.format(name="br0", settings=f"Address={machine.address}/{PREFIX}"))
    (network / "10-host0.network").write_text(NETWORK.format(name="host0", settings="Bridge=br0"))
    _only_network(machine.root / "etc/systemd/system")


def _only_network(units: Path):
    """A machine comes up bare: its highstate enables and starts what its role needs."""
    for link in units.glob("*/*"):
        if link.name in UNUSED_UNITS:
            link.unlink()
    for unit in NEVER_IN_A_CONTAINER:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    networkd = units / "multi-user.target.wants/systemd-networkd.service"
    networkd.unlink(missing_ok=True)
    networkd.symlink_to("/usr/lib/systemd/system/systemd-networkd.service")


def boot(machine: Machine, binds=()):
    """Start the container and wait until its systemd has finished starting."""
    LOG.mkdir(parents=True, exist_ok=True)
    argv = [
        "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--machine", machine.name,
        "--directory", machine.root, f"--network-namespace-path=/run/netns/{machine.namespace}",
        "--private-users=no", "--capability=all", "--resolv-conf=off", "--timezone=off", "--link-journal=no",
        "--bind=/dev/fuse", "--bind=/dev/net/tun",
        # ganesha opens files by handle
        "--system-call-filter=open_by_handle_at name_to_handle_at @privileged",
        f"--bind-ro={CHECKOUT}:/srv/saltmarsh", *binds, "--console=read-only", "--boot",
    ]  # fmt: skip
    settings = {
        "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
        "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
        "SYSTEMD_NSPAWN_LOCK": "0",
    }
    with (LOG / f"{machine.name}.console").open("ab") as console:
        process = subprocess.Popen(
            list(map(str, argv)), stdin=subprocess.DEVNULL, stdout=console, stderr=console,
            env={**os.environ, **settings}, start_new_session=True,
        )  # fmt: skip
    _pidfile(machine).write_text(f"{process.pid}\n")

    def started():
        if process.poll() is not None:
            raise StepFailed(f"{machine.name} did not boot (log: {LOG}/{machine.name}.console)")
        if leader(machine) is None:
            return False
        state = execute(machine, ["systemctl", "is-system-running"], capture_output=True, text=True).stdout.strip()
        return state in ("running", "degraded")

    wait_until(started, 60, f"{machine.name} boots")


def leader(machine: Machine):
    """The pid, out here, of the container's PID 1; None while there is none."""
    supervisor = _supervisor(machine)
    if supervisor is None:
        return None
    try:
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    for child in children:
        # A wrong pid would run commands on the machine itself.
        if os.readlink(f"/proc/{child}/ns/pid") != os.readlink("/proc/self/ns/pid"):
            return int(child)
    return None


def entry(machine: Machine, argv):
    """The argument list that runs a command inside all namespaces of a running container."""
    pid = leader(machine)
    if pid is None:
        raise StepFailed(f"{machine.name} is not running (start it with: lab/lab up)")
    namespaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
    return ["nsenter", "--target", str(pid), *namespaces, "--wdns=/root", "--", *map(str, argv)]


def execute(machine: Machine, argv, **kwargs):
    """Run a command inside, with its exit status; arguments as for subprocess.run."""
    return subprocess.run(entry(machine, argv), env=ENVIRONMENT, **kwargs)


def stop(machine: Machine):
    """Power the container off, unmount it, and wait until nothing of it runs."""
    supervisor = _supervisor(machine)
    if supervisor is not None:
        if leader(machine) is not None:
            execute(machine, ["systemctl", "poweroff", "--force", "--force"], capture_output=True)
        if not _gone_within(supervisor, 20):
            os.kill(supervisor, signal.SIGKILL)
            _gone_within(supervisor, 20)
    while os.path.ismount(machine.root):
        run("umount", machine.root)
    if machine.root.parent.exists():
        shutil.rmtree(machine.root.parent)


def _gone_within(pid, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def _pidfile(machine):
    return machine.root.parent / "nspawn.pid"


def _supervisor(machine):
    """The pid of this machine's systemd-nspawn, None if it does not run (a reused pid is not it)."""
    try:
        pid = int(_pidfile(machine).read_text())
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return pid if str(machine.root).encode() in argv else None
