"""
The ledger catches up with what hosts have done by themselves (:mod:`saltmarsh.leasing`).

Where ledger and Slurm differ about a node, its machine says who is right. If the machine is what the ledger has, Slurm
has forgotten it, and is told again (:mod:`saltmarsh.standin`). If not, a host has suspended or restored it.
"""

import logging

from saltmarsh import resuming, standin, suspending
from saltmarsh.errors import Conflict, SaltmarshError
from saltmarsh.leasing import DIED, KILLED, leases
from saltmarsh.machine import Phase, PowerState
from saltmarsh.model import State

log = logging.getLogger(__name__)


def catch_up(controller):
    """
    Write into the ledger what hosts have done by themselves to nodes that no operation holds.

    A node that a host is at work on is left alone: it bears a mark. What can't be found out now is logged.

    :param Controller controller: what to act through
    :returns: the names of which the ledger has learned something
    :rtype: list[str]
    """
    nodes = controller.ledger.nodes(states={State.READY, State.SUSPENDED})
    known = {node.name: node for node in nodes if node.operation is None}
    learned = []
    for name in {
        *standin.doubtful(controller, known.values()),
        *_elsewhere(controller, known),
        *_coming_back(controller, known),
        *_killed(controller, known),
    }:
        try:
            look = controller.vmstates_of(name).look(name)
            if _learn(controller, known[name], look) or _bury(controller, known[name], look):
                learned.append(name)
        except SaltmarshError as err:
            log.warning("%s: not known what its host has done: %s", name, err)
    return learned


def recover(controller, operation):
    """What a process that died was about to write is written anew by the next :func:`catch_up`."""
    controller.ledger.finish(operation, "its process died")


def _elsewhere(controller, known):
    """Nodes at work whose lease is on another host than the ledger has."""
    hosts = {name: set(job.nodes) for name, job in leases(controller).items() if job.nodes}
    return [
        name
        for name, node in known.items()
        if node.state is State.READY and name in hosts and node.host not in hosts[name]
    ]


def _coming_back(controller, known):
    """Nodes that are away, and whose lease runs: their host is at work on them, or has died over it."""
    running = {name for name, job in leases(controller).items() if "RUNNING" in job.states}
    return [name for name, node in known.items() if node.state is State.SUSPENDED and name in running]


def _killed(controller, known):
    """Nodes that a host has removed."""
    in_slurm = controller.slurm.nodes(known) if known else {}
    return [name for name, node in in_slurm.items() if node.reason.startswith(KILLED)]


def _learn(controller, node, look):
    runs = look.machine is not None and look.machine.state is PowerState.RUNNING and look.suspension is None
    mark = look.state.suspension if look.state else None
    # A restore may have failed: until the machine is fit for work it can be done again.
    if node.state is State.READY and look.machine is None and mark and mark.phase is not Phase.OVER:
        reason = standin.reason(mark.by, mark.at, mark.why)
        return _write(controller, node, State.SUSPENDED, node.host, reason, max(node.since, look.state.written))
    if node.state is State.READY and look.machine is None and look.state is None:
        return _write(controller, node, State.FAILED, node.host, controller.slurm.nodes([node.name])[node.name].reason)
    if runs and (node.state is State.SUSPENDED or node.host != look.machine.host):
        return _write(
            controller, node, State.READY, look.machine.host, f"its host {look.machine.host} has brought it back"
        )
    return False


def _bury(controller, node, look):
    """
    A node whose machine has died with its memory, as its host wrote that, or when it was just back.

    Its jobs are lost, and Slurm is told to requeue them.
    """
    # Looked at again: a machine is off as well when its memory is complete, and at the first look it may not have been.
    for each in (look, controller.vmstates_of(node.name).look(node.name)):
        if each.machine is None or not suspending.is_off(each.machine) or not resuming.lost(each):
            return False
        if node.state is State.READY and not each.suspension:
            return False  # nobody was at work on it: reconciling's
        writing = each.suspension and not each.suspension.ran
    reason = f"{KILLED}: its machine died while its memory was written" if writing else DIED
    if not _write(controller, node, State.FAILED, node.host, reason):
        return False
    # The stand-in's answers would take DOWN back (ReturnToService).
    controller.slurm.set_addresses({node.name: node.address})
    controller.slurm.down([node.name], reason)
    return True


def _write(controller, node, state, host, reason, at=None):
    try:
        operation, _ = controller.ledger.begin(
            "catch up", None, [node.name], expect={node.state}, to=state, reason=reason, at=at
        )
    except Conflict:
        return False  # somebody has begun to do something with it
    if host != node.host:
        controller.ledger.move(operation, [node.name], state, host=host, reason=reason)
    controller.ledger.finish(operation)
    log.info("%s: %s on %s: %s", node.name, state, host, reason)
    return True
