"""grow: nodes from a pool's free names to ready, all of them or none."""

import json
import logging
import time
from pathlib import Path

from saltmarsh import joining
from saltmarsh.cloud import render_map
from saltmarsh.errors import InvalidInput, OperationFailed
from saltmarsh.model import State
from saltmarsh.removing import remove

log = logging.getLogger(__name__)

_POLL = 0.25
_LOOK = 3.0
_AFTER_TIMEOUT = "not ready within {timeout:g} s"


def plan(controller, what, pool, minimum=None, host=None):
    """
    What :func:`grow` would do, and nothing else.

    :returns: the nodes with their addresses, and the map that would be run
    :rtype: dict
    """
    pool = _checked(controller, what, pool, minimum, host)
    names = controller.ledger.claimable(pool, **_claim(what, minimum))
    addresses = {name: pool.address_of(name) for name in names}
    return {"nodes": addresses, "map": render_map(pool, addresses, host)}


def grow(controller, what, pool=None, *, minimum=None, host=None, timeout=None, map_out=None, say=log.info):
    """
    Create nodes and bring them into Slurm; returns when Slurm can use them.

    :param Controller controller: what to act through
    :param what: how many (int), or which (NodeSet)
    :param str pool: the pool's name; may be left out where there is only one
    :param int minimum: be content with so many; by default it is all or none
    :param str host: the hypervisor on which they shall be; None leaves it to the driver
    :param float timeout: seconds until a node must be ready; by default the pool's ``boot_timeout``
    :param map_out: a file into which the salt-cloud map is written as well
    :param say: called with lines of progress
    :returns: for each node that is ready its address, host and the seconds of each phase; what failed and why
    :rtype: dict
    :raises InvalidInput: an argument is not acceptable
    :raises NotEnoughFree: fewer names are free
    :raises OperationFailed: the nodes did not all become ready; what was made is gone, or failed with a reason
    """
    pool = _checked(controller, what, pool, minimum, host)
    timeout = timeout or pool.limits.boot_timeout
    controller.ledger.claimable(pool, **_claim(what, minimum))  # a wrong argument is told before anything else is asked
    controller.slurm.ping()
    if host is not None:
        controller.cloud.check_host(pool.profile, host)
    operation, nodes = controller.ledger.claim("grow", pool, **_claim(what, minimum))
    growth = _Growth(controller, pool, operation, nodes, say)
    try:
        growth.create(host, map_out)
        growth.wait(operation.started + timeout)
    except BaseException as err:
        growth.undo(growth.unfinished(), f"{type(err).__name__}: {err}" if str(err) else type(err).__name__)
        controller.ledger.finish(operation, f"given up: {err or type(err).__name__}")
        raise
    return growth.conclude(timeout, len(nodes) if minimum is None else minimum)


class _Growth:
    """One grow under way."""

    def __init__(self, controller, pool, operation, nodes, say):
        self.controller = controller
        self.ledger = controller.ledger
        self.pool = pool
        self.operation = operation
        self.addresses = {node.name: node.address for node in nodes}
        self.say = say
        self.failed = {}
        self.say(f"{', '.join(self.addresses)}: claimed")

    def create(self, host, map_out):
        """Announce the names, and make the machines."""
        rendered = render_map(self.pool, self.addresses, host)
        if map_out:
            Path(map_out).write_text(json.dumps(rendered, indent=2) + "\n")
        self.controller.dns.add(self.addresses)
        self.controller.slurm.expect(self.addresses)
        self.ledger.move(self.operation, self.addresses, State.CREATING)
        self.controller.cloud.create(rendered, self._created)

    def _created(self, name, outcome):
        if isinstance(outcome, str):
            self._fail(name, outcome)
        else:
            self.ledger.move(self.operation, {name}, State.BOOTING, host=outcome.get("host"))
            self.say(f"{name}: created on {outcome.get('host', self.pool.profile)}, booting")

    def _fail(self, name, reason):
        self.failed[name] = reason
        self.say(f"{name}: failed: {reason}")

    def wait(self, deadline):
        """Until every node is ready or has failed, or the time is over. Joins the nodes itself if no engine does."""
        with joining.exclusively(self.controller.site.state_dir) as alone:
            joiner = joining.Joiner(self.controller) if alone else None
            try:
                self._watch(deadline, joiner)
            finally:
                if joiner:
                    joiner.close()

    def _watch(self, deadline, joiner):
        seen = {}
        look_at = 0.0
        while time.time() < deadline:
            nodes = self.ledger.nodes(self.addresses.keys() - self.failed.keys())
            for node in nodes:
                if seen.get(node.name) != (node.state, node.reason) and node.reason:
                    self.say(f"{node.name}: {node.state}: {node.reason}")
                seen[node.name] = (node.state, node.reason)
                if node.state is State.FAILED:
                    self.failed[node.name] = node.reason
            if all(node.state in (State.READY, State.FAILED) for node in nodes):
                return
            if joiner and time.monotonic() > look_at:
                joiner.look()
                look_at = time.monotonic() + _LOOK
            time.sleep(_POLL)

    def unfinished(self):
        """Names of this operation that are not ready, and not free."""
        return {node.name for node in self.ledger.nodes(self.addresses) if node.state is not State.READY}

    def conclude(self, timeout, least):
        """Keep what is ready if it is enough, give back the rest, and say what came of it."""
        for node in self.ledger.nodes(self.unfinished()):
            self.failed.setdefault(
                node.name, _AFTER_TIMEOUT.format(timeout=timeout) + f" ({node.reason or node.state})"
            )
        ready = self.addresses.keys() - self.failed.keys()
        enough = len(ready) >= least
        stuck = self.undo(self.failed.keys() if enough else self.addresses.keys(), None)
        if not enough:
            outcome = f"{len(ready)} of {len(self.addresses)} nodes became ready, {least} needed"
            self.ledger.finish(self.operation, outcome)
            why = "; ".join(f"{name}: {reason}" for name, reason in sorted(self.failed.items()))
            left = f"; left as failed: {', '.join(sorted(stuck))}" if stuck else "; everything made was removed"
            raise OperationFailed(f"pool {self.pool.name}: {outcome}: {why}{left}")
        report = {"nodes": {name: self._account(name) for name in sorted(ready)}, "failed": dict(self.failed)}
        self.ledger.finish(self.operation)
        return report

    def undo(self, names, reason):
        """Remove nodes and free their names; returns the names that could not be proven gone, with why."""
        if not names:
            return {}
        reasons = {name: reason or self.failed.get(name, "others failed") for name in names}
        self.say(f"{', '.join(sorted(names))}: removing")
        return remove(self.controller, self.pool, self.operation, reasons, say=self.say)

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


def _checked(controller, what, pool, minimum, host):
    """The pool, if the arguments fit it."""
    pool = controller.site.pool(pool)
    size = what if isinstance(what, int) else len(what)
    if minimum is not None and not (isinstance(minimum, int) and 1 <= minimum <= size):
        raise InvalidInput(f"min={minimum}: expected a number from 1 to {size}")
    if host is not None and host not in controller.site.hosts:
        raise InvalidInput(f"host {host!r} does not exist; hosts: {', '.join(controller.site.hosts)}")
    controller.cloud.check_profile(pool.profile)
    return pool


def _claim(what, minimum):
    return {"count": what, "minimum": minimum} if isinstance(what, int) else {"names": what, "minimum": minimum}


def recover(controller, operation):
    """
    Finish what a dead grow left: its nodes that are ready stay, the others are removed.

    :param Controller controller: what to act through
    :param Operation operation: the operation, adopted
    """
    pool = controller.site.pool(operation.pool)
    halfway = {
        node.name: f"its grow ({operation.id}) died"
        for node in controller.ledger.nodes(operation.nodes)
        if node.operation == operation.id and node.state is not State.READY
    }
    stuck = remove(controller, pool, operation, halfway) if halfway else {}
    controller.ledger.finish(operation, f"its process died; not removed: {stuck}" if stuck else "its process died")
    log.warning("grow %s of a dead process: removed %s", operation.id, ", ".join(halfway) or "nothing")
