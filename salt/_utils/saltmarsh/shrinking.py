"""shrink: nodes from ready to gone. A job is never killed unless that is asked for."""

import logging
import time

from saltmarsh.errors import InvalidInput, OperationFailed
from saltmarsh.model import State
from saltmarsh.removing import remove

log = logging.getLogger(__name__)

DRAIN_SECONDS = 600
_POLL = 1.0
_SHRINKABLE = (State.READY, State.FAILED)


def plan(controller, what, pool=None):
    """
    Which nodes :func:`shrink` would take, and the jobs on them.

    :returns: by name, its state and its jobs' ids
    :rtype: dict
    """
    pool = controller.site.pool(pool)
    chosen = _choose(controller, what, pool)
    jobs = controller.slurm.jobs(chosen)
    states = {node.name: node.state for node in controller.ledger.nodes(chosen)}
    return {
        name: {"state": str(states[name]), "jobs": [job.id for job in jobs if name in job.nodes]} for name in chosen
    }


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
    :raises OperationFailed: jobs still run, or a node is not proven gone; says which, and what became of them
    """
    pool = controller.site.pool(pool)
    names = _choose(controller, what, pool)
    operation, _ = controller.ledger.begin(
        "shrink", pool.name, names, expect=set(_SHRINKABLE), to=State.DRAINING, reason=reason
    )
    say(f"{', '.join(names)}: draining")
    try:
        busy = {} if force else _drain(controller, names, reason, timeout, say)
        if busy:
            _give_back(controller, operation, busy)
        idle = [name for name in names if name not in busy]
        stuck = remove(controller, pool, operation, dict.fromkeys(idle, reason), say=say) if idle else {}
    except BaseException as err:
        # What is still draining goes back to work; what is being destroyed is finished by whoever comes next.
        draining = {node.name for node in controller.ledger.nodes(names, states={State.DRAINING})}
        _give_back(controller, operation, draining)
        controller.ledger.finish(operation, f"given up: {err or type(err).__name__}")
        raise
    trouble = [f"{name} still runs {', '.join(map(str, jobs))} and is in use again" for name, jobs in busy.items()]
    trouble += [f"{name}: {why}" for name, why in stuck.items()]
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
    """
    pool = controller.site.pool(operation.pool)
    nodes = [node for node in controller.ledger.nodes(operation.nodes) if node.operation == operation.id]
    _give_back(controller, operation, {node.name for node in nodes if node.state is State.DRAINING})
    halfway = {node.name: node.reason for node in nodes if node.state is State.DESTROYING}
    stuck = remove(controller, pool, operation, halfway) if halfway else {}
    controller.ledger.finish(operation, f"its process died; not removed: {stuck}" if stuck else "its process died")


def _choose(controller, what, pool):
    """The names to shrink: exactly those asked for, or failed ones first, then those with the fewest jobs."""
    known = {node.name: node for node in controller.ledger.nodes(pool=pool.name)}
    if not isinstance(what, int):
        for name in what:
            pool.address_of(name)
        if free := sorted(name for name in what if name not in known):
            raise InvalidInput(f"pool {pool.name}: {', '.join(free)}: not there, nothing to shrink")
        return tuple(what)
    candidates = [node for node in known.values() if node.state in _SHRINKABLE and node.operation is None]
    if len(candidates) < what:
        raise InvalidInput(f"pool {pool.name}: {len(candidates)} nodes can be shrunk, {what} asked for")
    load = dict.fromkeys(known, 0)
    for job in controller.slurm.jobs([node.name for node in candidates]):
        for name in job.nodes:
            if name in load:
                load[name] += 1
    order = sorted(candidates, key=lambda node: (node.state is not State.FAILED, load[node.name]))
    return tuple(node.name for node in order[:what])


def _drain(controller, names, reason, timeout, say):
    """Wait until no job runs on the nodes; returns those with jobs, by name, when the time is over."""
    there = [name for name, node in controller.slurm.nodes(names).items() if node.registered]
    if not there:
        return {}
    controller.slurm.drain(there, reason)
    deadline = time.monotonic() + timeout
    said = None
    while True:
        jobs = controller.slurm.jobs(there)
        busy = {name: [job.id for job in jobs if name in job.nodes] for name in there}
        busy = {name: ids for name, ids in busy.items() if ids}
        if not busy or time.monotonic() > deadline:
            return busy
        if said != busy:
            waiting = "; ".join(f"{name}: {', '.join(map(str, ids))}" for name, ids in busy.items())
            say(f"waiting for jobs: {waiting}")
            said = busy
        time.sleep(_POLL)


def _give_back(controller, operation, names):
    """Let nodes that were draining work again; one that Slurm does not have stays failed."""
    if not names:
        return
    known = controller.slurm.nodes(names)
    there = {name for name in names if name in known and known[name].registered}
    if there:
        controller.slurm.undrain(there)
        controller.ledger.move(operation, there, State.READY, reason="back at work")
    if lost := set(names) - there:
        controller.ledger.move(operation, lost, State.FAILED, reason="Slurm does not have it")
