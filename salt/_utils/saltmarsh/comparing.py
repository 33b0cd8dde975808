"""
What differs between the ledger, the providers, Slurm, minion keys and DNS; what would mend it, and why.

Values only: nothing here talks to anything. In doubt nothing is mended: a host that does not answer says nothing of its
machines, and a node whose slurmd answers is not lost, whatever else is said of it.
"""

import enum
from dataclasses import dataclass

from saltmarsh.machine import PowerState
from saltmarsh.model import State
from saltmarsh.slurm import GROWING, NOT_GROWN

NOT_PROVEN_GONE = "not proven gone: "
"""How the reason of a failed node begins that was being removed."""

_ENDED = frozenset({PowerState.STOPPED, PowerState.CRASHED})
_POWERED_DOWN = frozenset({"POWERING_DOWN", "POWERED_DOWN"})
# Reasons that slurmctld gives by itself, not an administrator.
_SLURMS_OWN = ("ResumeTimeout reached", "Not responding")
# Slurm's states in which a node that is ready is not usable, and what an administrator should know of them.
_SILENT_STATES = {
    "INVALID_REG": "Slurm refuses its registration: less memory or CPUs than configured",
    "POWERING_UP": "Slurm waits for it to boot",
    "POWERING_DOWN": "Slurm is giving it up",
    "POWERED_DOWN": "Slurm has given it up",
    "NOT_RESPONDING": "its slurmd does not answer",
    "DOWN": "it is down in Slurm",
    "UNKNOWN": "Slurm has not heard of it since slurmctld started",
    "FUTURE": "Slurm takes it for a node that is yet to come",
    "ERROR": "Slurm has met an error of it",
    "FAIL": "it is marked as failing",
    "REBOOT_ISSUED": "it reboots for Slurm",
    "POWER_DOWN": "Slurm is about to give it up",
    "POWER_DRAIN": "Slurm gives it up when its jobs have ended",
    "DRAIN": "it is drained",
    "MAINTENANCE": "it is reserved for maintenance",
}


class Repair(enum.StrEnum):
    """What is done about a difference."""

    FAIL = "set it failed, and down in Slurm, which gives its jobs back to the queue"
    REMOVE = "remove what is left of it, and free its name"
    GROW = "grow it"
    SHRINK = "shrink it"
    RELEASE = "give it back to Slurm as one that is not there"
    PARK = "tell Slurm that it is not there"
    OFFER = "let Slurm start it for a job"
    ADDRESS = "set its address in Slurm"
    NAME = "put its name into DNS"
    PLACE = "write down where it is"


ENDING = 300
"""Seconds in which the jobs of a node may end: Slurm kills what does not, and runs the Epilog."""

# What can't be taken back waits until the difference has lasted.
PATIENT = frozenset({Repair.FAIL, Repair.REMOVE})
# What follows from the ledger and Slurm alone, and for which somebody may be waiting.
URGENT = frozenset({Repair.GROW, Repair.SHRINK, Repair.RELEASE, Repair.PARK})


@dataclass(frozen=True)
class Finding:
    """
    Something that differs: of which node (or machine, or host), what it is, and what would mend it, if anything.

    Before it has lasted for ``patience`` seconds it is nothing to speak of.
    """

    subject: str
    why: str
    repair: Repair | None = None
    pool: str | None = None
    patience: float = 0


def compare(snapshot):
    """
    Everything that differs.

    :param Snapshot snapshot: one look
    :rtype: tuple[Finding, ...]
    """
    found = [*_providers(snapshot)]
    for node in snapshot.nodes.values():
        if node.name not in snapshot.changed:
            found += _node(snapshot, node)
    free_of_pools = set()
    for pool in snapshot.site.pools.values():
        free_of_pools.update(pool.nodes)
        if stop := snapshot.stops.get(pool.name):
            waits = "" if stop.until else ", and waits to be reset"
            found.append(Finding(pool.name, f"pool {pool.name} does not grow{waits}: {stop.why}"))
        free = [name for name in pool.nodes if name not in snapshot.nodes and name not in snapshot.changed]
        for name in free:
            found += _free(snapshot, pool, name)
        if pool.on_demand and isinstance(snapshot.slurm, dict):
            makeable = [name for name in free if name in snapshot.slurm and name not in snapshot.taken]
            found += _on_demand(snapshot, pool, [snapshot.slurm[name] for name in makeable])
    for name, seen in snapshot.machines.items():
        if name not in free_of_pools and name not in snapshot.nodes:
            found.append(Finding(name, f"a machine of this cluster {_on(seen)}, and no pool has its name"))
    for name in snapshot.strays - free_of_pools - snapshot.nodes.keys():
        found.append(Finding(name, "volumes of this cluster without a machine, and no pool has its name"))
    return tuple(found)


def explain(node):
    """
    Why Slurm starts no job on a node; empty if it may.

    :param SlurmNode node: the node
    :rtype: str
    """
    words = [text for state, text in _SILENT_STATES.items() if state in node.states]
    if {"POWERED_DOWN", "NOT_RESPONDING"} <= node.states and "DOWN" not in node.states:
        words = ["Slurm has given it up, and its slurmd does not answer"]
    if not words:
        return ""
    return f"{words[0]} ({node.state}{f': {node.reason}' if node.reason else ''})"


def _providers(snapshot):
    if isinstance(snapshot.slurm, str):
        yield Finding("Slurm", f"can't be asked: {snapshot.slurm}")
    for name, inventory in snapshot.providers.items():
        if isinstance(inventory, str):
            yield Finding(name, f"can't be asked: {inventory}")
            continue
        for host, why in inventory.silent.items():
            yield Finding(host, f"does not answer: {why}")


def _node(snapshot, node):
    """A node that is not free."""
    if not (seen := snapshot.machines.get(node.name, [])) and (doubt := snapshot.doubt(node.pool, node.host)):
        yield Finding(node.name, f"its machine is unknown: {doubt}", pool=node.pool)
    if node.operation is not None:
        return  # somebody is at work on it
    if len(seen) > 1:
        yield Finding(node.name, f"there are machines of its name {_on(seen)}", pool=node.pool)
        return
    if node.state is State.READY:
        yield from _ready(snapshot, node, seen)
    elif node.state is State.FAILED:
        yield from _failed(snapshot, node, seen)
    elif node.state is State.SUSPENDED and seen:
        yield Finding(node.name, f"it is suspended, and its machine is {_on(seen)}", pool=node.pool)


def _ready(snapshot, node, seen):
    def finding(why, repair=None):
        return Finding(node.name, why, repair, node.pool)

    answers, trouble = _in_slurm(snapshot, node.name)
    if not seen and not snapshot.doubt(node.pool, node.host):
        if node.name in snapshot.saved:
            yield finding("its memory is in a state file, though nobody has suspended it")
        elif answers is False:
            yield finding(f"its machine is gone from {node.host or snapshot.provider_of[node.pool]}", Repair.FAIL)
            return
        else:
            yield finding("its machine is on no host that answers" + (", but its slurmd answers" if answers else ""))
    if seen and seen[0].state in _ENDED and answers is False:
        yield finding(f"its machine is {_on(seen)}", Repair.FAIL)
        return
    if seen and seen[0].state is not PowerState.RUNNING:
        yield finding(f"its machine is {_on(seen)}")
    if seen and node.host and seen[0].host != node.host:
        yield finding(f"it is on {seen[0].host}, not on {node.host}", Repair.PLACE)
    if trouble:
        yield finding(trouble, _given_up(snapshot, node))
    if answers and "COMPLETING" in snapshot.slurm[node.name].states:
        yield Finding(node.name, f"a job does not end: {snapshot.slurm[node.name].state}", None, node.pool, ENDING)
    # The stand-in's: its host has put it away and the ledger will learn it, or Slurm is reminded (standin).
    if answers and snapshot.slurm[node.name].address not in (node.address, snapshot.site.controller.address):
        yield finding(f"Slurm has it at {snapshot.slurm[node.name].address}, not at {node.address}", Repair.ADDRESS)
    if node.name not in snapshot.dns:
        yield finding("its name is not in DNS", Repair.NAME)
    if node.name not in snapshot.keys:
        yield finding("its minion key is not accepted: Salt can't reach it")


def _given_up(snapshot, node):
    """What is done about a ready node that Slurm has given up, or wants to be started anew."""
    pool = snapshot.site.pools.get(node.pool)
    known = snapshot.slurm.get(node.name)
    return Repair.SHRINK if pool and pool.on_demand and known and (known.given_up or known.wanted) else None


def _failed(snapshot, node, seen):
    def finding(why, repair=None):
        return Finding(node.name, f"{why} (it failed: {node.reason})", repair, node.pool)

    answers, _ = _in_slurm(snapshot, node.name)
    if snapshot.doubt(node.pool, node.host):
        return
    if node.name in snapshot.saved:
        yield finding("its memory is on disk: resume it, or shrink it with force=True")
    elif node.reason.startswith(NOT_PROVEN_GONE):
        yield finding("its removal has not ended", Repair.REMOVE)
    elif answers is not False:
        yield finding("its slurmd answers" if answers else "Slurm can't be asked")
    elif not seen:
        yield finding("its machine is gone", Repair.REMOVE)
    elif seen[0].state in _ENDED:
        yield finding(f"its machine is {_on(seen)}", Repair.REMOVE)
    else:
        yield finding(f"its machine is {_on(seen)}: look into it, and shrink it")


def _free(snapshot, pool, name):
    """A name that nobody has."""

    def finding(why, repair=None):
        return Finding(name, f"nobody has this name, but {why}", repair, pool.name)

    answers, _ = _in_slurm(snapshot, name)
    seen = snapshot.machines.get(name)
    left = [
        *([f"there is a machine {_on(seen)}"] if seen else []),
        *(["there are volumes of a machine"] if name in snapshot.strays else []),
        *(["its slurmd answers"] if answers else []),
        *(["a minion key is accepted"] if name in snapshot.keys else []),
        *(["it is in DNS"] if name in snapshot.dns else []),
        *(["it may enter the tunnel"] if name in snapshot.tunnel else []),
    ]
    if name in snapshot.saved:
        yield finding("there is a state file of a machine of this name")
    elif answers is not False and (seen or name in snapshot.strays):
        yield finding(f"{' and '.join(left)}: is it at work?")
    elif left:
        unsure = answers is None or snapshot.doubt(pool.name)
        yield finding(" and ".join(left), None if unsure else Repair.REMOVE)
    elif name in snapshot.taken:
        yield finding(f"there is {snapshot.taken[name]}")
    if not isinstance(snapshot.slurm, dict):
        return
    if name in snapshot.taken:
        yield from _can_not_be_made(snapshot.slurm.get(name), finding)
    elif not left:
        may_grow = pool.on_demand and pool.name not in snapshot.stops
        yield from _free_in_slurm(snapshot.slurm.get(name), pool, may_grow, finding)


def _can_not_be_made(node, finding):
    """Jobs wait for no machine that can't be made, as something is in its way."""
    if node and node.wanted:
        yield finding(f"Slurm waits for it, and it can't be made ({node.state})", Repair.RELEASE)
    elif node and node.startable:
        yield finding(f"Slurm would start it, and it can't be made ({node.state})", Repair.PARK)


def _free_in_slurm(node, pool, may_grow, finding):
    if node is None:
        yield finding("Slurm's configuration does not have it: run slurm.push_config")
    elif node.wanted:
        yield finding(f"Slurm waits for it to boot ({node.state})", Repair.GROW if may_grow else Repair.RELEASE)
    elif node.startable:
        if not pool.on_demand:
            yield finding(f"Slurm would start it for a job ({node.state})", Repair.PARK)
    elif node.absent and node.reason == GROWING:
        yield finding("Slurm expects it to boot", Repair.RELEASE)
    elif node.absent and node.reason.startswith(_SLURMS_OWN):
        yield finding(f"Slurm has lost patience with it: {node.reason}", Repair.RELEASE)
    elif node.absent and node.reason != NOT_GROWN:
        yield finding(f"Slurm has another reason for that: {node.reason}")
    elif not node.states & _POWERED_DOWN:
        yield finding(f"Slurm has it {node.state}{f': {node.reason}' if node.reason else ''}", Repair.RELEASE)


def _on_demand(snapshot, pool, free):
    """Slurm may start as many nodes of a pool as its limit leaves room for, and none of one that does not grow."""
    startable = [node for node in free if node.startable and not node.wanted]
    parked = [node for node in free if node.absent and node.reason == NOT_GROWN]
    room = _room(snapshot, pool, len(free)) - sum(node.wanted for node in free)
    stopped = pool.name in snapshot.stops
    for node in startable[max(0, room) :]:
        why = f"pool {pool.name} does not grow" if stopped else f"pool {pool.name} has all the nodes that it may have"
        yield Finding(node.name, f"Slurm would start it, but {why}", Repair.PARK, pool.name)
    for node in startable[: max(0, room)]:
        if node.passed_over:
            yield Finding(node.name, "Slurm may pass it over, as one that does not answer", Repair.OFFER, pool.name)
    for node in parked[: max(0, room - len(startable))]:
        yield Finding(node.name, f"pool {pool.name} is on demand, but Slurm may not start it", Repair.OFFER, pool.name)


def _room(snapshot, pool, free):
    if pool.name in snapshot.stops:
        return 0
    limit = pool.limits.max_nodes
    return free if limit is None else limit - sum(node.pool == pool.name for node in snapshot.nodes.values())


def _in_slurm(snapshot, name):
    """Whether its slurmd answers (None: that is not known), and why Slurm can't use it, if it can't."""
    if isinstance(snapshot.slurm, str):
        return None, ""
    node = snapshot.slurm.get(name)
    if node is None:
        return False, "it is not in Slurm's configuration: run slurm.push_config"
    return node.registered, explain(node)


def _on(seen):
    return " and ".join(f"{machine.state} on {machine.host}" for machine in seen)
