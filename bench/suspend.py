"""
What a suspend and a resume cost beside virsh's own save and restore, which nobody can save; and the table of
docs/explain/suspend-pause-stop.md: what each way of making a machine step aside keeps, frees and costs.
"""

import json
import re
import statistics
import subprocess
import time
from dataclasses import dataclass

from vm import read, run_salt

from labtools import cluster, container
from labtools.settings import CTL, MACHINES, STATE

ROUNDS = 3
FILE = "/srv/states/bench.memory"
JOB_PROCESSES = "/usr/local/libexec/saltmarsh/job-processes"


@dataclass(frozen=True)
class Guest:
    """A grown node with a job on it."""

    name: str
    host: object  # its Machine of the lab
    job: int

    def virsh(self, *arguments):
        """The output of virsh on its host."""
        return read(self.host, "virsh", "--quiet", *arguments)

    def ask(self, *argv):
        """The output of a command on the node."""
        return subprocess.run(
            container.entry(CTL, [*cluster.ssh(self.name), *argv]), check=True, stdout=subprocess.PIPE, text=True
        ).stdout


def measure():
    """
    Suspend and resume a node with a running job, by hand and by the runner.

    :returns: median seconds by name, of several rounds
    :rtype: dict[str, float]
    """
    cluster.up()
    ((name, node),) = run_salt("elastic.grow", "1")["nodes"].items()
    guest = Guest(name, MACHINES[node["host"]], start_job(name))
    try:
        rounds = [by_hand(guest) | by_runner(guest) for _ in range(ROUNDS)]
    finally:
        run_salt("elastic.shrink", name, "force=True")
    return {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}


def by_hand(guest):
    """Stop the job, save, restore, let the job go on, with Slurm's and libvirt's own commands alone."""
    seconds = {}
    with clock(seconds, "raw stop of the job"):
        read(CTL, "scontrol", "suspend", str(guest.job))
        wait_stopped(guest)
    with clock(seconds, "raw virsh save"):
        guest.virsh("save", guest.name, FILE, "--bypass-cache", "--image-format", "zstd")
    with clock(seconds, "raw virsh restore"):
        guest.virsh("restore", FILE, "--bypass-cache")
    guest.virsh("domtime", guest.name, "--now")
    read(CTL, "scontrol", "resume", str(guest.job))
    (STATE / "states" / FILE.rpartition("/")[2]).unlink()
    return seconds


def by_runner(guest):
    """The same by elastic.suspend and elastic.resume, without the start of salt-run."""
    suspended = run_salt("elastic.suspend", guest.name)[guest.name]
    resumed = run_salt("elastic.resume", guest.name)[guest.name]
    return {"suspend": sum(suspended["seconds"].values()), "resume": resumed["seconds"]}


def start_job(name):
    """A job of an ordinary user on a node; returns its id once it runs."""
    options = ("--parsable", "--chdir=/shared", "--output=/dev/null", f"--nodelist={name}", "--wrap=sleep 36000")
    job = int(read(CTL, "runuser", "-u", "alice", "--", "sbatch", *options))
    while " JobState=RUNNING " not in " ".join(read(CTL, "scontrol", "show", "job", str(job)).split()):
        time.sleep(0.2)
    return job


def wait_stopped(guest):
    """Wait until no process of the job runs, as the guest agent tells."""
    while True:
        asked = agent(guest, "guest-exec", path=JOB_PROCESSES, arg=[str(guest.job)])
        while not (status := agent(guest, "guest-exec-status", pid=asked["pid"]))["exited"]:
            time.sleep(0.05)
        if status["exitcode"] == 0:
            return


def agent(guest, command, **arguments):
    """What the guest agent answers."""
    request = json.dumps({"execute": command, "arguments": arguments})
    return json.loads(guest.virsh("qemu-agent-command", guest.name, request))["return"]


class clock:
    """Time a block into a mapping."""

    def __init__(self, seconds, name):
        self._seconds, self._name = seconds, name

    def __enter__(self):
        self._begun = time.monotonic()

    def __exit__(self, *_):
        self._seconds[self._name] = time.monotonic() - self._begun


def resident(guest):
    """MiB of the host's RAM that QEMU has for a machine; 0 where there is no QEMU."""
    listed = read(guest.host, "ps", "-eo", "rss=,args=").splitlines()
    found = [line.split()[0] for line in listed if re.search(rf"guest={guest.name}[,.]", line)]
    return int(found[0]) / 1024 if found else 0.0
