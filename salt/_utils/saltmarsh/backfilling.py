"""
backfill: nodes that live on bare metal as long as nobody else wants it.

A lease is a job of low priority on bare metal, named after its node. Slurm's queue is all that is kept: a lease that is
preempted goes back into it, and starts again on whatever host Slurm chooses. What a lease does to a node that is
suspended happens on the host (:mod:`saltmarsh.leasing`). Nodes that are not there yet are made here.
"""

import fcntl
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from saltmarsh import growing, shrinking, standin
from saltmarsh.catching_up import catch_up
from saltmarsh.errors import Conflict, InvalidInput, OperationFailed, SaltmarshError
from saltmarsh.leasing import KILLED, leases
from saltmarsh.model import State, nodeset

log = logging.getLogger(__name__)

HOLD_DOWN = 60  # seconds until a node that could not be made is tried again
END_SECONDS = 120  # for a host that writes the node to disk
_POLL = 0.2
LATE = 5  # seconds in which a host lets a lease start again
_STOPPING = "backfill stop"


def start(controller, target, pool=None):
    """
    See to it that so many leases are queued or running; nodes that are suspended and have none come first.

    :param Controller controller: what to act through
    :param int target: how many
    :param str pool: the pool's name; may be left out where there is only one
    :returns: the ids of the leases that were submitted, by node
    :rtype: dict[str, int]
    :raises InvalidInput: the pool has not so many names that could have one
    :raises SlurmError: Slurm refuses a lease
    """
    pool = controller.site.pool(pool)
    with _alone(controller, wait=True):
        there = leases(controller, pool)
        names = _next(controller, pool, there, target - len(there))
        # What QEMU itself needs is the host's, too.
        memory = pool.memory + controller.site.lease.memory
        return {name: controller.slurm.submit_lease(name, controller.site.lease, pool.cpus, memory) for name in names}


def _next(controller, pool, there, count):
    """The nodes that get a lease next."""
    if count <= 0:
        return []
    known = {node.name: node.state for node in controller.ledger.nodes(pool=pool.name)}
    asleep = [name for name, state in known.items() if state is State.SUSPENDED and name not in there]
    free = [name for name in pool.nodes if name not in known and name not in there]
    if (limit := pool.limits.max_nodes) is not None:
        free = free[: max(0, limit - len(known.keys() | there.keys()))]
    names = [*asleep, *free]
    if len(names) < count:
        raise InvalidInput(
            f"pool {pool.name}: {len(there)} leases are there, {len(names)} more are possible, not {count}"
        )
    return names[:count]


def stop(controller, target=0, pool=None, *, force=False, timeout=shrinking.DRAIN_SECONDS, say=log.info):
    """
    End leases, until only so many are left: those without a node first, then idle ones; nodes are shrunk before.

    :param Controller controller: what to act through
    :param int target: how many are left
    :param str pool: the pool's name; may be left out where there is only one
    :param bool force: do not wait for jobs: Slurm requeues or kills them
    :param float timeout: seconds to wait for running jobs; nodes that still have one then keep their lease
    :param say: called with lines of progress
    :returns: the nodes whose leases were ended
    :rtype: list[str]
    :raises OperationFailed: a node still has jobs; says which
    """
    pool = controller.site.pool(pool)
    with _alone(controller, wait=True):
        there = leases(controller, pool)
        known = {node.name: node.state for node in controller.ledger.nodes(there)}
        empty = [name for name in there if name not in known]
        ended = empty[: max(0, len(there) - target)]
        controller.slurm.cancel_jobs([there[name].id for name in ended])
        trouble = []
        order = sorted(known, key=lambda name: known[name] is State.SUSPENDED)
        if chosen := order[: max(0, len(there) - len(ended) - target)]:
            say(f"{nodeset(chosen)}: ending their leases")
        for names in _batches(known, chosen):
            try:
                if known[names[0]] is State.SUSPENDED and (force or not controller.slurm.jobs(names)):
                    _end(controller, there[names[0]])
                shrinking.shrink(
                    controller, nodeset(names), pool.name, force=force, timeout=timeout, reason=_STOPPING, say=say
                )
            except (Conflict, OperationFailed) as err:
                trouble.append(str(err))
            left = {node.name for node in controller.ledger.nodes(names)}
            gone = [name for name in names if name not in left]
            controller.slurm.cancel_jobs([there[name].id for name in gone])
            ended += gone
    if trouble:
        raise OperationFailed("; ".join([*trouble, f"ended: {nodeset(ended)}"] if ended else trouble))
    return ended


def _end(controller, lease):
    """End the lease of a node that is suspended: from then on no host brings it back, which it may be about to do."""
    controller.slurm.cancel_jobs([lease.id])
    deadline = time.monotonic() + END_SECONDS
    while any(job.id == lease.id for job in controller.slurm.jobs()):
        if time.monotonic() > deadline:
            raise OperationFailed(f"{lease.name}: its lease {lease.id} does not end, see its host")
        time.sleep(_POLL)


def _batches(known, names):
    """Nodes at work together; a suspended one for itself, because it is refused if it has a job in its memory."""
    awake = [name for name in names if known[name] is not State.SUSPENDED]
    return [*filter(None, [awake]), *([name] for name in names if name not in awake)]


def status(controller, pool=None):
    """
    Every lease, and what its node does.

    :param Controller controller: what to ask
    :param str pool: only this pool's
    :returns: by node: lease (the job), state of the lease, why it waits, host, state of the node, its jobs
    :rtype: dict
    """
    pools = [controller.site.pool(pool)] if pool else controller.site.pools.values()
    rows = {}
    for each in pools:
        there = leases(controller, each)
        nodes = {node.name: node for node in controller.ledger.nodes(there)}
        for name, job in sorted(there.items()):
            rows[name] = {
                "lease": job.id,
                "state": "+".join(sorted(job.states)).lower(),
                "waits for": job.reason if "PENDING" in job.states else None,
                "host": str(job.nodes) or None,
                "node": str(nodes[name].state) if name in nodes else str(State.FREE),
            }
    return rows


class Backfill:
    """
    What the engine does for leases, again and again.

    :param Controller controller: what to act through
    """

    def __init__(self, controller):
        self._controller = controller
        self._not_before = {}
        self._late = {}

    def look(self):
        """Let the ledger catch up, and make the nodes of leases that run, unless leases are begun or ended just now."""
        catch_up(self._controller)
        with _alone(self._controller, wait=False) as alone:
            if not alone:
                return
            for pool in self._controller.site.pools.values():
                self._clear(pool)
                self._undrain(pool)
            wanted = [
                (pool, *item) for pool in self._controller.site.pools.values() for item in self._wanted(pool).items()
            ]
            if wanted:
                with ThreadPoolExecutor(len(wanted)) as threads:
                    list(threads.map(lambda each: self._grow(*each), wanted))

    def _clear(self, pool):
        """What a host has removed is made anew."""
        failed = self._controller.ledger.nodes(pool=pool.name, states={State.FAILED})
        if killed := [node.name for node in failed if node.operation is None and node.reason.startswith(KILLED)]:
            try:
                shrinking.shrink(self._controller, nodeset(killed), pool.name, force=True, reason=KILLED)
            except SaltmarshError as err:
                log.error("%s: not cleared away: %s", nodeset(killed), err)

    def _undrain(self, pool):
        """Nodes that were on disk when a stop gave up on them come back drained as they left."""
        ready = self._controller.ledger.nodes(leases(self._controller, pool), states={State.READY})
        known = self._controller.slurm.nodes(node.name for node in ready if node.operation is None) if ready else {}
        left = [name for name, node in known.items() if "DRAIN" in node.states and node.reason == _STOPPING]
        self._controller.slurm.undrain(name for name in left if not standin.stands_in(self._controller, known[name]))

    def _wanted(self, pool):
        """By host, the nodes of a pool that are to be made there."""
        there = leases(self._controller, pool)
        for job in there.values():
            self._hurry(job)
        known = {node.name for node in self._controller.ledger.nodes(there)}
        hosts = {}
        for name, job in there.items():
            due = time.monotonic() >= self._not_before.get(name, 0.0)
            if "RUNNING" in job.states and name not in known and due:
                hosts.setdefault(next(iter(job.nodes)), []).append(name)
        return hosts

    def _hurry(self, job):
        """A lease that its host has not told to start again (:func:`saltmarsh.leasehost.again`)."""
        if "PENDING" not in job.states or job.reason != "BeginTime":
            self._late.pop(job.id, None)
        elif time.monotonic() - self._late.setdefault(job.id, time.monotonic()) >= LATE:
            self._controller.slurm.start_now(job.id)

    def _grow(self, pool, host, names):
        try:
            growing.grow(self._controller, nodeset(names), pool.name, host=host)
        except SaltmarshError as err:
            log.error("%s can't be made on %s for their leases: %s", nodeset(names), host, err)
            self._not_before |= dict.fromkeys(names, time.monotonic() + HOLD_DOWN)


@contextmanager
def _alone(controller, wait):
    """While leases are begun or ended, nobody makes nodes for them, nor the other way round; whether that is so."""
    with (Path(controller.site.state_dir) / "backfill.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)
