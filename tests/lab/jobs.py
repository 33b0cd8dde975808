"""Jobs that tell by what they write whether they were ever disturbed, and what Slurm says of them."""

import itertools
import json
from dataclasses import dataclass

from saltcloud import wait_for

# Counts once a second into a file on NFS that it keeps open, in one process: its PID tells if it is still the same.
# Left alone, the client may keep what is written to itself for 30 seconds.
_COUNTER = """#!/bin/bash
exec > /shared/$SLURM_JOB_ID.counted
exec {never}<> <(:)
while :; do
    read -r boot < /proc/sys/kernel/random/boot_id
    printf '%d %d %s %(%s)T\\n' $((count += 1)) $$ "$boot" -1
    sync /shared/$SLURM_JOB_ID.counted
    read -rt 1 -u $never
done
"""
# Two ranks over one TCP connection: each sends what it has got, and one.
_PING_PONG = """
import os, socket, sys, time
first = int(os.environ["SLURM_PROCID"]) == 0
if first:
    listening = socket.create_server(("", 7777))
    link, _ = listening.accept()
else:
    while True:
        try:
            link = socket.create_connection((sys.argv[1], 7777))
            break
        except ConnectionRefusedError:
            time.sleep(0.2)
file = link.makefile("rw")
boot = open("/proc/sys/kernel/random/boot_id").read().strip()
out = open(f"/shared/{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_PROCID']}.counted", "w", buffering=1)
count = 0
while True:
    if not first:
        print(count + 1, file=file, flush=True)
    count = int(file.readline())
    print(count, os.getpid(), boot, int(time.time()), file=out)
    os.fsync(out.fileno())
    time.sleep(0.5)
    if first:
        print(count, file=file, flush=True)
"""


@dataclass(frozen=True)
class Count:
    """One line that a job wrote."""

    number: int
    pid: int
    boot: str
    at: int  # seconds since the epoch, by the node's clock


def sbatch(lab, script, *options):
    """Submit a script as an ordinary user; returns the job's id at once."""
    lab.exec("ctl", "sh", "-c", 'printf %s "$1" > /srv/export/shared/job.sh', "sh", script)
    said = lab.exec(
        "ctl", "runuser", "-u", "alice", "--", "sbatch", "--parsable", "--chdir=/shared", *options, "/shared/job.sh"
    )
    return int(said.stdout)


def submit(lab, script, *options):
    """As :func:`sbatch`; returns once the job runs."""
    number = sbatch(lab, script, *options)
    wait_for(lambda: job(lab, number)["job_state"] == ["RUNNING"], 60, f"job {number} runs")
    return number


def submit_counter(lab, node, *options):
    """A job that counts on a node; returns its id once it does."""
    number = submit(lab, _COUNTER, f"--nodelist={node}", *options)
    wait_counts(lab, f"{number}", 2)
    return number


def submit_ping_pong(lab, nodes):
    """A job of two ranks that talk to each other; returns its id once they do."""
    lab.exec("ctl", "sh", "-c", 'printf %s "$1" > /srv/export/shared/pingpong.py', "sh", _PING_PONG)
    script = f"#!/bin/sh\nsrun --ntasks-per-node=1 python3 -u /shared/pingpong.py {nodes[0]}\n"
    number = submit(lab, script, "--nodes=2", f"--nodelist={','.join(nodes)}", "--output=/shared/pingpong.out")
    wait_counts(lab, f"{number}.0", 2, 120)
    return number


def counted(lab, stem):
    """What a job has written so far."""
    text = lab.exec("ctl", "cat", f"/srv/export/shared/{stem}.counted", check=False).stdout
    whole, _, _ = text.rpartition("\n")  # the last line may not be whole yet
    return [Count(int(n), int(pid), boot, int(at)) for n, pid, boot, at in map(str.split, whole.splitlines())]


def wait_counts(lab, stem, more, seconds=60):
    """Until a job has counted so much further."""
    before = len(counted(lab, stem))
    wait_for(lambda: len(counted(lab, stem)) >= before + more, seconds, f"{stem} counts")


def assert_unbroken(counts):
    """One process has counted without a gap, in one boot of its node."""
    assert [count.number for count in counts] == list(range(1, len(counts) + 1))
    assert len({(count.pid, count.boot) for count in counts}) == 1


def longest_gap(counts):
    """The longest time between two counts, in seconds."""
    return max(after.at - before.at for before, after in itertools.pairwise(counts))


def job(lab, number):
    """A job as Slurm has it."""
    [shown] = json.loads(lab.exec("ctl", "scontrol", "show", "job", number, "--json").stdout)["jobs"]
    return shown


def state_of(lab, number):
    """A job's state in Slurm."""
    return "+".join(job(lab, number)["job_state"])


def cancel(lab, number):
    """End a job, and wait until Slurm is done with it."""
    lab.exec("ctl", "scancel", number)
    wait_for(lambda: "COMPLETING" not in state_of(lab, number), 60, f"job {number} has ended")
