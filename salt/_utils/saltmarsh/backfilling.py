"""
backfill: nodes that live on bare metal as long as nobody else wants it.

A lease is a job of low priority on bare metal, named after its node. A lease that is preempted goes back into Slurm's
queue, and starts again on whatever host Slurm chooses. One that is lost, or cancelled by somebody, has another one
submitted in its place: how many there are to be is kept (:mod:`saltmarsh.targets`). What a lease does to a node that is
suspended happens on the host (:mod:`saltmarsh.leasing`). Nodes that are not there yet are made here.
"""

import fcntl
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from saltmarsh import growing, leasing, shrinking, standin, targets
from saltmarsh.catching_up import catch_up
from saltmarsh.errors import Conflict, InvalidInput, OperationFailed, SaltmarshError, SlurmError
from saltmarsh.leasing import DIED, KILLED, leases
from saltmarsh.model import State, nodeset

log = logging.getLogger(__name__)

HOLD_DOWN = 60  # seconds until a node that could not be made is tried again, and leases are submitted again
END_SECONDS = 120  # for a host that writes the node to disk
_POLL = 0.2
LATE = 5  # seconds in which a host lets a lease start again
_STOPPING = "backfill stop"


def start(controller, target, pool=None, *, test=False):
    """
    See to it that from now on so many leases are queued or running; the engine goes on with that.

    Nodes that are suspended and have no lease come first. If there are more, those without a node are ended; the others
    stay until they end, or :func:`stop` ends them.

    :param Controller controller: what to act through
    :param int target: how many
    :param str pool: the pool's name; may be left out where there is only one
    :param bool test: only find out what would be done; ids are None then
    :returns: the ids of the leases that were submitted, by node, and the nodes whose leases were ended
    :rtype: tuple[dict[str, int], list[str]]
    :raises InvalidInput: the pool has not so many names that could have one
    :raises SlurmError: Slurm refuses a lease; the engine tries it again
    """
    pool = controller.site.pool(pool)
    with _alone(controller, wait=True):
        plan = _plan(controller, pool, target)
        if plan.lacking:
            missing = len(plan.submit) + plan.lacking
            raise InvalidInput(
                f"pool {pool.name}: {len(plan.there)} leases are there, {len(plan.submit)} more are possible, "
                f"not {missing}"
            )
        if test:
            return dict.fromkeys(plan.submit), plan.spare
        # First: whoever is killed in between leaves the rest to the engine.
        targets.keep(controller, pool, target)
        return _carry_out(controller, pool, plan)


@dataclass(frozen=True)
class _Plan:
    """What makes as many leases of a pool as are wanted."""

    there: dict  # the leases by node
    second: list  # ids of what must not be: another lease of a node
    submit: list  # nodes that get a lease
    lacking: int  # for so many there is no node
    spare: list  # nodes that are not there, whose leases are too many


def _plan(controller, pool, target):
    # Leases before all else: the node of one that is not there any more is on disk by now, if it ever will be.
    jobs = leasing.submitted(controller, pool)
    there = leasing.first(jobs)
    known = {node.name: node for node in controller.ledger.nodes(pool=pool.name)}
    # One that ends counts until it has ended: its node can't have another one before.
    missing = max(0, target - len(there))
    names = _next(controller, pool, there, known) if missing else []
    lasting = [name for name, job in there.items() if job.states & {"PENDING", "RUNNING"}]
    empty = sorted((name for name in lasting if name not in known), key=lambda name: "RUNNING" in there[name].states)
    return _Plan(
        there,
        second=[job.id for job in jobs if there[job.name] is not job],
        submit=names[:missing],
        lacking=max(0, missing - len(names)),
        spare=empty[: max(0, len(lasting) - target)],
    )


def _next(controller, pool, there, known):
    """The nodes that may get a lease, in the order in which they do."""
    without = {name: node for name, node in known.items() if name not in there}
    asleep = [name for name, node in without.items() if node.state is State.SUSPENDED]
    # A host has just written them; the ledger may learn it late, as long as another host can't be asked.
    ready = [name for name, node in without.items() if node.state is State.READY and node.operation is None]
    in_slurm = controller.slurm.nodes(ready) if ready else {}
    written = [name for name, node in in_slurm.items() if standin.stands_in(controller, node)]
    free = [name for name in pool.nodes if name not in known and name not in there]
    if (limit := pool.limits.max_nodes) is not None:
        free = free[: max(0, limit - len(known.keys() | there.keys()))]
    return [*asleep, *written, *free]


def _carry_out(controller, pool, plan):
    controller.slurm.cancel_jobs([*plan.second, *(plan.there[name].id for name in plan.spare)])
    # What QEMU itself needs is the host's, too.
    lease, memory = controller.site.lease, pool.memory + controller.site.lease.memory
    return {name: controller.slurm.submit_lease(name, lease, pool.cpus, memory) for name in plan.submit}, plan.spare


def stop(controller, target=0, pool=None, *, force=False, timeout=shrinking.DRAIN_SECONDS, test=False, say=log.info):
    """
    End leases, until only so many are left: those without a node first, then idle ones; nodes are shrunk before.

    From now on there are not more, even if this fails.

    :param Controller controller: what to act through
    :param int target: how many are left
    :param str pool: the pool's name; may be left out where there is only one
    :param bool force: do not wait for jobs: Slurm requeues or kills them
    :param float timeout: seconds to wait for running jobs; nodes that still have one then keep their lease
    :param bool test: only find out which would end
    :param say: called with lines of progress
    :returns: the nodes whose leases were ended
    :rtype: list[str]
    :raises OperationFailed: a node still has jobs; says which
    """
    pool = controller.site.pool(pool)
    with _alone(controller, wait=True):
        plan = _plan(controller, pool, target)
        there = plan.there
        known = {node.name: node.state for node in controller.ledger.nodes(there)}
        empty = [name for name in there if name not in known]
        ended = empty[: max(0, len(there) - target)]
        order = sorted(known, key=lambda name: known[name] is State.SUSPENDED)
        chosen = order[: max(0, len(there) - len(ended) - target)]
        if test:
            return [*ended, *chosen]
        kept = targets.wanted(controller, pool)
        targets.keep(controller, pool, min(target, len(there) if kept is None else kept))
        controller.slurm.cancel_jobs([*plan.second, *(there[name].id for name in ended)])
        trouble = []
        if chosen:
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
    How many leases are wanted and there, every lease, and what its node does.

    :param Controller controller: what to ask
    :param str pool: only this pool
    :returns: by pool that has or wants any: target (None: nobody has said), leases (how many), and nodes: by node lease
        (the job), state of the lease, why it waits, host, state of the node
    :rtype: dict
    """
    told = {}
    for each in [controller.site.pool(pool)] if pool else controller.site.pools.values():
        there, target = leases(controller, each), targets.wanted(controller, each)
        if there or target:
            told[each.name] = {"target": target, "leases": len(there), "nodes": _rows(controller, there)}
    return told


def _rows(controller, there):
    nodes = {node.name: node for node in controller.ledger.nodes(there)}
    return {
        name: {
            "lease": job.id,
            "state": "+".join(sorted(job.states)).lower(),
            "waits for": job.reason if "PENDING" in job.states else None,
            "host": str(job.nodes) or None,
            "node": str(nodes[name].state) if name in nodes else str(State.FREE),
        }
        for name, job in sorted(there.items())
    }


class Backfill:
    """
    What the engine does for leases, again and again.

    :param Controller controller: what to act through
    """

    def __init__(self, controller):
        self._controller = controller
        self._not_before = {}
        self._late = {}
        self._filled = {}
        self._lacking = {}

    def look(self):
        """
        Let the ledger catch up, submit leases that are missing, and make the nodes of those that run.

        Unless leases are begun or ended just now: then only the first.
        """
        catch_up(self._controller)
        with _alone(self._controller, wait=False) as alone:
            if not alone:
                return
            for pool in self._controller.site.pools.values():
                self._clear(pool)
                self._undrain(pool)
                self._fill(pool)
            wanted = [
                (pool, *item) for pool in self._controller.site.pools.values() for item in self._wanted(pool).items()
            ]
            if wanted:
                with ThreadPoolExecutor(len(wanted)) as threads:
                    list(threads.map(lambda each: self._grow(*each), wanted))

    def _clear(self, pool):
        """What a host has removed, or lost, is made anew."""
        failed = [
            node
            for node in self._controller.ledger.nodes(pool=pool.name, states={State.FAILED})
            if node.operation is None
        ]
        for why in (KILLED, DIED):
            names = [node.name for node in failed if node.reason.startswith(why)]
            try:
                if names:
                    shrinking.shrink(self._controller, nodeset(names), pool.name, force=True, reason=why)
            except SaltmarshError as err:
                log.error("%s: not cleared away: %s", nodeset(names), err)

    def _undrain(self, pool):
        """Nodes that were on disk when a stop gave up on them come back drained as they left."""
        ready = self._controller.ledger.nodes(leases(self._controller, pool), states={State.READY})
        known = self._controller.slurm.nodes(node.name for node in ready if node.operation is None) if ready else {}
        left = [name for name, node in known.items() if "DRAIN" in node.states and node.reason == _STOPPING]
        self._controller.slurm.undrain(name for name in left if not standin.stands_in(self._controller, known[name]))

    def _fill(self, pool):
        """As many leases as are wanted; so often that leases that always end at once are no flood of jobs."""
        target = targets.wanted(self._controller, pool)
        if target is None or time.monotonic() < self._filled.get(pool.name, 0.0):
            return
        plan = _plan(self._controller, pool, target)
        if plan.lacking and plan.lacking != self._lacking.get(pool.name):
            log.error("pool %s: %d of %d leases are lacking, it has no nodes for them", pool.name, plan.lacking, target)
        self._lacking[pool.name] = plan.lacking
        if not (plan.submit or plan.spare or plan.second):
            return
        self._filled[pool.name] = time.monotonic() + HOLD_DOWN
        try:
            submitted, ended = _carry_out(self._controller, pool, plan)
            log.info("pool %s: leases of %s submitted, of %s ended", pool.name, nodeset(submitted), nodeset(ended))
        except SlurmError as err:
            log.error("pool %s: not as many leases as are wanted: %s", pool.name, err)

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
