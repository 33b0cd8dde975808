"""
What the engine itself costs with many nodes: a look at all, status, Slurm asking for a thousand nodes, slurm.conf.

The ledger, DNS and salt-cloud's map are real; the driver's work, the minions and Slurm are stubbed out.
"""

import multiprocessing
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import neighbours

from saltmarsh import mending, reconciling, reporting, slurmconf
from saltmarsh.comparing import compare
from saltmarsh.machine import Inventory, PowerState, Seen
from saltmarsh.model import State
from saltmarsh.observing import observe

SIZES = (100, 1000, 10_000)
TRIES = 5
WANTED = 1000

_SPAWN = multiprocessing.get_context("spawn")  # a process that inherits no memory


class Look(NamedTuple):
    """What one look costs, in seconds of CPU; the peak of the process's memory and what of it the look took, in MB."""

    reconcile: float
    status: float
    peak: float
    more: float


def pillar(size, **pool):
    """A site with one pool of so many nodes, and its Slurm configuration."""
    blocks = [f"10.{1 + at // 65000}.{at % 65000 // 250}.1-250" for at in range(0, size, 250)]
    blocks[-1] = blocks[-1].replace("1-250", f"1-{(size - 1) % 250 + 1}")
    controller = {"name": "ctl", "address": "10.200.0.1"}
    return {
        "elastic": {
            "cluster": "bench",
            "controller": controller,
            "network": {"prefix": 8, "nameservers": ["10.200.0.1"]},
            "hosts": {"hv1": {"address": "10.200.0.2"}},
            "pools": {
                "virtual": {
                    "nodes": f"vn[00001-{size:05d}]",
                    "addresses": blocks,
                    "profile": "virtual",
                    "image": "node.qcow2",
                    "cpus": 1,
                    "memory": 256,
                    "partition": "virtual",
                    **pool,
                }
            },
        },
        "slurm": {"cluster_name": "bench", "controller": controller, "partitions": {"virtual": {"Default": True}}},
    }


def look(size):
    """Look at so many nodes, of which nine in ten are ready, in a process of its own."""
    with _SPAWN.Pool(1) as process:
        return process.apply(_look, [size])


def _look(size):
    with tempfile.TemporaryDirectory(prefix="saltmarsh-bench-") as directory:
        controller = _grown(size, Path(directory))
        before = _peak()
        reconcile, found = _least_cpu(lambda: reconciling.reconcile(controller))
        peak = _peak()
        if found:
            raise AssertionError(f"{len(found)} differences where there are none, the first: {found[0]}")
        status, told = _least_cpu(lambda: reporting.status(controller))
        if len(told) != size * 9 // 10:
            raise AssertionError("status does not have every node")
        return Look(reconcile, status, peak, peak - before)


def _least_cpu(act):
    """Seconds of CPU of the quickest of several tries, as noise only adds to them; and what the last one returned."""
    tries = []
    for _ in range(TRIES):
        began = time.process_time()
        answer = act()
        tries.append(time.process_time() - began)
    return min(tries), answer


def _grown(size, directory):
    """A controller with nodes that are ready, as if they had grown."""
    controller = neighbours.controller(pillar(size), directory)
    pool = controller.site.pool("virtual")
    operation, nodes = controller.ledger.claim("grow", pool, count=size * 9 // 10)
    names = [node.name for node in nodes]
    for state in (State.CREATING, State.BOOTING, State.READY):
        controller.ledger.move(operation, names, state, host="hv1")
    controller.ledger.finish(operation)
    controller.dns.add({node.name: node.address for node in nodes})
    for name in names:
        controller.slurm.register(name)
        (controller.minions.provider.keys / name).touch()
    inventory = Inventory(tuple(Seen(name, "hv1", PowerState.RUNNING) for name in names))
    controller.cloud.inventory = lambda profile: inventory
    return controller


def want():
    """
    Let Slurm want a thousand nodes for as many jobs.

    :returns: seconds until all are claimed, and until the first of their machines is being made
    """
    with tempfile.TemporaryDirectory(prefix="saltmarsh-bench-") as directory:
        controller = neighbours.controller(pillar(WANTED, on_demand=True), Path(directory), deploy=False)
        names = list(controller.site.pool("virtual").nodes)
        controller.slurm.offer(names)
        for number, name in enumerate(names, 1):
            controller.slurm.want(name, job=number)
        began, moments = time.monotonic(), {}
        claim, create = controller.ledger.claim, controller.cloud.create
        made = threading.Event()

        def claimed(*args, **kwargs):
            answer = claim(*args, **kwargs)
            moments["claimed"] = time.monotonic() - began
            return answer

        def creating(planned, report):
            moments["creating"] = time.monotonic() - began
            made.set()
            return create(planned, report)

        controller.ledger.claim, controller.cloud.create = claimed, creating
        snapshot = observe(controller, machines=False)
        (task,) = mending.tasks(controller, snapshot, [each for each in compare(snapshot) if each.repair])
        if len(task.names) != WANTED:
            raise AssertionError(f"{len(task.names)} of {WANTED} nodes would be grown")
        task.carry_out(controller, lambda line: None)
        return moments["claimed"], moments["creating"]


def configuration(size=10_000):
    """
    Render slurm.conf for so many nodes, and hash it.

    :returns: seconds
    """
    site = pillar(size)
    began = time.process_time()
    slurmconf.digest(slurmconf.render(site))
    return time.process_time() - began


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
