"""
Mend what differs, by the same verbs that an administrator uses.

Whatever is mended is an operation that holds the node in the ledger first: nobody else is at work on it, and if the
process dies in between, whoever comes next ends it.
"""

import logging
from contextlib import contextmanager
from dataclasses import dataclass

from saltmarsh import breaker, growing, shrinking
from saltmarsh.comparing import Repair
from saltmarsh.errors import InvalidInput, NotEnoughFree, SaltmarshError, Stopped
from saltmarsh.hostlist import fold_words
from saltmarsh.ledger import KEEP, RESTING
from saltmarsh.model import State, nodeset
from saltmarsh.observing import Snapshot
from saltmarsh.pools import Limits
from saltmarsh.removing import RELEASE_SECONDS, remove
from saltmarsh.slurm import NOT_GROWN

log = logging.getLogger(__name__)

VERB = "reconcile"
_HOLD = 300  # seconds in which Slurm is not let ask again for what pillar does not allow


@dataclass(frozen=True)
class Task:
    """One repair of nodes of one pool; ``least`` of them, or it has failed."""

    repair: Repair
    pool: str
    why: dict[str, str]  # by node
    snapshot: Snapshot
    least: int = 1

    @property
    def names(self):
        """The nodes."""
        return tuple(self.why)

    def carry_out(self, controller, say=log.info):
        """
        Do it; what can't be done now is logged, and found again by the next look.

        :param Controller controller: what to act through
        :param say: called with lines of progress
        """
        for line in fold_words(self.why):
            say(f"{line}: {self.repair}")
        try:
            _MEND[self.repair](controller, self, say)
        except SaltmarshError as err:
            log.warning("%s: not done now (%s): %s", nodeset(self.names), self.repair, err)


def tasks(controller, snapshot, findings):
    """
    What is to be done about findings.

    Nodes of one parallel job are grown together, all of them or none. Slurm is asked for jobs only if it wants nodes.

    :param Controller controller: what to ask
    :param Snapshot snapshot: what the findings are from
    :param findings: the findings, all with a repair
    :rtype: list[Task]
    :raises SaltmarshError: Slurm can't be asked
    """
    groups = {}
    for finding in findings:
        groups.setdefault((finding.repair, finding.pool), {})[finding.subject] = finding.why
    found = []
    for (repair, pool), why in groups.items():
        if repair is Repair.GROW:
            found += _by_job(controller.slurm.jobs(why), pool, why, snapshot)
        else:
            found.append(Task(repair, pool, why, snapshot))
    return found


def recover(controller, operation):
    """
    End what a dead process was mending: what was being removed is removed, other nodes are let go.

    :param Controller controller: what to act through
    :param Operation operation: the operation, adopted
    :raises SaltmarshError: that can't be done now
    """
    halfway = {
        node.name: node.reason
        for node in _held_by(controller, operation)
        if node.state in (State.CLAIMED, State.DESTROYING)
    }
    pool = controller.site.pool(operation.pool) if halfway else None
    stuck = remove(controller, pool, operation, halfway) if halfway else {}
    controller.ledger.finish(operation, "; ".join(["its process died", *fold_words(stuck)]))


def _by_job(jobs, pool, why, snapshot):
    """The nodes of each parallel job by themselves, all others together."""
    alone, together = dict(why), []
    for job in jobs:
        if len(job.nodes) > 1 and (own := {name: why[name] for name in job.nodes if name in alone}):
            together.append(Task(Repair.GROW, pool, own, snapshot, len(own)))
            alone = {name: text for name, text in alone.items() if name not in own}
    return [*together, *([Task(Repair.GROW, pool, alone, snapshot)] if alone else [])]


@contextmanager
def _held(controller, task, state):
    """Nodes that are at rest, held as they are."""
    operation, _ = controller.ledger.begin(VERB, task.pool, task.names, expect={state}, to=state, reason=KEEP)
    with _ended(controller, operation):
        yield operation


@contextmanager
def _claimed(controller, names, pool, reason):
    """Names that nobody has, held; given back unless they are in another state by then."""
    # A pool that is full must not keep what is left over in it.
    unlimited = controller.site.pool(pool).model_copy(update={"limits": Limits()})
    operation, nodes = controller.ledger.claim(VERB, unlimited, names=names, minimum=1, reason=reason)
    with _ended(controller, operation):
        try:
            yield operation, {node.name: node.address for node in nodes}
        finally:
            left = controller.ledger.nodes(operation.nodes, states={State.CLAIMED})
            if left:
                controller.ledger.move(operation, [node.name for node in left], State.FREE)


@contextmanager
def _ended(controller, operation):
    """The operation is over when the block is; what is halfway then is left to whoever looks for dead ones."""
    outcome = "done"
    try:
        yield
    except BaseException as err:
        outcome = f"given up: {err}"
        raise
    finally:
        if any(node.state not in RESTING for node in _held_by(controller, operation)):
            controller.ledger.abandon(operation)
        else:
            controller.ledger.finish(operation, outcome)


def _held_by(controller, operation):
    return [node for node in controller.ledger.nodes(operation.nodes) if node.operation == operation.id]


def _grow(controller, task, say):
    try:
        growing.grow(controller, nodeset(task.names), task.pool, minimum=task.least, say=say)
    except (InvalidInput, NotEnoughFree, Stopped) as err:
        # It will not be otherwise the next time: the job need not wait for Slurm to lose its patience.
        log.error("%s: can't be grown: %s", nodeset(task.names), err)
        if isinstance(err, InvalidInput):
            breaker.hold(controller, controller.site.pool(task.pool), str(err), _HOLD)
        _release(controller, task, say)


def _shrink(controller, task, say):
    # Once it is given back for good Slurm would start it anew for the next job, while its machine is being removed.
    controller.slurm.down(task.names, NOT_GROWN)
    shrinking.shrink(controller, nodeset(task.names), task.pool, force=True, reason="given up by Slurm", say=say)


def _fail(controller, task, say):
    by_reason = {}
    for name, why in task.why.items():
        by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        operation, _ = controller.ledger.begin(
            VERB, task.pool, names, expect={State.READY}, to=State.FAILED, reason=why
        )
        with _ended(controller, operation):
            controller.slurm.down([name for name in names if name in task.snapshot.slurm], why)


def _remove(controller, task, say):
    pool, why, known = controller.site.pool(task.pool), task.why, task.snapshot.nodes
    if failed := [name for name in why if name in known]:
        operation, _ = controller.ledger.begin(VERB, pool.name, failed, expect={State.FAILED}, to=State.DRAINING)
        with _ended(controller, operation):
            remove(controller, pool, operation, {name: why[name] for name in failed}, say)
    if free := [name for name in why if name not in known]:
        with _claimed(controller, free, pool.name, "left over") as (operation, addresses):
            for name in addresses.keys() & task.snapshot.strays:
                controller.cloud.remove_strays(pool.profiles, name)
            for name in addresses:
                controller.ledger.move(operation, {name}, State.DESTROYING, reason=why[name])
            remove(controller, pool, operation, {name: why[name] for name in addresses}, say)


def _release(controller, task, say):
    with _claimed(controller, task.names, task.pool, "given back to Slurm") as (_, addresses):
        controller.slurm.release(addresses, RELEASE_SECONDS)


def _park(controller, task, say):
    with _claimed(controller, task.names, task.pool, "parked") as (_, addresses):
        controller.slurm.park(addresses)


def _offer(controller, task, say):
    with _claimed(controller, task.names, task.pool, "offered to Slurm") as (_, addresses):
        controller.slurm.offer(addresses)


def _address(controller, task, say):
    with _held(controller, task, State.READY):
        controller.slurm.set_addresses({name: task.snapshot.nodes[name].address for name in task.names})


def _name(controller, task, say):
    with _held(controller, task, State.READY):
        controller.dns.add({name: task.snapshot.nodes[name].address for name in task.names})


def _place(controller, task, say):
    with _held(controller, task, State.READY) as operation:
        for name in task.names:
            (machine,) = task.snapshot.machines[name]
            controller.ledger.move(operation, {name}, State.READY, host=machine.host, reason="found there")


_MEND = {
    Repair.GROW: _grow,
    Repair.SHRINK: _shrink,
    Repair.FAIL: _fail,
    Repair.REMOVE: _remove,
    Repair.RELEASE: _release,
    Repair.PARK: _park,
    Repair.OFFER: _offer,
    Repair.ADDRESS: _address,
    Repair.NAME: _name,
    Repair.PLACE: _place,
}
