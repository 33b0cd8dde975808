"""
What an urgent job waits for a node that steps aside; and a day of two hosts, compressed into minutes, in the lab.

Everything here is measured: real jobs, a real Slurm, real (emulated) machines. Only the day is shorter, so the seconds
that it takes to save, to restore and to boot weigh much more in it than in a real one.
"""

import json
import random
import statistics
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass

from vm import read, run_salt

from labtools import cluster, container
from labtools.settings import CTL, HOSTS, MACHINES, STATE

ROUNDS = 3
DAY = 150  # seconds
URGENT = 12  # seconds that the mean urgent job takes
LOAD = 0.5  # of the hosts' time that urgent jobs want
LOW = 30  # seconds of work in each job of low priority
SUPPLY = 12  # more of them than there is time for
CPUS = 2  # of a host (pillar/slurm.sls); a node has one of them, and so has any other job of low priority
PATIENCE = 900
SHARED = STATE / "export/shared"
NOW = "date +%%s.%%N"  # in a template
URGENT_SCRIPT = f"{NOW} > /shared/urgent-$SLURM_JOB_ID; sleep %s; {NOW} >> /shared/urgent-$SLURM_JOB_ID"
LOW_SCRIPT = (
    "exec > /shared/low-${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}.${SLURM_RESTART_COUNT:-0}; "
    f"for ((n = 0; n < %s; n++)); do sleep 1; {NOW}; done; echo done"
)


@dataclass
class Day:
    """What came of a day; as :class:`day.Day`, and measured."""

    utilization: float  # share of the CPUs' time in which a job did something that was kept
    finished: int  # low-priority jobs
    useful: float  # seconds of low-priority work, finished or still kept
    thrown_away: float  # seconds
    preemptions: int
    delay: float  # seconds from sbatch to the beginning, of the mean urgent job


def measure():
    """
    Urgent jobs on an idle host, on one with a job that is killed, and on one with a node.

    :returns: seconds by name, medians of several rounds
    :rtype: dict[str, float]
    """
    cluster.up()
    host, name = HOSTS[0].name, "vn001"
    with clean(), without(HOSTS[1].name):
        seconds = {"idle host": statistics.median(urgent_delay(host) for _ in range(ROUNDS))}
        low = submit("lease", LOW_SCRIPT % 3600, "--requeue", "--exclusive")
        seconds["job killed"] = statistics.median(urgent_where_works(host, low) for _ in range(ROUNDS))
        cancel_all()
        grow(1)
        low = submit("virtual", LOW_SCRIPT % 3600, f"--nodelist={name}")
        rounds = [step_aside(host, name, low) for _ in range(ROUNDS)]
    return seconds | {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}


def days():
    """
    The same stream of urgent jobs without backfill, with Slurm's own kill and requeue, and with suspend.

    :returns: days by policy
    :rtype: dict[str, Day]
    """
    cluster.up()
    jobs = urgent_jobs()
    with clean():
        found = {
            "no backfill": one_day(jobs),
            "kill and requeue": one_day(jobs, "lease", "--requeue", "--mem=256"),
        }
        grow(len(HOSTS))
        return found | {"suspend": one_day(jobs, "virtual")}


def urgent_jobs(seed=1):
    """When each urgent job is submitted, and how long it takes, in seconds."""
    source, at, jobs = random.Random(seed), 0.0, []
    while (at := at + source.expovariate(len(HOSTS) * LOAD / URGENT)) < DAY:
        jobs.append((at, max(1.0, source.expovariate(1 / URGENT))))
    return jobs


def one_day(jobs, partition=None, *options):
    """A day with these urgent jobs, and with a supply of jobs of low priority, as many at a time as there are hosts."""
    clear_files()
    low = range(1, SUPPLY + 1) if partition else ()
    if low:
        submit(partition, LOW_SCRIPT % LOW, f"--array={low[0]}-{low[-1]}%{len(HOSTS)}", *options)
        wait(lambda: sum(bool(stamps(path)) for path in runs(low)) == len(HOSTS), "low-priority jobs work")
    begun = time.time()
    submitted = {}
    for at, seconds in jobs:
        time.sleep(max(0.0, begun + at - time.time()))
        asked = time.time()
        submitted[submit("metal", URGENT_SCRIPT % f"{seconds:.1f}", "--exclusive")] = asked
    time.sleep(max(0.0, begun + DAY - time.time()))
    at_work = read(CTL, "squeue", "-h", "-t", "R,S", "-o", "%K", "--user=alice").split()
    cancel_all()
    kept, thrown = [], []
    for number in low:
        *lost, last = runs([number]) or [None]
        thrown += lost
        if last:
            (kept if f"{number}" in at_work or "done" in last.read_text() else thrown).append(last)

    def within(paths):
        return sum(begun <= at <= begun + DAY for path in paths for at in stamps(path))

    delays, busy = [], 0.0
    for number, asked in submitted.items():
        at, end = urgent_times(number)
        delays.append(min(at, begun + DAY) - asked)
        busy += max(0.0, min(end, begun + DAY) - at)
    return Day(
        utilization=(CPUS * busy + within(kept)) / (CPUS * len(HOSTS) * DAY),
        finished=sum("done" in path.read_text() for path in kept),
        useful=within(kept),
        thrown_away=within(thrown),
        preemptions=steps_aside(begun) + len(thrown),
        delay=statistics.mean(delays),
    )


def urgent(host, seconds=1):
    """Submit an urgent job and wait until it has left its host; when it was submitted, began and ended."""
    asked = time.time()
    number = submit("metal", URGENT_SCRIPT % seconds, f"--nodelist={host}", "--exclusive")
    wait(lambda: not read(CTL, "squeue", "-h", "--partition=metal"), f"job {number} has left {host}")
    return asked, *urgent_times(number)


def urgent_delay(host, seconds=1):
    """Seconds from sbatch to the beginning of an urgent job; returns when it has left its host."""
    asked, began, _ = urgent(host, seconds)
    return began - asked


def urgent_where_works(host, low):
    """As :func:`urgent_delay`, on a host whose job is killed; it need not wait for two minutes to start again."""
    before = sum(len(stamps(path)) for path in runs([low]))

    def works():
        container.execute(CTL, ["scontrol", "update", f"jobid={low}", "starttime=now"], capture_output=True)
        return sum(len(stamps(path)) for path in runs([low])) > before

    wait(works, f"job {low} works")
    return urgent_delay(host, seconds=3)


def step_aside(host, name, low):
    """An urgent job where a node lives: the seconds of each part, from what the host's journal says."""
    [path] = wait(lambda: runs([low]), f"job {low} works")
    worked = len(stamps(path))
    wait(lambda: len(stamps(path)) > worked + 1, f"job {low} works")
    asked, began, ended = urgent(host)
    wait(lambda: stamps(path)[-1] > ended, f"job {low} goes on")
    at = {}
    for row in journal(host, asked):
        for words, part in (
            ("suspended by a lease", "drain"),
            ("stopping jobs", "stop"),
            ("frozen, writing memory", "save"),
            (f"{name}: suspended", "rest"),
        ):
            if words in row["MESSAGE"]:
                at.setdefault(part, int(row["__REALTIME_TIMESTAMP"]) / 1e6)
    return {
        "node: sbatch to drain": at["drain"] - asked,
        "node: drain": at["stop"] - at["drain"],
        "node: stop the job": at["save"] - at["stop"],
        "node: save": at["rest"] - at["save"],
        "node: leave, start": began - at["rest"],
        "node in all": began - asked,
        "node: back": next(tick for tick in stamps(path) if tick > ended) - ended,
    }


def journal(host, since):
    """What the program of leases has said on a host."""
    argv = ("journalctl", "-t", "saltmarsh-lease", "--since", f"@{since:.0f}", "-o", "json")
    return [json.loads(line) for line in read(MACHINES[host], *argv).splitlines()]


def steps_aside(since):
    """How often nodes were written to disk since then."""
    rows = [row for host in HOSTS for row in journal(host.name, since)]
    return sum(row["MESSAGE"].endswith(": suspended") for row in rows)


def grow(count):
    """So many leases, with their nodes at work."""
    run_salt("elastic.backfill", "start", "pool=virtual", f"target={count}")
    wait(lambda: states().count("ready") == count, f"{count} nodes are ready")


def states():
    """What the nodes that are there do."""
    return [each["state"] for each in run_salt("elastic.status").values()]


@contextmanager
def clean():
    """Nothing is left behind."""
    try:
        yield
    finally:
        cancel_all()
        wait(lambda: set(states()) <= {"ready"}, "all nodes are back")
        run_salt("elastic.backfill", "stop", "pool=virtual", "force=True")
        clear_files()


@contextmanager
def without(host):
    """No job starts on a host."""
    read(CTL, "scontrol", "update", f"nodename={host}", "state=drain", "reason=bench")
    try:
        yield
    finally:
        read(CTL, "scontrol", "update", f"nodename={host}", "state=resume")


def submit(partition, script, *options):
    """Submit a job as an ordinary user; its id."""
    argv = ("--parsable", f"--partition={partition}", "--chdir=/shared", "--output=/dev/null", *options)
    text = f"#!/bin/bash\n{script}\n"
    done = container.execute(
        CTL, ["runuser", "-u", "alice", "--", "sbatch", *argv],
        check=True, stdout=subprocess.PIPE, text=True, input=text,
    )  # fmt: skip
    return int(done.stdout)


def cancel_all():
    """End all jobs of ordinary users."""
    read(CTL, "scancel", "--user=alice")
    wait(lambda: not read(CTL, "squeue", "-h", "--user=alice"), "no job is left")


def clear_files():
    """Delete what jobs have written."""
    for path in [*SHARED.glob("urgent-*"), *SHARED.glob("low-*")]:
        path.unlink()


def urgent_times(number):
    """When an urgent job began and ended; the end of time where it has not."""
    found = stamps(SHARED / f"urgent-{number}")
    return (*found, *[float("inf")] * 2)[:2]


def runs(numbers):
    """The files of each run of jobs."""
    return [path for number in numbers for path in sorted(SHARED.glob(f"low-{number}.*"))]


def stamps(path):
    """The times that a job has written into a file."""
    return [float(line) for line in path.read_text().split() if line != "done"] if path.exists() else []


def wait(condition, what):
    """Wait for a condition, and return its value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {PATIENCE} s")
        time.sleep(0.2)
    return value
