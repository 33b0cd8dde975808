"""grow: nodes from a pool's free names to ready, all of them or none."""

import json
import logging
import time
from contextlib import ExitStack
from pathlib import Path

from saltmarsh import breaker, joining, resuming, shrinking, suspending
from saltmarsh.cloud import render_map
from saltmarsh.errors import (
    InvalidInput,
    NoCapacity,
    NotEnoughFree,
    OperationFailed,
    ProviderError,
    QuotaExceeded,
    SaltmarshError,
    Unreachable,
)
from saltmarsh.hostlist import fold_words
from saltmarsh.leasing import leases
from saltmarsh.model import State, nodeset
from saltmarsh.removing import remove
from saltmarsh.slurm import ids_by_node

log = logging.getLogger(__name__)

_POLL = 0.25
_LOOK = 3.0
_TELL = 1.0
_MOST_REASONS = 3
_SILENT = "its minion has not answered"
_OTHERS_FAILED = "others failed"
_NOTHING_LEFT = "everything made was removed"


def plan(controller, what, pool=None, minimum=None, host=None):
    """
    What :func:`grow` would do, and nothing else; the same arguments and errors.

    :returns: the nodes with their addresses, and the map that would be run; which free names can't be used, if any
    :rtype: dict
    """
    pool = _pool(controller, what, pool, minimum, host)
    asleep = _asleep(controller, what, pool)
    more, least = _beyond(what, minimum, asleep)
    would = {"resume": asleep} if asleep else {}
    if asleep and not more:
        return would
    claim, profiles = _checked(controller, more, pool, least, host)
    addresses = {name: pool.address_of(name) for name in controller.ledger.claimable(pool, **claim)}
    rendered = render_map(pool, addresses, _hypervisor(controller, host), profiles[0])
    controller.cloud.plan(rendered)
    passed_over = {"passed over": claim["but"]} if claim["but"] else {}
    return would | passed_over | {"nodes": addresses, "map": rendered}


def grow(controller, what, pool=None, *, minimum=None, host=None, timeout=None, map_out=None, say=log.info):
    """
    Create nodes and bring them into Slurm; returns when Slurm can use them.

    Suspended nodes of the pool that have no job in their memory come first: to resume one takes seconds. Of free names,
    those are passed over under which a provider has something that the ledger does not know.

    :param Controller controller: what to act through
    :param what: how many (int), or which (NodeSet)
    :param str pool: the pool's name; may be left out where there is only one
    :param int minimum: be content with so many; by default it is all or none
    :param str host: the hypervisor on which they shall be, or the provider; None leaves it to the driver
    :param float timeout: seconds until a node must be ready; by default the pool's ``boot_timeout``
    :param map_out: a file into which the salt-cloud map is written as well
    :param say: called with lines of progress
    :returns: for each node that is ready its address, host and the seconds of each phase; what failed and why
    :rtype: dict
    :raises InvalidInput: an argument is not acceptable
    :raises NotEnoughFree: fewer names are free
    :raises Conflict: a name is taken
    :raises Unreachable: Slurm, the provider or the host does not answer
    :raises ProviderError: a machine of that name exists
    :raises Stopped: nodes of the pool have failed too often
    :raises OperationFailed: the nodes did not all become ready; what was made is gone, or failed with a reason
    """
    pool = _pool(controller, what, pool, minimum, host)
    woken = _wake(controller, _asleep(controller, what, pool), host, say)
    more, least = _beyond(what, minimum, woken)
    if woken and not more:
        return {"nodes": woken, "failed": {}}
    try:
        grown = _grow(controller, more, pool, least, host, timeout, map_out, say)
    except BaseException as err:
        if woken:
            suspending.suspend(controller, woken, by="elastic.grow", why=f"others failed: {err}", say=say)
        raise
    return {"nodes": woken | grown["nodes"], "failed": grown["failed"]}


def _grow(controller, what, pool, minimum, host, timeout, map_out, say):
    claim, profiles = _checked(controller, what, pool, minimum, host)
    for line in fold_words(claim["but"]):
        say(f"passed over: {line}, of which the ledger does not know")
    operation, nodes = controller.ledger.claim("grow", pool, **claim)
    growth = _Growth(controller, pool, operation, nodes, minimum or len(nodes), say)
    try:
        growth.create(profiles, _hypervisor(controller, host), map_out)
        growth.wait(timeout or pool.limits.boot_timeout)
        return growth.conclude()
    except BaseException as err:
        growth.give_up(err)
        raise


def _asleep(controller, what, pool):
    """
    Suspended nodes that could be resumed instead of making new ones; none where names are asked for.

    One that has a lease comes back where and when that starts.
    """
    if not isinstance(what, int):
        return []
    nodes = controller.ledger.nodes(pool=pool.name, states={State.SUSPENDED})
    idle = [node.name for node in nodes if node.operation is None]
    if not idle:
        return []
    jobs, held = ids_by_node(controller.slurm.jobs(idle)), leases(controller)
    return [name for name in idle if not jobs[name] and name not in held][:what]


def _beyond(what, minimum, woken):
    """What is asked for beyond nodes that are there already, and how many of it are enough."""
    if not woken:
        return what, minimum
    return what - len(woken), max(1, minimum - len(woken)) if minimum is not None else None


def _wake(controller, names, host, say):
    """Resume nodes; what was told of each. If they can't be resumed, new ones will be made instead."""
    if not names:
        return {}
    try:
        woken = resuming.resume(controller, names, host, say)
    except (ProviderError, OperationFailed, Unreachable) as err:
        say(f"not resumed: {err}")
        return {}
    addresses = {node.name: node.address for node in controller.ledger.nodes(woken)}
    return {
        name: {"address": addresses[name], "host": each["host"], "seconds": {"total": each["seconds"]}}
        for name, each in woken.items()
    }


def recover(controller, operation):
    """
    Finish what a dead grow left: its nodes that are ready stay, the others are removed.

    :param Controller controller: what to act through
    :param Operation operation: the operation, adopted
    :raises SaltmarshError: that can't be done now
    """
    stuck = _clear(controller, operation)
    controller.ledger.finish(operation, "; ".join(["its process died", *fold_words(stuck)]))


def waited_for(controller, operation):
    """
    The nodes of a dead grow that boot, and for which Slurm waits with a job: they need not be removed.

    :param Controller controller: what to ask
    :param Operation operation: the operation
    :rtype: frozenset[str]
    :raises SaltmarshError: Slurm can't be asked
    """
    booting = {node.name for node in _held(controller, operation) if node.state is State.BOOTING}
    known = controller.slurm.nodes(booting) if booting else {}
    return frozenset(name for name, node in known.items() if node.wanted)


def carry_on(controller, operation, names):
    """
    Wait for nodes of a dead grow until they are ready; what else it left is removed.

    :param Controller controller: what to act through
    :param Operation operation: the operation, adopted
    :param names: the nodes, as of :func:`waited_for`
    :raises SaltmarshError: none became ready, or that can't be done now
    """
    pool = controller.site.pool(operation.pool)
    nodes = controller.ledger.nodes(names)
    growth = _Growth(controller, pool, operation, nodes, 1, log.info)
    try:
        _clear(controller, operation, but=names)
        growth.wait(pool.limits.boot_timeout)
        growth.conclude()
    except BaseException as err:
        growth.give_up(err)
        raise


def _clear(controller, operation, but=frozenset()):
    """Remove what a dead grow left halfway; returns, by name, why something is not gone."""
    pool = controller.site.pool(operation.pool)
    held = _held(controller, operation)
    ready = {node.name for node in held if node.state is State.READY}
    _undrain(controller, ready)
    halfway = {node.name: f"its grow ({operation.id}) died" for node in held if node.name not in ready | but}
    log.warning("grow %s of a dead process: removing %s", operation.id, nodeset(halfway) or "nothing")
    return remove(controller, pool, operation, halfway) if halfway else {}


def _held(controller, operation):
    return [node for node in controller.ledger.nodes(operation.nodes) if node.operation == operation.id]


def _undrain(controller, names):
    """Of nodes that stay, those that were drained to be removed."""
    known = controller.slurm.nodes(names) if names else {}
    controller.slurm.undrain(
        [name for name, node in known.items() if "DRAIN" in node.states and node.reason == _OTHERS_FAILED]
    )


class _Growth:
    """One grow under way."""

    def __init__(self, controller, pool, operation, nodes, least, say):
        self.controller = controller
        self.ledger = controller.ledger
        self.pool = pool
        self.operation = operation
        self.addresses = {node.name: node.address for node in nodes}
        self.least = least
        self.ready = set()
        self.failed = {}
        self.refused = {}  # by name, the class of the error with which a machine could not be made
        self._no_room = {}  # by name, what the providers said that were tried
        self._secrets = {}  # by name, what its machine is told beyond the map
        self.over = False
        self._progress = _Progress(say)

    def create(self, profiles, host, map_out):
        """Announce the names, and make the machines; those for which one provider has no room, at the next."""
        self._progress.note(self.addresses, "claimed")
        rendered = render_map(self.pool, self.addresses, host, profiles[0])
        if map_out:
            _write_map(map_out, rendered)
        self.controller.dns.add(self.addresses)
        if self.pool.network.kind == "tunnel":
            told = self.controller.tunnel.add(self.addresses)
            self._secrets = {name: {"tunnel": text} for name, text in told.items()}
        planned = self._plan(rendered)
        self.controller.slurm.expect(self.addresses)
        self.ledger.move(self.operation, self.addresses, State.CREATING, host=host)
        for following in profiles[1:]:
            self.controller.cloud.create(planned, self._created_or_next)
            if not self._no_room:
                return
            if not (planned := self._planned_next(following)):
                return
        self.controller.cloud.create(planned, self._created)

    def _created_or_next(self, name, outcome):
        if getattr(outcome, "kind", None) in (NoCapacity, QuotaExceeded):
            self._no_room[name] = [*self._no_room.get(name, ()), str(outcome)]
            self.ledger.move(self.operation, {name}, State.CREATING, reason=str(outcome))
        else:
            self._created(name, outcome)

    def _planned_next(self, profile):
        """Plan at the next provider what had no room at the one before."""
        self._progress.note(self._no_room, f"no room, trying {profile}")
        addresses = {name: self.addresses[name] for name in self._no_room}
        try:
            return self._plan(render_map(self.pool, addresses, None, profile))
        except (ProviderError, Unreachable) as err:
            for name in addresses:
                self._created(name, str(err))
            return {}

    def _plan(self, rendered):
        planned = self.controller.cloud.plan(rendered)
        return {name: machine | self._secrets.get(name, {}) for name, machine in planned.items()}

    def _created(self, name, outcome):
        if isinstance(outcome, str):
            self.refused[name] = getattr(outcome, "kind", None)
            reason = "; ".join([*self._no_room.pop(name, ()), outcome])
            self.ledger.move(self.operation, {name}, State.FAILED, reason=reason)
        else:
            self._no_room.pop(name, None)
            self.ledger.move(self.operation, {name}, State.BOOTING, host=outcome.get("host"))
            self._progress.note([name], f"created on {outcome.get('host') or self.pool.profile}, booting")

    def wait(self, timeout):
        """Until enough nodes are ready, or can't be any more. Joins the nodes itself while no other process does."""
        deadline = self.operation.started + timeout
        with ExitStack() as held:
            joiner, look_at = None, 0.0
            while undecided := self._look():
                if time.time() >= deadline:
                    for node in undecided:
                        self.failed[node.name] = f"not ready within {timeout:g} s: {node.reason or _SILENT}"
                    break
                if time.monotonic() >= look_at:
                    joiner = joiner or held.enter_context(joining.joiner(self.controller))
                    if joiner:
                        joiner.look()
                    look_at = time.monotonic() + _LOOK
                time.sleep(_POLL)
        self._progress.tell()

    def _look(self):
        """See how far the nodes have come; returns those that are still to be waited for."""
        nodes = self.ledger.nodes(self.addresses)
        for node in nodes:
            if node.reason:
                self._progress.note([node.name], f"{node.state}: {node.reason}")
        self._progress.tell_if_due()
        self.ready = {node.name for node in nodes if node.state is State.READY}
        self.failed = {node.name: node.reason for node in nodes if node.state is State.FAILED}
        if len(nodes) - len(self.failed) < self.least:
            return []
        return [node for node in nodes if node.state not in (State.READY, State.FAILED)]

    def conclude(self):
        """Keep what is ready if it is enough, give back the rest, and say what came of it."""
        failed = {name: (why, self.refused.get(name)) for name, why in self.failed.items()}
        breaker.note(self.controller, self.pool, len(self.ready), failed)
        if len(self.ready) >= self.least:
            self._undo(self.failed, "done")
            return {"nodes": {name: self._account(name) for name in sorted(self.ready)}, "failed": self.failed}
        outcome = f"{len(self.ready)} of {len(self.addresses)} nodes became ready, {self.least} needed"
        left = self._undo(dict.fromkeys(self.addresses, _OTHERS_FAILED) | self.failed, outcome)
        reasons = fold_words(self.failed)
        if len(reasons) > _MOST_REASONS:
            reasons[_MOST_REASONS:] = [f"{len(reasons) - _MOST_REASONS} more reasons"]
        raise OperationFailed(f"pool {self.pool.name}: {outcome}: {'; '.join(reasons)}; {left}")

    def give_up(self, err):
        """
        Undo everything because of an error, unless it is over.

        :raises OperationFailed: in place of the error, if that is an interruption or something is left
        """
        if self.over:
            return
        interrupted = isinstance(err, (KeyboardInterrupt, SystemExit))
        why = "interrupted" if interrupted else str(err) or repr(err)
        left = self._undo(dict.fromkeys(self.addresses, why), f"given up: {why}")
        if interrupted or left != _NOTHING_LEFT:
            raise OperationFailed(f"pool {self.pool.name}: {why}; {left}") from err

    def _undo(self, reasons, outcome):
        """Remove nodes, except those that have jobs by now, and end the operation; returns in words what is left."""
        left = []
        try:
            busy = self._busy(reasons)
            left += fold_words({name: f"runs {', '.join(map(str, ids))} and stays" for name, ids in busy.items()})
            if idle := {name: reason for name, reason in reasons.items() if name not in busy}:
                self._progress.note(idle, "removing")
                self._progress.tell()
                left += fold_words(remove(self.controller, self.pool, self.operation, idle, say=self._progress.say))
            self.ledger.finish(self.operation, outcome)
        except SaltmarshError as err:
            self.ledger.abandon(self.operation)
            left.append(f"left to the engine: {nodeset(reasons)} ({err})")
        self.over = True
        return "; ".join(left) or _NOTHING_LEFT

    def _busy(self, names):
        """The ready ones of these nodes on which Slurm has started jobs, with the jobs' ids; the others are drained."""
        ready = {node.name for node in self.ledger.nodes(names, states={State.READY})}
        busy = shrinking.drain(self.controller, ready, _OTHERS_FAILED, 0) if ready else {}
        if not busy:
            return {}
        jobs = self.controller.slurm.jobs(busy)
        # One that waits for nodes that will not come has not begun: it returns to the queue with them.
        vain = {job.id for job in jobs if "CONFIGURING" in job.states and not ready.issuperset(job.nodes)}
        busy = {name: ids for name, ids in busy.items() if not vain.issuperset(ids)}
        self.controller.slurm.undrain(busy)
        return busy

    def _account(self, name):
        (node,) = self.ledger.nodes({name})
        rows = [row for row in self.ledger.history(name) if row.operation == self.operation.id]
        at = {(row.after, row.reason): row.at for row in rows}
        start = {row.after: row.at for row in reversed(rows)}
        answers = at.get((State.BOOTING, joining.ANSWERS), start[State.BOOTING])
        configured = at.get((State.BOOTING, joining.CONFIGURED), answers)
        seconds = {
            "claim": start[State.CREATING] - start[State.CLAIMED],
            "create": start[State.BOOTING] - start[State.CREATING],
            "boot": answers - start[State.BOOTING],
            "states": configured - answers,
            "register": start[State.READY] - configured,
            "total": start[State.READY] - start[State.CLAIMED],
        }
        return {
            "address": node.address,
            "host": node.host,
            "seconds": {phase: round(value, 1) for phase, value in seconds.items()},
        }


class _Progress:
    """Lines of progress: what becomes of many nodes within a second is one line."""

    def __init__(self, say):
        self.say = say
        self._last = {}
        self._untold = {}
        self._told_at = 0.0

    def note(self, names, words):
        """Something has become of nodes; told now or with the next."""
        for name in names:
            if self._last.get(name) != words:
                self._last[name] = words
                self._untold.setdefault(words, []).append(name)
        self.tell_if_due()

    def tell_if_due(self):
        """Say all that has been noted, unless something was said just now."""
        if self._untold and time.monotonic() > self._told_at + _TELL:
            self.tell()

    def tell(self):
        """Say all that has been noted."""
        for words, names in self._untold.items():
            self.say(f"{nodeset(names)}: {words}")
        self._untold = {}
        self._told_at = time.monotonic()


def _pool(controller, what, pool, minimum, host):
    """The pool, if the other arguments fit."""
    size = what if isinstance(what, int) else len(what)
    if minimum is not None and not (type(minimum) is int and 1 <= minimum <= size):
        raise InvalidInput(f"min={minimum}: expected a number from 1 to {size}")
    pool = controller.site.pool(pool)
    providers = [controller.cloud.provider(profile) for profile in pool.profiles] if host is not None else []
    if host is not None and host not in (*controller.site.hosts, *providers):
        raise InvalidInput(f"host {host!r} does not exist; hosts: {', '.join(controller.site.hosts)}")
    return pool


def _hypervisor(controller, host):
    """A host if it is one that the driver can be told; a provider is chosen by its profile."""
    return host if host in controller.site.hosts else None


def _checked(controller, what, pool, minimum, host):
    """How names are to be claimed, and the profiles by which they can be made, if nothing stands against it."""
    breaker.check(controller, pool)
    claim = {"count" if isinstance(what, int) else "names": what, "minimum": minimum, "but": {}}
    controller.ledger.claimable(pool, **claim)
    profiles = controller.cloud.check(pool, host)
    controller.slurm.ping()
    if isinstance(what, int):
        claim["but"] = _taken(controller, pool, profiles)
        try:
            controller.ledger.claimable(pool, **claim)
        except NotEnoughFree as err:
            raise NotEnoughFree(f"{err}; not counted: {'; '.join(fold_words(claim['but']))}") from err
    return claim, profiles


def _taken(controller, pool, profiles):
    """Free names of a pool under which no machine can be made, and what is in the way."""
    free = controller.ledger.free_names(pool)
    inventories = [controller.cloud.inventory(profile) for profile in profiles]
    return {name: why for each in inventories for name, why in each.taken.items() if name in free}


def _write_map(path, rendered):
    try:
        Path(path).write_text(json.dumps(rendered, indent=2) + "\n")
    except OSError as err:
        raise InvalidInput(f"map_out={path}: {err.strerror}") from err
