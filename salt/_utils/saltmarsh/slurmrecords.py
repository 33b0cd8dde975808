"""
Slurm's records of jobs: every run of every job, those that have ended and those that go on.

Read from the file that slurmctld writes with ``JobCompType=jobcomp/filetxt`` (slurm.conf(5)), which has a line
for each run of a job that was put back into the queue, too. Part of the seam to Slurm.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet

from saltmarsh.errors import SlurmError
from saltmarsh.slurmcommand import ask, run

_TYPE = "jobcomp/filetxt"
_LINE = re.compile(
    r"JobId=(?P<id>\d+) UserId=(?P<user>[^(]*)\(\d+\) GroupId=\S+ Name=(?P<name>.*) JobState=(?P<state>\S+) "
    r"Partition=(?P<partition>\S+) TimeLimit=\S+ StartTime=(?P<start>\S+) EndTime=(?P<end>\S+) NodeList=(?P<nodes>\S+) "
    r"NodeCnt=\d+ ProcCnt=(?P<cpus>\d+) WorkDir="
)
_GOING = frozenset({"RUNNING", "SUSPENDED", "COMPLETING"})


@dataclass(frozen=True)
class Run:
    """A job from one of its starts to the end of that."""

    id: int
    name: str
    user: str
    partition: str
    state: str  # how it ended; PENDING or PREEMPTED if it was put back into the queue
    start: float  # seconds since the epoch
    end: float | None  # None while it goes on
    nodes: NodeSet
    cpus: int


def runs():
    """
    Every run that is on record, oldest first, and those that go on.

    :rtype: list[Run]
    :raises SlurmError: slurmctld does not keep such a record, or it can't be read here
    """
    shown = run("scontrol", "show", "config")
    found = {key: re.search(rf"^{key}\s*=\s*(\S+)", shown, re.MULTILINE) for key in ("JobCompType", "JobCompLoc")}
    if not found["JobCompType"] or found["JobCompType"][1] != _TYPE:
        raise SlurmError(f"Slurm keeps no record of jobs here: set JobCompType={_TYPE} and JobCompLoc (slurm:config)")
    try:
        text = Path(found["JobCompLoc"][1]).read_text(errors="replace")
    except FileNotFoundError:
        text = ""  # no job has ended yet
    except OSError as err:
        raise SlurmError(f"Slurm's record of jobs can't be read: {err}") from err
    ended = [each for line in text.splitlines() if (each := _ended(line))]
    going = [each for job in ask("scontrol", "show", "jobs", "--json")["jobs"] if (each := _going(job))]
    return sorted([*ended, *going], key=lambda each: each.start)


def _ended(line):
    match = _LINE.match(line)
    if not match or match["nodes"] == "(null)" or "Unknown" in (match["start"], match["end"]):
        return None
    return Run(
        id=int(match["id"]),
        name=match["name"],
        user=match["user"],
        partition=match["partition"],
        state=match["state"],
        start=datetime.fromisoformat(match["start"]).timestamp(),
        end=datetime.fromisoformat(match["end"]).timestamp(),
        nodes=NodeSet(match["nodes"], resolver=RESOLVER_NOGROUP),
        cpus=int(match["cpus"]),
    )


def _going(job):
    if not _GOING & set(job["job_state"]) or not job["nodes"]:
        return None
    return Run(
        id=job["job_id"],
        name=job["name"],
        user=job["user_name"],
        partition=job["partition"],
        state="+".join(job["job_state"]),
        start=float(job["start_time"]["number"]),
        end=None,
        nodes=NodeSet(job["nodes"], resolver=RESOLVER_NOGROUP),
        cpus=job["cpus"]["number"],
    )
