"""
What Slurm must know of nodes that are away: drained, their jobs suspended, and the stand-in answers for them.

The stand-in is a slurmd on the controller with a node of its own in no partition (docs/decisions/0007-stand-in.md).

slurmctld writes what it knows to disk at most every five seconds (SAVE_MAX_WAIT in its source). One that is killed
comes back with what was true before; nodes that have left or returned within those seconds are then as they were, for
Slurm alone. Within SlurmdTimeout it must be told again.
"""

import logging
from datetime import datetime

from saltmarsh.errors import Conflict
from saltmarsh.ledger import KEEP
from saltmarsh.model import State, nodeset

log = logging.getLogger(__name__)

REMEMBER_SECONDS = 60
_SUSPENDED_BY = "suspended by "


def reason(by, at, why):
    """
    What sinfo -R and the ledger say of a node that is away.

    :param str by: who wanted it
    :param float at: since when, seconds since the epoch
    :param str why: why, or nothing
    """
    when = datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds")
    return f"{_SUSPENDED_BY}{by} at {when}{f': {why}' if why else ''}"


def stand_in(controller, names):
    """From now on the stand-in answers Slurm's pings for these nodes."""
    controller.slurm.set_addresses(dict.fromkeys(names, controller.site.controller.address))


def stands_in(controller, node):
    """Whether the stand-in answers for a node, as Slurm has it."""
    return node.address == controller.site.controller.address


def remind(controller):
    """
    Tell Slurm again what it has forgotten of nodes that are suspended, or back.

    Only of nodes that no operation holds. Asks Slurm once, and for the jobs only if there are suspended nodes.

    :param Controller controller: what to act through
    :returns: the nodes of which it was told
    :rtype: ClusterShell.NodeSet.NodeSet
    :raises Unreachable: Slurm does not answer
    :raises SlurmError: it refused
    """
    away = _remind(controller, State.SUSPENDED, _taken_for_here, _tell_away)
    back = _remind(controller, State.READY, _taken_for_away, _tell_back)
    return nodeset([*away, *back])


def doubtful(controller, nodes):
    """
    Nodes of which Slurm has it otherwise than the ledger: here and not away, or away and not here.

    :param nodes: nodes that are suspended or ready
    :rtype: list[str]
    """
    found = []
    for state, forgotten in ((State.SUSPENDED, _taken_for_here), (State.READY, _taken_for_away)):
        if some := {node.name: node for node in nodes if node.state is state}:
            found += forgotten(controller, some)
    return found


def recover(controller, operation):
    """A reminder whose process died is begun anew by the next :func:`remind`, if it is still needed."""
    controller.ledger.finish(operation, "its process died")


def _remind(controller, state, forgotten, tell):
    nodes = {node.name: node for node in controller.ledger.nodes(states={state}) if node.operation is None}
    names = [name for name in forgotten(controller, nodes) if _is(controller, name, state)] if nodes else []
    if not names:
        return []
    try:
        operation, held = controller.ledger.begin("remind", None, names, expect={state}, to=state, reason=KEEP)
    except Conflict:
        return []  # somebody has begun to do something with them, and will tell Slurm
    log.warning("%s: Slurm has forgotten that they are %s, telling it again", nodeset(names), state)
    try:
        tell(controller, held)
    finally:
        controller.ledger.finish(operation)
    return names


def _is(controller, name, state):
    """Whether a machine is what the ledger has: if not, its host has moved it, and told Slurm (saltmarsh.leasing)."""
    look = controller.vmstates_of(name).look(name)
    if state is State.SUSPENDED:
        return look.machine is None
    return look.machine is not None and look.suspension is None


def _taken_for_here(controller, nodes):
    """Of nodes that are away, those that Slurm believes to be here."""
    known = controller.slurm.nodes(nodes)
    busy = {name for job in _running(controller, nodes) for name in job.nodes}
    return [
        name
        for name, node in known.items()
        if not stands_in(controller, node) or "DRAIN" not in node.states or name in busy
    ]


def _tell_away(controller, nodes):
    names = [node.name for node in nodes]
    # First: an order to stop that is on its way to a node which is away would reach it when it is back, and at work.
    stand_in(controller, names)
    controller.slurm.suspend_jobs(sorted({job.handle for job in _running(controller, names)}))
    for text in {node.reason for node in nodes}:
        controller.slurm.drain([node.name for node in nodes if node.reason == text], text)


def _taken_for_away(controller, nodes):
    """Of nodes that are back, those that Slurm believes to be away."""
    known = controller.slurm.nodes(nodes)
    return [name for name, node in known.items() if stands_in(controller, node) or _drained_by_us(node)]


def _tell_back(controller, nodes):
    slurm, names = controller.slurm, [node.name for node in nodes]
    slurm.set_addresses({node.name: node.address for node in nodes})
    waiting = {job.handle for job in slurm.jobs(names) if "SUSPENDED" in job.states}
    slurm.resume_jobs(sorted(waiting), REMEMBER_SECONDS)
    slurm.undrain([name for name, node in slurm.nodes(names).items() if _drained_by_us(node)])


def _drained_by_us(node):
    return "DRAIN" in node.states and node.reason.startswith(_SUSPENDED_BY)


def _running(controller, names):
    return [job for job in controller.slurm.jobs(names) if "RUNNING" in job.states]
