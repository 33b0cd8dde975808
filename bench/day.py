"""
A day of many hosts, simulated: what no backfill, backfill by kill and requeue, and backfill by suspend make of it.

Everything here is simulated (discrete events, one random stream for all three), with the seconds that the lab measured
for stepping aside. A host runs one urgent job or one low-priority job at a time; the supply of low-priority jobs has no
end; urgent jobs take any host that none of them has, first come first served.
"""

import heapq
import random
from collections import deque
from dataclasses import dataclass

DAY = 86400.0  # seconds
HOUR = 3600.0


@dataclass(frozen=True)
class Policy:
    """How a low-priority job steps aside: the host is free after so many seconds, and works again after so many."""

    name: str
    backfill: bool
    keeps: bool = False
    away: float = 0.0
    back: float = 0.0


@dataclass
class Day:
    """What came of it."""

    utilization: float  # share of the hosts' time in which a job did something
    finished: int  # low-priority jobs
    useful: float  # hours of low-priority work, finished or still kept
    thrown_away: float  # hours
    preemptions: int
    delay: float  # seconds, of the mean urgent job beyond what it would have waited without backfill


def urgent_jobs(hosts, load, mean, seed):
    """Arrival and length of each urgent job of a day; together they want ``load`` of the hosts' time."""
    source, at, jobs = random.Random(seed), 0.0, []
    while (at := at + source.expovariate(hosts * load / mean)) < DAY:
        jobs.append((at, source.expovariate(1 / mean)))
    return jobs


def simulate(policy, hosts, jobs, length):
    """
    One day.

    :param Policy policy: how jobs step aside
    :param int hosts: how many
    :param jobs: of :func:`urgent_jobs`
    :param float length: seconds of work of each low-priority job
    :returns: the day, and the mean wait of the urgent jobs
    :rtype: tuple[Day, float]
    """
    idle = deque(range(hosts)) if not policy.backfill else deque()
    low = {}  # host: when its job's work goes on, and what is left of it
    asleep = deque()  # what is left of jobs that are suspended
    ended, waiting, waits = [], deque(), []
    busy = finished = preemptions = 0
    useful = thrown = 0.0

    def begin_low(host, at):
        left, pause = (asleep.popleft(), policy.back) if asleep else (length, 0.0)
        low[host] = (at + pause, left)

    def done_by(host, at):
        """Work of the host's low-priority jobs until then: whole ones finished, and that of the one under way."""
        begun, left = low[host]
        worked = max(0.0, at - begun)
        if worked < left:
            return 0, worked, left - worked
        more, rest = divmod(worked - left, length)
        return 1 + int(more), worked, length - rest

    def begin_urgent(at, arrived, seconds):
        nonlocal busy, finished, preemptions, useful, thrown
        delay = 0.0
        if idle:
            host = idle.popleft()
        else:
            host = next(reversed(low))  # the youngest: what a kill costs least
            count, worked, left = done_by(host, at)
            del low[host]
            finished += count
            preemptions += 1
            if policy.keeps:
                useful += worked
                asleep.append(left)
            else:
                thrown += length - left
                useful += worked - (length - left)
            delay = policy.away
        waits.append(at + delay - arrived)
        end = at + delay + seconds
        busy += max(0.0, min(end, DAY) - (at + delay))
        heapq.heappush(ended, (end, host))

    def release_until(at):
        while ended and ended[0][0] <= at:
            end, host = heapq.heappop(ended)
            idle.append(host) if not policy.backfill else begin_low(host, end)
            if waiting:
                begin_urgent(end, *waiting.popleft())

    if policy.backfill:
        for host in range(hosts):
            begin_low(host, 0.0)
    for arrived, seconds in jobs:
        release_until(arrived)
        if idle or low:
            begin_urgent(arrived, arrived, seconds)
        else:
            waiting.append((arrived, seconds))
    release_until(DAY)
    for host in low:
        count, worked, _ = done_by(host, DAY)
        finished += count
        useful += worked
    whole = hosts * DAY
    mean = sum(waits) / len(waits)
    return Day((busy + useful) / whole, finished, useful / HOUR, thrown / HOUR, preemptions, 0.0), mean


def compare(hosts, away, back, *, load=0.6, mean=0.5 * HOUR, length=4 * HOUR, seed=1):
    """
    The same stream of urgent jobs with each of the three; a kill is taken to free a host at once.

    :param int hosts: how many
    :param float away: seconds from preemption to a free host, suspended
    :param float back: seconds from a free host to a job that goes on
    :returns: days by policy
    :rtype: dict[str, Day]
    """
    jobs = urgent_jobs(hosts, load, mean, seed)
    policies = (
        Policy("no backfill", backfill=False),
        Policy("kill and requeue", backfill=True),
        Policy("suspend", backfill=True, keeps=True, away=away, back=back),
    )
    days, least = {}, None
    for policy in policies:
        day, mean_wait = simulate(policy, hosts, jobs, length)
        least = mean_wait if least is None else least
        day.delay = mean_wait - least
        days[policy.name] = day
    return days
