"""
checkpoint and restore: a node's memory and disk at one moment, kept while the node goes on, and put back later.

A checkpoint is a state file that was not given up when the node came back, with the snapshot of its disk.
"""

import logging
import time

from saltmarsh import migrating, resuming, suspending
from saltmarsh.errors import InvalidInput
from saltmarsh.machine import Suspension
from saltmarsh.model import State

log = logging.getLogger(__name__)


def listing(controller, name):
    """
    The checkpoints of a node, latest first.

    :param str name: the node
    :returns: by number: file, size (bytes), age (seconds), who made it and why, and the jobs in it
    :rtype: dict[int, dict]
    :raises Unreachable: no host that could have them answers
    """
    return {
        each.number: {
            "file": each.path,
            "size": each.size,
            "age": round(time.time() - each.suspension.at),
            "by": each.suspension.by,
            "why": each.suspension.why,
            "jobs": list(each.suspension.jobs),
        }
        for each in controller.vmstates_of(name).checkpoints([name])
    }


def plan(controller, name):
    """
    What :func:`checkpoint` would do, and nothing else; the same errors.

    :returns: as :func:`saltmarsh.suspending.plan`
    :rtype: dict
    """
    _refuse(controller, name)
    return suspending.plan(controller, [name])


def checkpoint(controller, name, *, by, why="", say=log.info):
    """
    Keep a node's memory and disk as they are now. Its jobs stand still meanwhile, for seconds.

    :param Controller controller: what to act through
    :param str name: the node
    :param str by: who wants it
    :param str why: kept with it
    :param say: called with lines of progress
    :returns: its number, its file, the file's size in bytes, its jobs, and the seconds
    :rtype: dict
    :raises InvalidInput: the node is not ready, or runs a parallel job
    :raises NoCapacity: there is no room
    :raises OperationFailed: it could not be made; says what became of the node
    """
    _refuse(controller, name)
    begun = time.monotonic()
    operation, done = suspending.carry_out(
        controller, "checkpoint", [name], by=by, why=why, urgent=False, say=say, kept=True
    )
    migrating.bring_back(controller, operation, [name], None, say)
    told = {key: done[name][key] for key in ("file", "size", "jobs")}
    number = next(each.number for each in controller.vmstates_of(name).checkpoints([name]) if each.path == told["file"])
    return {"checkpoint": number, **told, "seconds": round(time.monotonic() - begun, 2)}


def plan_restore(controller, name, number):
    """
    What :func:`restore` would do, and nothing else; the same errors.

    :returns: the checkpoint, as :func:`listing` tells of it
    :rtype: dict
    """
    _checked(controller, name, number)
    return listing(controller, name)[number]


def restore(controller, name, number, *, by, why="", say=log.info):
    """
    Put a node's memory and disk back to a checkpoint; what it has done since is lost.

    Its jobs must be those of the checkpoint: they go on from there. The checkpoint stays.

    :param Controller controller: what to act through
    :param str name: the node
    :param int number: the checkpoint's
    :param str by: who wants it
    :param str why: for Slurm's users and the history
    :param say: called with lines of progress
    :returns: the jobs that go on, and the seconds
    :rtype: dict
    :raises InvalidInput: no such checkpoint, or a job runs there that is not in it
    :raises NoCapacity: its host has no room for it
    :raises OperationFailed: it could not be put back; says what became of the node
    """
    kept, host = _checked(controller, name, number)
    begun = time.monotonic()
    operation, nodes = controller.ledger.begin(
        "restore", None, [name], expect={State.READY}, to=State.SUSPENDING, reason=f"restore checkpoint {number}"
    )
    leaving = suspending.Leaving(
        controller, operation, nodes, Suspension(operation.started, by, why, kept=True), False, say
    )
    try:
        leaving.drain()
        marks = leaving.stop_jobs()
        leaving.choose({name: kept})
    except BaseException as err:
        leaving.give_up(err)
        raise
    say(f"{name}: memory and disk are those of checkpoint {number}")
    migrating.bring_back(controller, operation, [name], host, say)
    return {"jobs": list(marks[name].jobs), "seconds": round(time.monotonic() - begun, 2)}


def plan_discard(controller, name, number):
    """
    What :func:`discard` would do, and nothing else; the same errors.

    :returns: the checkpoint, as :func:`listing` tells of it
    :rtype: dict
    """
    _known(controller, name, number)
    return listing(controller, name)[number]


def discard(controller, name, number):
    """
    Delete a checkpoint.

    :param str name: the node
    :param int number: the checkpoint's
    :raises InvalidInput: no such checkpoint, or the node is not ready
    """
    kept, host = _known(controller, name, number)
    operation, _ = controller.ledger.begin(
        "discard", None, [name], expect={State.READY}, to=State.READY, reason=f"discard checkpoint {number}"
    )
    try:
        controller.vmstates_of(name).discard(kept, host)
    finally:
        controller.ledger.finish(operation)


def recover(controller, operation):
    """
    A checkpoint or a restore whose process died: the node goes on, from where it was or from the checkpoint.

    :param Controller controller: what to act through
    :param Operation operation: the operation, adopted
    :raises SaltmarshError: that can't be done now
    """
    if operation.verb == "restore":
        chosen = [
            node
            for node in resuming.unfinished(controller, operation, State.SUSPENDING)
            if _is_chosen(suspending.wait_idle(controller, node), operation)
        ]
        suspending.give_up_memory(controller, operation, chosen)
    migrating.recover(controller, operation)


def _is_chosen(look, operation):
    """Whether a machine was to go back to a checkpoint, and has not gone yet."""
    suspension = look.state and look.state.suspension
    return bool(look.machine and suspension and suspension.kept and suspension.at >= operation.started)


def _checked(controller, name, number):
    """A checkpoint that may be restored now, and the host of the node."""
    kept, host = _known(controller, name, number)
    _refuse(controller, name)
    known = set(kept.suspension.jobs)
    if others := sorted({job.handle for job in controller.slurm.jobs([name])} - known):
        raise InvalidInput(
            f"{name} has jobs that are not in checkpoint {number} and would be lost: {', '.join(others)}"
        )
    return kept, host


def _known(controller, name, number):
    pool = controller.site.pool_of(name)
    nodes = controller.ledger.nodes([name], pool=pool.name)
    if not nodes or nodes[0].state is not State.READY:
        raise InvalidInput(f"{name} is {nodes[0].state if nodes else 'free'}: expected ready")
    kept = {each.number: each for each in controller.vmstates_of(name).checkpoints([name])}
    if number not in kept:
        there = ", ".join(map(str, kept)) or "none"
        raise InvalidInput(f"{name} has no checkpoint {number!r}; checkpoints: {there}")
    return kept[number], nodes[0].host


def _refuse(controller, name):
    if not controller.vmstates_of(name).keeps_checkpoints:
        raise InvalidInput(f"{name}: its provider can't keep checkpoints")
    # The ranks' memories would have to be of one moment.
    together, _, jobs = suspending.expand([name], controller.slurm.jobs())
    if len(together) > 1:
        handles = ", ".join(sorted({job.handle for job in jobs}))
        raise InvalidInput(f"{name} runs parallel jobs ({handles}), also on {', '.join(together[1:])}: no checkpoint")
