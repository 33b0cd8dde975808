"""
Who was where, and when: bars for a picture, and sums for a report.

Nodes come from the ledger's history, jobs on bare metal from Slurm's records (:mod:`saltmarsh.slurmrecords`).
"""

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import datetime

from saltmarsh import slurmrecords
from saltmarsh.model import State

RUNNING = "node at work"
SAVING = "saving"
SUSPENDED = "suspended"
RESTORING = "restoring"
MAKING = "being made"
LEAVING = "being removed"
FAILED = "failed"
LEASE = "lease"
BARE = "bare-metal job"
KINDS = (RUNNING, SAVING, SUSPENDED, RESTORING, MAKING, LEAVING, FAILED, LEASE, BARE)

_KIND_OF = {
    State.CLAIMED: MAKING,
    State.CREATING: MAKING,
    State.BOOTING: MAKING,
    State.READY: RUNNING,
    State.DRAINING: RUNNING,
    State.SUSPENDING: SAVING,
    State.SUSPENDED: SUSPENDED,
    State.RESUMING: RESTORING,
    State.FAILED: FAILED,
    State.DESTROYING: LEAVING,
}
_SINCE = re.compile(r"^suspended by .*? at (\S+)")


@dataclass(frozen=True)
class Bar:
    """Something that lasted: a state of a node on a host, or a job on bare metal."""

    row: str  # the node or the host
    kind: str
    start: float  # seconds since the epoch
    end: float
    host: str | None
    text: str

    @property
    def seconds(self):
        """How long it lasted."""
        return self.end - self.start


def node_bars(history, until):
    """
    The bars of one node.

    :param history: its Transitions, oldest first
    :param float until: the end of what still lasts
    :rtype: list[Bar]
    """
    bars = []
    for row, following in zip(history, [*history[1:], None], strict=True):
        end = following.at if following else until
        if row.after is State.FREE:
            continue
        if row.before is State.READY and row.after is State.SUSPENDED and (begun := _since(row.reason)) and bars:
            # Its host has written it to disk: the ledger knows the end of that, and the reason when it began.
            begun = min(max(bars[-1].start, begun), row.at)
            bars[-1] = replace(bars[-1], end=begun)
            bars.append(Bar(row.name, SAVING, begun, row.at, row.host, row.reason))
        bar = Bar(row.name, _KIND_OF[row.after], row.at, end, row.host, row.reason)
        if bars and (bars[-1].kind, bars[-1].host, bars[-1].end) == (bar.kind, bar.host, bar.start):
            bars[-1] = replace(bars[-1], end=bar.end, text=bar.text)
        else:
            bars.append(bar)
    return [bar for bar in bars if bar.seconds > 0]


def restored_by_leases(bars, runs, hysteresis):
    """
    A node that its host has brought back has a bar for that as well: from when its lease had stayed long enough.

    :param bars: of one node, in order
    :param runs: of its leases
    :param float hysteresis: seconds
    :rtype: list[Bar]
    """
    done = []
    for bar, following in zip(bars, [*bars[1:], None], strict=True):
        if bar.kind != SUSPENDED or following is None or following.kind != RUNNING:
            done.append(bar)
            continue
        starts = [run.start + hysteresis for run in runs if bar.start <= run.start + hysteresis < bar.end]
        if not starts:
            done.append(bar)
            continue
        begun = max(starts)
        done += [replace(bar, end=begun), replace(bar, kind=RESTORING, start=begun, host=following.host)]
    return done


def job_bars(runs, hosts, lease_partition, until):
    """
    The bars of jobs on bare metal, one on each of their hosts.

    :param runs: saltmarsh.slurmrecords.Run
    :param hosts: names of the hosts
    :param str lease_partition: the partition of the leases
    :param float until: the end of what still runs
    :rtype: list[Bar]
    """
    bars = []
    for run in runs:
        kind = LEASE if run.partition == lease_partition else BARE
        text = f"job {run.id} {run.name} of {run.user} in {run.partition}: {run.state}"
        bars += [
            Bar(host, kind, run.start, until if run.end is None else run.end, host, text)
            for host in run.nodes
            if host in hosts
        ]
    return [bar for bar in bars if bar.seconds > 0]


def clipped(bars, since, until):
    """What of the bars lies between two times."""
    cut = (replace(bar, start=max(bar.start, since), end=min(bar.end, until)) for bar in bars)
    return [bar for bar in cut if bar.seconds > 0]


def sums(bars):
    """
    Seconds by row and kind.

    :rtype: dict[str, dict[str, float]]
    """
    total = defaultdict(lambda: defaultdict(float))
    for bar in bars:
        total[bar.row][bar.kind] += bar.seconds
    return {row: dict(kinds) for row, kinds in total.items()}


def _since(reason):
    match = _SINCE.match(reason)
    try:
        return datetime.fromisoformat(match[1].rstrip(":")).timestamp() if match else None
    except ValueError:
        return None


def gather(controller, since, until):
    """
    All bars between two times, nodes and hosts.

    :param Controller controller: what to ask
    :param float since: seconds since the epoch
    :param float until: seconds since the epoch
    :returns: the bars, and the runs of jobs that they are made from
    :rtype: tuple[list[Bar], list[saltmarsh.slurmrecords.Run]]
    :raises SlurmError: Slurm keeps no records that can be read here
    """
    site = controller.site
    runs = slurmrecords.runs()
    bars = job_bars(runs, site.hosts, site.lease.partition, until)
    for pool in site.pools.values():
        for name in pool.nodes:
            if history := controller.ledger.history(name):
                leases = [run for run in runs if run.name == name and run.partition == site.lease.partition]
                bars += restored_by_leases(node_bars(history, until), leases, site.lease.hysteresis)
    return clipped(bars, since, until), runs
