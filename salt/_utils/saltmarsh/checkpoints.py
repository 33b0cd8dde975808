"""
checkpoint and restore: a node's memory and disk at one moment, kept while the node goes on, and put back later.
"""

import logging
import time

from saltmarsh import migrating, resuming, suspending
from saltmarsh.errors import InvalidInput, OperationFailed, SaltmarshError
from saltmarsh.hostlist import fold_words
from saltmarsh.machine import PowerState
from saltmarsh.model import State

log = logging.getLogger(__name__)


def listing(controller, name):
    """
    The checkpoints of a node, latest first.

    :param str name: the node
    :returns: by number: file, size (bytes), age (seconds), who made it and why, and the jobs in it
    :rtype: dict[int, dict]
    """
    return {
        each.number: {
            "file": each.path,
            "size": each.size,
            "age": round(time.time() - each.written),
            "by": each.suspension.by,
            "why": each.suspension.why,
            "jobs": list(each.suspension.jobs),
        }
        for each in controller.vmstates_of(name).checkpoints.of(name)
    }


def checkpoint(controller, name, *, by, why="", say=log.info):
    """
    Keep a node's memory and disk as they are now. Its jobs stand still meanwhile, for seconds.

    :param Controller controller: what to act through
    :param str name: the node
    :param str by: who wants it
    :param str why: kept with it
    :param say: called with lines of progress
    :returns: its number and the seconds
    :rtype: dict
    :raises InvalidInput: the node is not ready, or runs a parallel job
    :raises NoCapacity: there is no room
    :raises OperationFailed: it could not be made; says what became of the node
    """
    refuse_parallel(controller, name)
    begun = time.monotonic()
    operation, done = suspending.carry_out(controller, "checkpoint", [name], by=by, why=why, urgent=False, say=say)
    number = failed = None
    try:
        (node,) = controller.ledger.nodes([name])
        try:
            number = controller.vmstates_of(name).checkpoints.keep(name, node.host)
        except SaltmarshError as err:
            failed = err
        troubles = migrating.come_back(controller, operation, done, None, say)
    except BaseException as err:
        migrating.give_up(controller, operation, err)
        raise
    resuming.finish(controller, operation, troubles)
    if failed:
        raise OperationFailed(f"{failed}; {name} and all jobs go on")
    return {"checkpoint": number, "seconds": round(time.monotonic() - begun, 2)}


def refuse_parallel(controller, name):
    """
    :raises InvalidInput: a job of the node runs on others as well: the ranks' memories must be of one moment
    """
    together, _, _ = suspending.expand([name], controller.slurm.jobs())
    if len(together) > 1:
        raise InvalidInput(f"{name} runs a parallel job ({', '.join(together)}): suspend these instead")


def restore(controller, name, number, *, by, say=log.info):
    """
    Put a node's memory and disk back to a checkpoint; what it has done since is lost.

    Its jobs must be those of the checkpoint: they go on from there.

    :param Controller controller: what to act through
    :param str name: the node
    :param int number: the checkpoint's
    :param str by: who wants it
    :param say: called with lines of progress
    :returns: the jobs that go on, and the seconds
    :rtype: dict
    :raises InvalidInput: no such checkpoint, or a job runs there that is not in it
    :raises OperationFailed: it could not be put back; says what became of the node
    """
    kept = checked(controller, name, number)
    begun = time.monotonic()
    operation, nodes = controller.ledger.begin(
        "restore", None, [name], expect={State.READY}, to=State.SUSPENDING, reason=f"restore checkpoint {number}"
    )
    leaving = suspending.Leaving(controller, operation, nodes, by, f"restore checkpoint {number}", False, say)
    try:
        leaving.drain()
        leaving.stop()
        controller.vmstates_of(name).checkpoints.lay_out(name, nodes[0].host, kept)
    except BaseException as err:
        leaving.give_up(err)
        raise
    try:
        _put_back(controller, operation, nodes[0], kept, say)
    except BaseException as err:
        migrating.give_up(controller, operation, err)
        raise
    return {"jobs": list(kept.suspension.jobs), "seconds": round(time.monotonic() - begun, 2)}


def checked(controller, name, number):
    """
    A checkpoint, if it may be restored now.

    :raises InvalidInput: no such checkpoint, or a job runs there that is not in it
    """
    pool = controller.site.pool_of(name)
    machines = controller.vmstates_of(name)
    kept = {each.number: each for each in machines.checkpoints.of(name)}
    if number not in kept:
        there = ", ".join(map(str, kept)) or "none"
        raise InvalidInput(f"{name} has no checkpoint {number!r}; checkpoints: {there}")
    refuse_parallel(controller, name)
    nodes = controller.ledger.nodes([name], pool=pool.name)
    if not nodes or nodes[0].state is not State.READY:
        raise InvalidInput(f"{name} is {nodes[0].state if nodes else 'free'}: expected ready")
    known = set(kept[number].suspension.jobs)
    if others := sorted({job.handle for job in controller.slurm.jobs([name])} - known):
        raise InvalidInput(
            f"{name} has jobs that are not in checkpoint {number} and would be lost: {', '.join(others)}"
        )
    return kept[number]


def recover(controller, operation):
    """
    Finish a restore whose process died if the node's own memory is gone; otherwise let the node go on.

    :param Controller controller: what to act through
    :param Operation operation: the operation, adopted
    :raises SaltmarshError: that can't be done now
    """
    for node in controller.ledger.nodes(operation.nodes, states={State.SUSPENDING}):
        machines = controller.vmstates_of(node.name)
        look = suspending.wait_idle(controller, node)
        off = look.machine is None or look.machine.state in (PowerState.STOPPED, PowerState.CRASHED)
        laid_out = [
            each
            for each in machines.checkpoints.of(node.name)
            if look.state and look.state.suspension and each.suspension.at == look.state.suspension.at
        ]
        if off and laid_out:
            _put_back(controller, operation, node, laid_out[0], log.info)
            return
    migrating.recover(controller, operation)


def _put_back(controller, operation, node, kept, say):
    """From the moment at which the node's own memory may go."""
    suspending.stand_in(controller, [node.name])
    controller.vmstates_of(node.name).checkpoints.rewind(node.name, node.host, kept)
    controller.ledger.move(operation, {node.name}, State.SUSPENDED, reason=f"as of checkpoint {kept.number}")
    say(f"{node.name}: memory and disk are those of checkpoint {kept.number}")
    troubles = migrating.come_back(controller, operation, [node.name], None, say)
    lines = fold_words(troubles)
    controller.ledger.finish(operation, "; ".join(lines) or "done")
    if lines:
        raise OperationFailed("; ".join(lines))
