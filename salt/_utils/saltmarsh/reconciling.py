"""
Reconcile: look at everything, and mend what differs.

Whatever is mended is an operation that holds the node in the ledger first: nobody else is at work on it, and if the
process dies in between, whoever comes next ends it.
"""

import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from saltmarsh.comparing import PATIENT, Finding, Repair, compare
from saltmarsh.errors import SaltmarshError
from saltmarsh.hostlist import fold_words
from saltmarsh.ledger import KEEP, RESTING
from saltmarsh.model import State, nodeset
from saltmarsh.observing import observe
from saltmarsh.pools import Limits
from saltmarsh.removing import RELEASE_SECONDS, remove

log = logging.getLogger(__name__)

GRACE = 900
"""Seconds that a difference must have lasted before something is removed for it."""

VERB = "reconcile"


@dataclass(frozen=True)
class Seen:
    """A finding, and since when it has been one (seconds since the epoch)."""

    finding: Finding
    since: float

    def due(self, at, grace):
        """Whether it may be mended now."""
        return self.finding.repair is not None and (self.finding.repair not in PATIENT or at - self.since >= grace)


def reconcile(controller, *, grace=GRACE, test=False, say=log.info):
    """
    Compare ledger, providers, Slurm, minion keys and DNS, and mend what differs.

    :param Controller controller: what to act through
    :param float grace: seconds that a difference must have lasted before something is removed for it
    :param bool test: mend nothing
    :param say: called with lines of progress
    :returns: everything that differs, and whether it was (would be) mended now
    :rtype: list[tuple[Seen, bool]]
    :raises LedgerError: the ledger can't be used
    """
    snapshot = observe(controller)
    seen = _since(snapshot, compare(snapshot), grace, _read(controller))
    due = {each for each in seen if each.due(snapshot.at, grace)}
    if not test:
        _write(controller, snapshot.at, seen)
        _mend(controller, snapshot, [each.finding for each in due], say)
    return [(each, each in due) for each in seen]


def remembered(controller):
    """
    What differed when somebody last looked.

    :rtype: tuple[Seen, ...]
    """
    return tuple(_read(controller)[1].values())


def recover(controller, operation):
    """
    End what a dead process was mending: what was being removed is removed, other nodes are let go.

    :param Controller controller: what to act through
    :param Operation operation: the operation, adopted
    :raises SaltmarshError: that can't be done now
    """
    halfway = {
        node.name: node.reason
        for node in _nodes(controller, operation)
        if node.operation == operation.id and node.state in (State.CLAIMED, State.DESTROYING)
    }
    pool = controller.site.pool(operation.pool) if halfway else None
    stuck = remove(controller, pool, operation, halfway) if halfway else {}
    controller.ledger.finish(operation, "; ".join(["its process died", *fold_words(stuck)]))


class Reconciler:
    """
    Reconciles in a thread of its own, one look at a time.

    :param Controller controller: what to act through
    :param float grace: as of :func:`reconcile`
    """

    def __init__(self, controller, grace=GRACE):
        self._controller = controller
        self._grace = grace
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="reconcile")
        self._look = None

    def look(self):
        """Begin to reconcile, unless that is under way; returns at once."""
        if self._look is None or self._look.done():
            self._look = self._pool.submit(self._reconcile)

    def close(self):
        """Begin nothing more; returns when what is under way has ended."""
        self._pool.shutdown(cancel_futures=True)

    def _reconcile(self):
        try:
            reconcile(self._controller, grace=self._grace, say=log.warning)
        except Exception:  # the thread's last chance to be heard; the next look is soon
            log.exception("reconcile failed")


def _since(snapshot, findings, grace, before):
    """Findings with since when they have been there: those of the last look, if that is not long ago."""
    at, known = before
    if snapshot.at - at > grace:
        known = {}
    return tuple(
        Seen(finding, known[_key(finding)].since if _key(finding) in known else snapshot.at) for finding in findings
    )


def _key(finding):
    # What follows the colon is what somebody else says of it, each time in other words.
    return finding.subject, finding.why.partition(":")[0]


def _read(controller):
    """When somebody last looked, and what there was; nothing if that can't be read, so that all is new."""
    try:
        kept = json.loads(_file(controller).read_text())
        seen = [
            Seen(
                Finding(row["subject"], row["why"], row["repair"] and Repair(row["repair"]), row["pool"]), row["since"]
            )
            for row in kept["findings"]
        ]
        return kept["at"], {_key(each.finding): each for each in seen}
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0, {}


def _write(controller, at, seen):
    path = _file(controller)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    rows = [vars(each.finding) | {"since": each.since} for each in seen]
    new.write_text(json.dumps({"at": at, "findings": rows}))
    new.replace(path)


def _file(controller):
    return Path(controller.site.state_dir, "findings.json")


def _mend(controller, snapshot, findings, say):
    groups = {}
    for finding in findings:
        groups.setdefault((finding.repair, finding.pool), []).append(finding)
    for (repair, pool), members in groups.items():
        for line in fold_words({finding.subject: finding.why for finding in members}):
            say(f"{line}: {repair}")
        try:
            _MEND[repair](controller, snapshot, pool, members)
        except SaltmarshError as err:
            log.warning("%s: not done now (%s): %s", nodeset(each.subject for each in members), repair, err)


@contextmanager
def _held(controller, names, pool, state):
    """Nodes that are at rest, held as they are."""
    operation, _ = controller.ledger.begin(VERB, pool, names, expect={state}, to=state, reason=KEEP)
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
        if any(node.operation == operation.id and node.state not in RESTING for node in _nodes(controller, operation)):
            controller.ledger.abandon(operation)
        else:
            controller.ledger.finish(operation, outcome)


def _nodes(controller, operation):
    return controller.ledger.nodes(operation.nodes)


def _fail(controller, snapshot, pool, findings):
    by_reason = {}
    for finding in findings:
        by_reason.setdefault(finding.why, []).append(finding.subject)
    for why, names in by_reason.items():
        operation, _ = controller.ledger.begin(VERB, pool, names, expect={State.READY}, to=State.FAILED, reason=why)
        with _ended(controller, operation):
            controller.slurm.down([name for name in names if name in snapshot.slurm], why)


def _remove(controller, snapshot, pool, findings):
    why = {finding.subject: finding.why for finding in findings}
    known = controller.site.pool(pool)
    if failed := [name for name in why if name in snapshot.nodes]:
        operation, _ = controller.ledger.begin(VERB, pool, failed, expect={State.FAILED}, to=State.DRAINING)
        with _ended(controller, operation):
            remove(controller, known, operation, {name: why[name] for name in failed})
    if free := [name for name in why if name not in snapshot.nodes]:
        with _claimed(controller, free, pool, "left over") as (operation, addresses):
            for name in addresses:
                controller.ledger.move(operation, {name}, State.DESTROYING, reason=why[name])
            remove(controller, known, operation, {name: why[name] for name in addresses})


def _release(controller, snapshot, pool, findings):
    with _claimed(controller, _names(findings), pool, "given back to Slurm") as (_, addresses):
        controller.slurm.release(addresses, RELEASE_SECONDS)


def _park(controller, snapshot, pool, findings):
    with _claimed(controller, _names(findings), pool, "parked") as (_, addresses):
        controller.slurm.park(addresses)


def _address(controller, snapshot, pool, findings):
    names = _names(findings)
    with _held(controller, names, pool, State.READY):
        controller.slurm.set_addresses({name: snapshot.nodes[name].address for name in names})


def _name(controller, snapshot, pool, findings):
    names = _names(findings)
    with _held(controller, names, pool, State.READY):
        controller.dns.add({name: snapshot.nodes[name].address for name in names})


def _place(controller, snapshot, pool, findings):
    names = _names(findings)
    with _held(controller, names, pool, State.READY) as operation:
        for name in names:
            (machine,) = snapshot.machines[name]
            controller.ledger.move(operation, {name}, State.READY, host=machine.host, reason="found there")


def _names(findings):
    return [finding.subject for finding in findings]


_MEND = {
    Repair.FAIL: _fail,
    Repair.REMOVE: _remove,
    Repair.RELEASE: _release,
    Repair.PARK: _park,
    Repair.ADDRESS: _address,
    Repair.NAME: _name,
    Repair.PLACE: _place,
}
