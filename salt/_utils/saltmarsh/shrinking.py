"""shrink: nodes from ready to gone. A job is never killed unless that is asked for."""

import logging
import time

from saltmarsh import standin
from saltmarsh.errors import Conflict, InvalidInput, OperationFailed, SaltmarshError
from saltmarsh.hostlist import fold_words
from saltmarsh.leasing import leases
from saltmarsh.model import State, nodeset
from saltmarsh.removing import remove
from saltmarsh.slurm import ids_by_node

log = logging.getLogger(__name__)

DRAIN_SECONDS = 600
_POLL = 1.0
_SHRINKABLE = (State.READY, State.SUSPENDED, State.FAILED)


def plan(controller, what, pool=None):
    """
    Which nodes :func:`shrink` would take, and the jobs on them.

    :returns: by name, its state and its jobs' ids
    :rtype: dict
    """
    pool = controller.site.pool(pool)
    chosen = _choose(controller, what, pool)
    jobs = ids_by_node(controller.slurm.jobs(chosen))
    states = {node.name: node.state for node in controller.ledger.nodes(chosen)}
    return {name: {"state": str(states[name]), "jobs": jobs[name]} for name in chosen}


def shrink(controller, what, pool=None, *, force=False, timeout=DRAIN_SECONDS, reason="shrink", say=log.info):
    """
    Drain nodes, wait for their jobs, destroy the machines, prove them gone, free the names.

    :param Controller controller: what to act through
    :param what: how many (int; failed and idle ones first), or which (NodeSet)
    :param str pool: the pool's name; may be left out where there is only one
    :param bool force: do not wait: Slurm requeues or kills the jobs that run there
    :param float timeout: seconds to wait for running jobs; then nodes with jobs go back to work
    :param str reason: why, for Slurm's users and the history
    :param say: called with lines of progress
    :returns: the names that are free now
    :rtype: list[str]
    :raises InvalidInput: an argument is not acceptable, or nodes are not there
    :raises Conflict: another operation holds a node
    :raises Unreachable: slurmctld does not answer; nothing was changed
    :raises OperationFailed: jobs still run, or a node is not proven gone; says which, and what became of them
    """
    pool = controller.site.pool(pool)
    names = _choose(controller, what, pool)
    controller.slurm.ping()
    asleep = {node.name for node in controller.ledger.nodes(names, states={State.SUSPENDED})}
    if not force:
        _refuse_jobs_asleep(controller, asleep)
    operation, _ = controller.ledger.begin(
        "shrink", pool.name, names, expect=set(_SHRINKABLE), to=State.DRAINING, reason=reason
    )
    say(f"{nodeset(names)}: draining")
    try:
        awake = [name for name in names if name not in asleep]
        busy = {} if force else drain(controller, awake, reason, timeout, say)
        _give_back(controller, operation, busy)
        idle = [name for name in names if name not in busy]
        _follow(controller, operation, idle, reason)
        stuck = remove(controller, pool, operation, dict.fromkeys(idle, reason), say=say) if idle else {}
    except BaseException as err:
        _give_up(controller, operation, names, err)
        raise
    trouble = fold_words({name: f"still runs {', '.join(map(str, ids))} and stays" for name, ids in busy.items()})
    trouble += fold_words(stuck)
    controller.ledger.finish(operation, "; ".join(trouble) or "done")
    if trouble:
        remedy = " (wait longer with timeout=, or force=True)" if busy else ""
        raise OperationFailed(f"pool {pool.name}: {'; '.join(trouble)}{remedy}")
    return list(names)


def recover(controller, operation):
    """
    Finish what a dead shrink left: nodes that were draining go back to work, others are removed to the end.

    :param Controller controller: what to act through
    :param Operation operation: the operation, adopted
    :raises SaltmarshError: that can't be done now
    """
    pool = controller.site.pool(operation.pool)
    nodes = [node for node in controller.ledger.nodes(operation.nodes) if node.operation == operation.id]
    draining = {node.name for node in nodes if node.state is State.DRAINING}
    given_up = _given_up(controller, pool, draining)
    _give_back(controller, operation, draining - given_up)
    halfway = {node.name: node.reason for node in nodes if node.state is State.DESTROYING or node.name in given_up}
    stuck = remove(controller, pool, operation, halfway) if halfway else {}
    controller.ledger.finish(operation, "; ".join(["its process died", *fold_words(stuck)]))


def drain(controller, names, reason, timeout, say=log.info):
    """
    Let no new job start on nodes, and wait until none runs there.

    :param Controller controller: what to act through
    :param names: the nodes
    :param str reason: why, for Slurm's users
    :param float timeout: seconds
    :param say: called with lines of progress
    :returns: the nodes that still have jobs when the time is over, with the jobs' ids
    :rtype: dict[str, list[int]]
    """
    deadline = time.monotonic() + timeout
    # A node that does not answer may be cut off while its jobs go on; Slurm has given up those that it set down.
    present = [name for name, node in controller.slurm.nodes(names).items() if not (node.absent or node.startable)]
    controller.slurm.drain(present, reason)
    said = None
    while True:
        jobs = ids_by_node(controller.slurm.jobs(present))
        busy = {name: jobs[name] for name in present if jobs[name]}
        if not busy or time.monotonic() > deadline:
            return busy
        if said != (words := "; ".join(fold_words({name: ", ".join(map(str, ids)) for name, ids in busy.items()}))):
            say(f"waiting for jobs: {words}")
            said = words
        time.sleep(_POLL)


def _choose(controller, what, pool):
    """The names to shrink: exactly those asked for, or failed ones first, then those with the fewest jobs."""
    known = {node.name: node for node in controller.ledger.nodes(pool=pool.name)}
    if not isinstance(what, int):
        if foreign := [name for name in what if name not in known and name not in pool]:
            raise InvalidInput(f"pool {pool.name} has no node {nodeset(foreign)}, its nodes are {pool.nodeset}")
        if free := [name for name in what if name not in known]:
            raise InvalidInput(f"pool {pool.name}: {nodeset(free)}: not there, nothing to shrink")
        return tuple(what)
    candidates = [node for node in known.values() if node.state in _SHRINKABLE and node.operation is None]
    jobs = ids_by_node(controller.slurm.jobs([node.name for node in candidates]))
    # Whose memory is on disk with jobs in it must be named.
    candidates = [node for node in candidates if node.state is not State.SUSPENDED or not jobs[node.name]]
    if len(candidates) < what:
        raise InvalidInput(f"pool {pool.name}: {len(candidates)} nodes can be shrunk, {what} asked for")
    order = sorted(candidates, key=lambda node: (node.state is not State.FAILED, len(jobs[node.name])))
    return tuple(node.name for node in order[:what])


def _given_up(controller, pool, names):
    """Nodes that can't go back to work: Slurm has given them up, and would have nothing of it."""
    known = controller.slurm.nodes(names) if names and pool.on_demand else {}
    return {name for name, node in known.items() if node.given_up}


def _refuse_jobs_asleep(controller, names):
    jobs = ids_by_node(controller.slurm.jobs(names)) if names else {}
    if busy := {name: f"has job {', '.join(map(str, jobs[name]))} in its memory" for name in names if jobs[name]}:
        raise Conflict(f"suspended: {'; '.join(fold_words(busy))}: resume it first, or give up its job with force=True")


def _give_back(controller, operation, names):
    """
    Let nodes that were draining work again.

    One that had failed before stays failed, and drained; so does one that Slurm does not have. One that was suspended
    still is; one that its host has suspended meanwhile is known to be so when the ledger catches up.
    """
    before = {name: _before(controller, operation, name) for name in names}
    for name, row in before.items():
        if row.after in (State.FAILED, State.SUSPENDED):
            controller.ledger.move(operation, {name}, row.after, reason=row.reason)
    if not (worked := {name for name, row in before.items() if row.after not in (State.FAILED, State.SUSPENDED)}):
        return
    known = controller.slurm.nodes(worked)
    there = {name for name in worked if name in known and known[name].registered}
    if there:
        controller.slurm.undrain(name for name in there if not standin.stands_in(controller, known[name]))
        controller.ledger.move(operation, there, State.READY, reason="back at work")
    for name in worked - there:
        seen = f"Slurm has it {known[name].state}" if name in known else "Slurm does not know it"
        controller.ledger.move(operation, {name}, State.FAILED, reason=f"could not go back to work: {seen}")


def _follow(controller, operation, names, reason):
    """Nodes with leases may have moved while they were drained: one that may be anywhere is removed from all hosts."""
    held = leases(controller)
    for node in controller.ledger.nodes(name for name in names if name in held):
        if set(held[node.name].nodes) != {node.host}:
            controller.ledger.move(operation, [node.name], State.DESTROYING, host=None, reason=reason)


def _before(controller, operation, name):
    """The transition by which a node came to where this operation found it."""
    return next(row for row in reversed(controller.ledger.history(name)) if row.operation != operation.id)


def _give_up(controller, operation, names, err):
    """
    What is still draining goes back to work, if Slurm wants it; what is being destroyed is left to whoever takes the
    operation over.

    :raises OperationFailed: in place of the error, if that is an interruption or something is left
    """
    ledger = controller.ledger
    interrupted = isinstance(err, (KeyboardInterrupt, SystemExit))
    why = "interrupted" if interrupted else str(err) or repr(err)
    draining = {node.name for node in ledger.nodes(names, states={State.DRAINING})}
    try:
        given_up = _given_up(controller, controller.site.pool(operation.pool), draining)
        _give_back(controller, operation, draining - given_up)
    except SaltmarshError as trouble:
        log.warning("shrink %s: nodes can't go back to work yet: %s", operation.id, trouble)
    left = nodeset(node.name for node in ledger.nodes(names, states={State.DRAINING, State.DESTROYING}))
    if left:
        ledger.abandon(operation)
    else:
        ledger.finish(operation, f"given up: {why}")
    if interrupted or left:
        later = f"; left to the engine: {left}" if left else ""
        raise OperationFailed(f"pool {operation.pool}: {why}{later}") from err
