"""
When a pool does not grow: its machines fail to boot again and again, or its provider has said that there is no use now.

It is kept per pool and image: another image begins anew.
"""

import fcntl
import json
import os
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from saltmarsh.errors import BadConfiguration, NoCapacity, QuotaExceeded, Stopped, Throttled, Unreachable

FAILURES = 3
"""Nodes that fail in a row, with none that becomes ready, until their pool is stopped."""

# Seconds in which Slurm is not let ask for more; an administrator may.
_HOLD = {Throttled: 60, NoCapacity: 120, QuotaExceeded: 600}
# What says nothing of the machines themselves.
_NO_FAULT = {*_HOLD, Unreachable, BadConfiguration}


@dataclass(frozen=True)
class Stop:
    """What keeps a pool from growing; ``until`` somebody has looked into it if that is None."""

    image: str
    why: str = ""
    failures: int = 0
    since: float | None = None  # None: it may grow
    until: float | None = None

    def holds(self, image, at):
        """Whether it is in force for an image."""
        return self.image == image and self.since is not None and (self.until is None or at < self.until)


def stops(controller):
    """
    The pools that do not grow now.

    :param Controller controller: what to ask
    :rtype: dict[str, Stop]
    """
    now, pools = time.time(), controller.site.pools
    kept, _ = _read(_file(controller))
    return {name: stop for name, stop in kept.items() if name in pools and stop.holds(pools[name].image, now)}


def failures(controller):
    """
    How many nodes have failed to become ready since the site was set up, by pool and by what was met.

    :param Controller controller: what to ask
    :rtype: collections.Counter[tuple[str, str]]
    """
    return _read(_file(controller))[1]


def check(controller, pool):
    """
    Make sure that a pool may grow, if an administrator asks for it.

    :raises Stopped: its machines have failed too often, or can't work as they are configured
    """
    stop = stops(controller).get(pool.name)
    if stop and stop.until is None:
        raise Stopped(
            f"pool {pool.name} is stopped: {stop.why}; look into it, then: salt-run elastic.reset {pool.name}"
        )


def note(controller, pool, ready, failed):
    """
    Remember how a grow has ended.

    :param Pool pool: the pool
    :param int ready: how many nodes became ready
    :param dict failed: by node that failed why, and the class of the provider's error or None: it did not boot
    """
    if not ready and not failed:
        return
    now = time.time()
    with _changing(controller) as (kept, counts):
        counts.update((pool.name, kind.__name__ if kind else "boot") for _, kind in failed.values())
        stop = kept.get(pool.name)
        before = stop.failures if stop and stop.image == pool.image else 0
        kinds = {kind: why for why, kind in failed.values()}
        unbooted = [why for why, kind in failed.values() if kind not in _NO_FAULT]
        count = 0 if ready else before + len(unbooted)
        kept[pool.name] = Stop(pool.image, failures=count)
        if BadConfiguration in kinds:
            kept[pool.name] = Stop(pool.image, kinds[BadConfiguration], count, now)
        elif count >= FAILURES and unbooted:
            kept[pool.name] = Stop(
                pool.image, f"{count} nodes in a row have failed, the last: {unbooted[-1]}", count, now
            )
        elif held := [kind for kind in _HOLD if kind in kinds]:
            kept[pool.name] = Stop(pool.image, kinds[held[-1]], count, now, now + _HOLD[held[-1]])


def hold(controller, pool, why, seconds):
    """Do not let Slurm ask for more for so many seconds."""
    now = time.time()
    with _changing(controller) as (kept, _):
        kept[pool.name] = Stop(pool.image, why, 0, now, now + seconds)


def reset(controller, pool):
    """
    Let a pool grow again.

    :param Pool pool: the pool
    :returns: what had kept it from growing; empty if nothing had
    :rtype: str
    """
    with _changing(controller) as (kept, _):
        stop = kept.pop(pool.name, None)
    return stop.why if stop else ""


@contextmanager
def _changing(controller):
    """The stops and the failures that are kept, for this process alone; written when the block ends."""
    file = _file(controller)
    with file.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept, counts = _read(file)
        yield kept, counts
        new = file.with_name(f".{file.name}.{os.getpid()}")
        rows = [[pool, kind, count] for (pool, kind), count in counts.items()]
        new.write_text(json.dumps({"stops": {name: asdict(stop) for name, stop in kept.items()}, "failures": rows}))
        new.replace(file)


def _read(file):
    try:
        kept = json.loads(file.read_text())
        stops_by_pool = {name: Stop(**row) for name, row in kept["stops"].items()}
        return stops_by_pool, Counter({(pool, kind): count for pool, kind, count in kept["failures"]})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}, Counter()


def _file(controller):
    return Path(controller.site.state_dir, "stops.json")
