"""
What a suspend and a resume cost beside what nobody can save: Slurm's stop of the job, and virsh's own save and restore.
"""

import json
import statistics
import subprocess
import time

from guests import Guest, clock
from vm import read, run_salt

from labtools import cluster, container
from labtools.settings import CTL, MACHINES, STATE, VENV

ROUNDS = 3
FILE = "/srv/states/bench.memory"
# All of them at once, so this needs no more than the state of one.
WATCH = (
    "pid=$(pgrep -x -u alice sleep) && echo watching && "
    "while read -r _ _ state _ < /proc/$pid/stat && [ $state != T ]; do sleep 0.1; done"
)


def measure():
    """
    Boot a node, suspend and resume it idle; then with a job, by hand and by the runners.

    :returns: seconds by name, medians of several rounds
    :rtype: dict[str, float]
    """
    cluster.up()
    ((name, node),) = run_salt("elastic.grow", "1")["nodes"].items()
    guest = Guest(name, MACHINES[node["host"]])
    try:
        seconds = {"boot to idle": node["seconds"]["total"]} | median(lambda: warm(guest))
        job = start_job(name)
        return seconds | median(lambda: by_hand(guest, job) | by_runner(guest))
    finally:
        run_salt("elastic.shrink", name, "force=True")


def median(action):
    """The median of each of an action's seconds."""
    rounds = [action() for _ in range(ROUNDS)]
    return {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}


def warm(guest):
    """Suspend an idle node, and have elastic.grow take it up again."""
    run_salt("elastic.suspend", guest.name)
    woken = run_salt("elastic.grow", "1")
    return {"resume to idle": woken["nodes"][guest.name]["seconds"]["total"]}


def by_hand(guest, job):
    """Stop the job, save, restore, with Slurm's and libvirt's own commands alone."""
    seconds = {}
    watch = subprocess.Popen(
        container.entry(CTL, [*cluster.ssh(guest.name), WATCH]), env=container.ENVIRONMENT, stdout=subprocess.PIPE
    )
    watch.stdout.readline()
    with clock(seconds, "raw stop of the job"):
        read(CTL, "scontrol", "suspend", job)
        watch.wait()
    with clock(seconds, "raw virsh save"):
        guest.virsh("save", guest.name, FILE, "--bypass-cache", "--image-format", "zstd")
    with clock(seconds, "raw virsh restore"):
        guest.virsh("restore", FILE, "--bypass-cache")
    guest.wait_agent()
    guest.virsh("domtime", guest.name, "--now")
    read(CTL, "scontrol", "resume", job)
    (STATE / FILE.removeprefix("/srv/")).unlink()
    return seconds


def by_runner(guest):
    """The same by elastic.suspend and elastic.resume."""
    return {verb: call(f"elastic.{verb}", guest.name) for verb in ("suspend", "resume")}


def call(*arguments):
    """The seconds of a runner, without the start of salt-run."""
    timed = json.loads(read(CTL, f"{VENV}/bin/python", "/srv/saltmarsh/bench/timed_runner.py", *arguments))
    if "error" in timed["answer"]:
        raise RuntimeError(timed["answer"]["error"])
    return timed["seconds"]


def start_job(name):
    """A job of an ordinary user on a node; returns its id once it runs."""
    options = ("--parsable", "--chdir=/shared", "--output=/dev/null", f"--nodelist={name}", "--wrap=sleep 36000")
    job = read(CTL, "runuser", "-u", "alice", "--", "sbatch", "--partition=virtual", *options).strip()
    while " JobState=RUNNING " not in " ".join(read(CTL, "scontrol", "show", "job", job).split()):
        time.sleep(0.2)
    return job
