"""
A real slurmctld and real slurmds of Debian 13, each slurmd in a network namespace of its own.

Slurm's commands, as the seam calls them in this process, run in that machine: they are on PATH as programs that enter
its namespaces. So nothing of the seam is replaced.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from saltmarsh import slurm, slurmconf, slurmpush

NODES = {"hv1": "10.77.0.11", **{f"vn{number:03d}": f"10.77.0.{100 + number}" for number in range(1, 7)}}
SLURMCTLD = ("slurmctld", "slurmctld-wlm")  # the latter once it has reconfigured itself
PLUGINS = "usr/lib/x86_64-linux-gnu/slurm-wlm"
COMMANDS = ("scontrol", "squeue", "scancel", "sbatch", "sinfo", "ip", "wg")


class Machine:
    """The controller's machine with its Slurm, and the nodes around it."""

    def __init__(self, directory):
        self.directory = directory
        self.shared = directory / "shared"
        self.config = self.shared / "slurm"
        self.root = directory / "root"
        self.commands = directory / "commands"
        for part in (self.config, self.commands, self.root, directory / "upper", directory / "work"):
            part.mkdir(parents=True)
        self._log = (directory / "log").open("wb")
        self._process = None

    def open(self, base, power_program):
        """Boot it from a root file system, which stays as it is."""
        layers = f"lowerdir={base},upperdir={self.directory / 'upper'},workdir={self.directory / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "slurm-test", "-o", layers, self.root], check=True)
        programs = self.root / "usr/local/libexec/saltmarsh"
        programs.mkdir(parents=True)
        for what in ("up", "down", "failed"):
            shutil.copy(power_program, programs / f"slurm-power-{what}")
        self.bell.mkdir(parents=True)
        # The seam looks for plugins from out here.
        shutil.copytree(self.root / PLUGINS, self.shared / "plugins")
        namespaces = ["--mount", "--net", "--uts", "--ipc"]
        script = Path(__file__).parent / "machine.sh"
        nodes = [f"{name}={address}" for name, address in NODES.items()]
        self._process = subprocess.Popen(
            ["unshare", *namespaces, script, self.root, self.shared, *nodes], stdout=self._log, stderr=self._log
        )
        wait_until(lambda: (self.shared / "ready").exists() or self._process.poll() is not None, 30)
        assert self._process.poll() is None, (self.directory / "log").read_text()
        for name in COMMANDS:
            (self.commands / name).write_text(f'#!/bin/sh\nexec {" ".join(self.enter(name))} "$@"\n')
            (self.commands / name).chmod(0o755)

    @property
    def bell(self):
        """Where slurmctld rings when it wants nodes, or gives some up."""
        return self.root / "var/lib/saltmarsh/power"

    def close(self):
        """End everything in the machine, and take it down."""
        if self._process:
            send(signal.SIGKILL, self.processes())
            self._process.wait()
        self._log.close()
        if os.path.ismount(self.root):
            subprocess.run(["umount", self.root], check=True)

    def processes(self, *names):
        """Ids of the machine's processes (of these names), nodes included: nothing in it leaves its IPC namespace."""
        assert not self._shares("ipc", "self")
        return [
            int(process.name)
            for process in Path("/proc").glob("[0-9]*")
            if self._shares("ipc", process.name) and (not names or comm(process.name) in names)
        ]

    def enter(self, *argv):
        """The command line that runs a command in the machine."""
        return ["nsenter", "-t", str(self._process.pid), "-m", "-n", "-u", "-i", "-r", "-w", "--", *map(str, argv)]

    def run(self, *argv, check=True, **kwargs):
        """Run a command in the machine, and return what it writes."""
        return subprocess.run(
            self.enter(*argv), check=check, stdout=subprocess.PIPE, text=True, cwd="/", **kwargs
        ).stdout.strip()

    def start(self, *argv):
        """Start a daemon in the machine."""
        subprocess.Popen(
            self.enter(*argv), stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, cwd="/",
            start_new_session=True,
        )  # fmt: skip

    # slurmctld

    def start_slurmctld(self, *options):
        """Start slurmctld, which goes into the background as under systemd, and wait until it answers."""
        self.start("slurmctld", *options)
        slurm.wait_ping(30)

    def signal_slurmctld(self, number):
        """Send slurmctld a signal."""
        send(number, self.processes(*SLURMCTLD))

    def stop_slurmctld(self):
        """Stop slurmctld as the service manager does."""
        self.signal_slurmctld(signal.SIGTERM)
        wait_until(lambda: not self.slurmctld_runs(), 30)

    def slurmctld_runs(self):
        """What the service manager would say."""
        return bool(self.processes(*SLURMCTLD))

    # nodes

    def start_standin(self):
        """Start the stand-in as its service does, and wait until it has registered."""
        self.start("slurmd", "-D", "-f", f"/etc/slurm/{slurmconf.STANDIN}")
        wait_until(lambda: slurm.nodes("standin")["standin"].registered, 20)

    def standin_processes(self):
        """Ids of the stand-in's processes: the only slurmd in the controller's own network."""
        slurmds = self.processes("slurmd", "slurmd-wlm")  # the latter once it has reconfigured itself
        return [pid for pid in slurmds if self._shares("net", pid)]

    def _shares(self, kind, pid):
        """Whether a process is in the same namespace as the machine's first one, which must be there."""
        return namespace(kind, pid) == os.readlink(f"/proc/{self._process.pid}/ns/{kind}")

    def stop_standin(self):
        """Stop the stand-in as the service manager does."""
        send(signal.SIGTERM, self.standin_processes())
        wait_until(lambda: not self.standin_processes(), 20)

    def boot(self, *names, options=""):
        """Start the slurmd of nodes, as the ready gate does on a VM."""
        spool = "mount -t tmpfs t /run/slurm && mount -t tmpfs t /var/lib/slurm/slurmd && hostname $0 && exec "
        for name in names:
            self.start("ip", "netns", "exec", name, "unshare", "--uts", "--mount", "sh", "-c",
                       f"{spool} slurmd -D -N $0 {options} --conf-server ctl:6817", name)  # fmt: skip

    def cut(self, *names):
        """Cut nodes off from the network: nobody answers there, as when their VMs are on disk."""
        for name in names:
            self.run("ip", "link", "set", name, "down")

    def connect(self, *names):
        """Connect nodes again."""
        for name in names:
            self.run("ip", "link", "set", name, "up")

    def lose(self, *names):
        """End all processes of nodes at once, as when their VMs are destroyed."""
        for name in names:
            send(signal.SIGKILL, map(int, self.run("ip", "netns", "pids", name).split()))

    def publish(self, names, function, *args):
        """Answer for nodes as their minions would: the digest of what their slurmd has fetched."""
        assert function in ("slurm.config_hash", "slurm.fetch_config"), (function, args)
        return {name: slurmconf.digest(wait_until(lambda name=name: self._fetched(name), 10)) for name in names}

    def _fetched(self, name):
        """The configuration that a node's slurmd has fetched; None if it made way for a new one in the meantime."""
        pid = self.run("ip", "netns", "pids", name).split()[0]
        read = ["nsenter", "-t", pid, "-m", "cat"]
        try:
            return {file: self.run(*read, f"/run/slurm/conf/{file}") + "\n" for file in slurmconf.FILES}
        except subprocess.CalledProcessError:
            return None

    # jobs

    def submit(self, *options, script="while :; do echo $((i += 1)); sleep 0.1; done"):
        """Submit a batch job that counts into a file of its own; returns its id."""
        output = self.shared / "count.%j"
        return int(self.run("sbatch", "--parsable", "-D", "/", "-o", output, *options, "--wrap", script))

    def count(self, job):
        """How far a job has counted."""
        path = self.shared / f"count.{job}"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def counts_on(self, job):
        """Wait until a job has counted further than it had."""
        before = self.count(job)
        wait_until(lambda: self.count(job) > before, 20)

    def job(self, number):
        """A job as slurmctld sees it; None once it is gone."""
        return next((job for job in slurm.jobs() if job.id == number), None)


def write_config(machine, pillar):
    """Put the configuration that follows from pillar in place, as for a slurmctld that does not run."""
    files = slurmconf.render(pillar)
    slurmpush.write(files | slurmconf.for_standin(files), machine.config)


def namespace(kind, pid):
    """Which one a process is in; empty if it has ended, or we may not know."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    return ""


def comm(pid):
    """The command name of a process; empty if it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def send(number, pids):
    """Send processes a signal, those that have not ended by themselves meanwhile."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def wait_until(condition, seconds):
    """Wait for a condition and return its value; fail the test if it does not come."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"did not come true within {seconds} s")
        time.sleep(0.1)
    return value


@pytest.fixture(scope="session")
def machine(checkout, tmp_path_factory):
    """The machine, without slurmctld. Needs root."""
    if os.geteuid() != 0:
        pytest.skip("needs root for namespaces")
    sys.path.insert(0, str(checkout / "lab"))
    from labtools import images

    images.install_tools()
    machine = Machine(tmp_path_factory.mktemp("slurm"))
    try:
        machine.open(images.machine_root(), checkout / "salt/slurm/files/slurm-power")
        yield machine
    finally:
        machine.close()


@pytest.fixture
def pillar(machine):
    """What the cluster is made of; a test may change it."""
    return {
        "elastic": {
            "cluster": "lab",
            "controller": {"name": "ctl", "address": "10.77.0.1"},
            "network": {"prefix": 24, "nameservers": ["10.77.0.1"]},
            "hosts": {"hv1": {"address": "10.77.0.11"}},
            "pools": {
                "virtual": {
                    "nodes": "vn[001-004]",
                    "addresses": "10.77.0.101-104",
                    "profile": "virtual",
                    "image": "node.qcow2",
                    "cpus": 1,
                    "memory": 256,
                    "partition": "virtual",
                }
            },
        },
        "slurm": {
            "cluster_name": "lab",
            "controller": {"name": "ctl", "address": "10.77.0.1"},
            "config": {
                "SlurmUser": "root",
                "PluginDir": str(machine.shared / "plugins"),
                "ProctrackType": "proctrack/linuxproc",
                "TaskPlugin": "task/none",
                "SchedulerParameters": ["bf_interval=1", "sched_interval=1"],
                "SlurmdTimeout": 30,
                "SlurmctldDebug": "debug",
            },
            "cgroup": {"CgroupPlugin": "disabled"},
            "nodes": {"hv1": {"NodeAddr": "10.77.0.11", "CPUs": 1, "RealMemory": 1000}},
            "partitions": {"metal": {"Nodes": "hv1"}, "virtual": {"Default": True, "MaxTime": "INFINITE"}},
        },
    }


@pytest.fixture
def cluster(machine, pillar, monkeypatch):
    """The machine with a slurmctld that has no past, and a pool of which nothing has grown."""
    monkeypatch.setenv("PATH", f"{machine.commands}:{os.environ['PATH']}")
    monkeypatch.setattr(tempfile, "tempdir", str(machine.shared))
    monkeypatch.setattr(slurmpush, "CONFIG", machine.config)
    monkeypatch.setattr(slurmpush, "KEPT", machine.shared / "kept")
    write_config(machine, pillar)
    machine.start_slurmctld()
    slurm.park(slurmconf.pool_addresses(pillar))
    yield machine
    machine.lose(*NODES)
    machine.connect(*NODES)
    send(signal.SIGKILL, machine.standin_processes())
    machine.signal_slurmctld(signal.SIGKILL)
    wait_until(lambda: not machine.slurmctld_runs(), 10)
    for path in (
        *machine.bell.iterdir(),
        *machine.shared.glob("count.*"),
        *(machine.root / "var/lib/slurm/slurmctld").iterdir(),
    ):
        path.unlink() if path.is_file() else shutil.rmtree(path)
