"""
The parts of the bench without machines: what the control plane itself costs, and how fast a pool is claimed.

Everything is real (salt-cloud's map, minion keys, the ledger, DNS, grow and shrink), except for the driver's work, the
minions and Slurm.
"""

import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import neighbours

from saltmarsh import growing, shrinking
from saltmarsh.errors import NotEnoughFree
from saltmarsh.ledger import Ledger
from saltmarsh.pools import Site

POOL = 2000
PROCESSES = 8
ROUNDS = 3

_SPAWN = multiprocessing.get_context("spawn")  # a process that inherits no memory


class Round(NamedTuple):
    """What growing all of a pool and shrinking it again took: seconds, and the process's memory afterwards, in MB."""

    grow: float
    shrink: float
    memory: float
    peak: float


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
    Grow so many nodes and shrink them again, several times in one process of its own.

    :returns: the memory in MB before anything is grown, and each round
    :rtype: tuple[float, list[Round]]
    """
    with _SPAWN.Pool(1) as process:
        return process.apply(_grow_again_and_again, [size])


def _grow_again_and_again(size):
    rounds = []
    with tempfile.TemporaryDirectory(prefix="saltmarsh-bench-") as directory:
        controller = neighbours.controller(pillar(size), Path(directory), deploy=True)
        before = _memory()
        for _ in range(ROUNDS):
            started = time.monotonic()
            growing.grow(controller, size, say=lambda line: None)
            grown = time.monotonic()
            shrinking.shrink(controller, size, say=lambda line: None)
            shrunk = time.monotonic()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            rounds.append(Round(grown - started, shrunk - grown, _memory(), peak))
    return before, rounds


def _memory():
    """What this process has of the machine's memory now, in MB (proc_pid_statm(5))."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1024**2


def claim():
    """
    Let several processes claim a pool name by name, all from the same moment, until nothing is left.

    :returns: claims per second, and the longest seconds that one claim took
    :rtype: tuple[float, float]
    """
    with tempfile.TemporaryDirectory(prefix="saltmarsh-bench-") as directory:
        path = Path(directory, "ledger.db")
        Ledger(path).close()
        start, answers = _SPAWN.Barrier(PROCESSES), _SPAWN.SimpleQueue()
        processes = [_SPAWN.Process(target=_claim_all, args=(path, start, answers)) for _ in range(PROCESSES)]
        for process in processes:
            process.start()
        shares = [answers.get() for _ in processes]
        for process in processes:
            process.join()
    names = [name for _, _, waits in shares for name, _ in waits]
    if len(names) != POOL or len(set(names)) != POOL:
        raise AssertionError(f"{len(names)} claims of {len(set(names))} names from a pool of {POOL}")
    seconds = max(end for _, end, _ in shares) - min(begin for begin, _, _ in shares)
    return POOL / seconds, max(wait for _, _, waits in shares for _, wait in waits)


def _claim_all(path, start, answers):
    pool = Site.from_pillar(pillar(POOL)).pool("virtual")
    waits = []
    with Ledger(path) as ledger:
        start.wait()
        begin = asked = time.monotonic()
        try:
            while True:
                _, (node,) = ledger.claim("bench", pool, count=1)
                waits.append((node.name, time.monotonic() - asked))
                asked = time.monotonic()
        except NotEnoughFree:
            answers.put((begin, time.monotonic(), waits))
