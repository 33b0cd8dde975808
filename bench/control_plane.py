"""
The parts of the bench without machines: what the control plane itself costs, and how fast a pool is claimed.

Everything is real (salt-cloud's map, minion keys, the ledger, DNS, grow and shrink) but the driver's work, the minions and Slurm.
"""

import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import neighbours

from saltmarsh import growing, shrinking
from saltmarsh.errors import NotEnoughFree
from saltmarsh.ledger import Ledger
from saltmarsh.pools import Site

POOL = 2000
PROCESSES = 8
ROUNDS = 3


def pillar(size):
    """A site with one pool of so many nodes."""
    return {
        "elastic": {
            "cluster": "bench",
            "controller": {"name": "ctl", "address": "10.0.0.1"},
            "network": {"prefix": 16, "nameservers": ["10.0.0.1"]},
            "hosts": {"hv1": {"address": "10.0.0.2"}},
            "pools": {
                "virtual": {
                    "nodes": f"vn[0001-{size:04d}]",
                    "addresses": f"10.0.1.1-10.0.{1 + size // 256}.{size % 256}",
                    "profile": "virtual",
                    "image": "node.qcow2",
                    "cpus": 1,
                    "memory": 256,
                    "partition": "virtual",
                }
            },
        }
    }


def grow(size):
    """
    Grow so many nodes and shrink them again, several times in one process.

    :returns: for each round the seconds of the grow and of the shrink, and the process's peak of memory in MB
    :rtype: list[tuple[float, float, float]]
    """
    rounds = []
    with tempfile.TemporaryDirectory(prefix="saltmarsh-bench-") as directory:
        controller = neighbours.controller(pillar(size), Path(directory), deploy=True)
        for _ in range(ROUNDS):
            started = time.monotonic()
            growing.grow(controller, size, say=lambda line: None)
            grown = time.monotonic()
            shrinking.shrink(controller, size, say=lambda line: None)
            shrunk = time.monotonic()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            rounds.append((grown - started, shrunk - grown, peak))
    return rounds


def claim():
    """
    Let several processes claim a pool name by name until nothing is left.

    :returns: claims per second, and the longest seconds that one claim took
    :rtype: tuple[float, float]
    """
    with tempfile.TemporaryDirectory(prefix="saltmarsh-bench-") as directory:
        path = Path(directory, "ledger.db")
        Ledger(path).close()
        context = multiprocessing.get_context("spawn")
        with context.Pool(PROCESSES) as pool:
            answers = pool.map(_claim_all, [path] * PROCESSES)
        seconds = max(end for _, _, end in answers) - min(begin for _, begin, _ in answers)
    names = [name for waits, _, _ in answers for name, _ in waits]
    if len(names) != POOL or len(set(names)) != POOL:
        raise AssertionError(f"{len(names)} claims of {len(set(names))} names from a pool of {POOL}")
    return POOL / seconds, max(wait for waits, _, _ in answers for _, wait in waits)


def _claim_all(path):
    pool = Site.from_pillar(pillar(POOL)).pool("virtual")
    waits = []
    begin = time.monotonic()
    with Ledger(path) as ledger:
        while True:
            asked = time.monotonic()
            try:
                _, (node,) = ledger.claim("bench", pool, count=1)
            except NotEnoughFree:
                return waits, begin, time.monotonic()
            waits.append((node.name, time.monotonic() - asked))
