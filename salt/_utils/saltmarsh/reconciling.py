"""Reconcile: look at everything, remember since when something differs, and mend it when it is time."""

import json
import logging
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from saltmarsh import mending
from saltmarsh.comparing import PATIENT, URGENT, Finding, Repair, compare
from saltmarsh.model import State
from saltmarsh.observing import observe

log = logging.getLogger(__name__)

GRACE = 900
"""Seconds that a difference must have lasted before something is removed for it."""

_MOST_TASKS = 32


@dataclass(frozen=True)
class Seen:
    """A finding, and since when it has been one (seconds since the epoch)."""

    finding: Finding
    since: float

    def told(self, at):
        """Whether it has lasted long enough to speak of."""
        return at - self.since >= self.finding.patience

    def due(self, at, grace):
        """Whether it may be mended now."""
        return self.finding.repair is not None and (self.finding.repair not in PATIENT or at - self.since >= grace)


@dataclass(frozen=True)
class Look:
    """What there was when somebody looked."""

    at: float = 0.0  # seconds since the epoch
    seconds: float = 0.0  # how long it took
    seen: tuple[Seen, ...] = ()
    suspended: dict[tuple[str, str], int] = field(default_factory=dict)  # bytes on disk, by pool and host

    @property
    def told(self):
        """What of it is worth telling."""
        return tuple(each for each in self.seen if each.told(self.at))


def reconcile(controller, *, grace=GRACE, test=False, begin=None, say=log.info):
    """
    Compare ledger, providers, Slurm, minion keys and DNS, and mend what differs.

    :param Controller controller: what to act through
    :param float grace: seconds that a difference must have lasted before something is removed for it
    :param bool test: mend nothing
    :param begin: called with each task that is due; without it, they are carried out one after the other
    :param say: called with lines of progress
    :returns: everything that differs, and whether it was (would be) mended now
    :rtype: list[tuple[Seen, bool]]
    :raises SaltmarshError: the ledger can't be used, or Slurm can't be asked for the jobs that wait for nodes
    """
    began = time.monotonic()
    snapshot = observe(controller)
    before = last(controller)
    seen = _since(snapshot, compare(snapshot), grace, before)
    due = {each for each in seen if each.due(snapshot.at, grace)}
    if not test:
        look = Look(snapshot.at, time.monotonic() - began, seen, _suspended(snapshot, before.suspended))
        _write(controller, look)
        _mend(controller, snapshot, [each.finding for each in seen if each in due], begin, say)
    return [(each, each in due) for each in seen if each.told(snapshot.at)]


def answer_slurm(controller, *, begin=None, say=log.info):
    """
    Do what Slurm wants: start nodes for jobs, take away those that it has given up. Asks nobody but Slurm.

    :param Controller controller: what to act through
    :param begin: as of :func:`reconcile`
    :param say: called with lines of progress
    :raises SaltmarshError: as :func:`reconcile`
    """
    snapshot = observe(controller, machines=False)
    _mend(controller, snapshot, [each for each in compare(snapshot) if each.repair in URGENT], begin, say)


def last(controller):
    """
    What differed when somebody last looked.

    :param Controller controller: what to ask
    :rtype: Look
    """
    try:
        kept = json.loads(_file(controller).read_text())
        seen = [
            Seen(Finding(**row | {"repair": row["repair"] and Repair(row["repair"])}), since)
            for row, since in kept["seen"]
        ]
        suspended = {(pool, host): size for pool, host, size in kept["suspended"]}
        return Look(kept["at"], kept["seconds"], tuple(seen), suspended)
    except (OSError, ValueError, KeyError, TypeError):
        return Look()  # it can't be read: all is new


class Reconciler:
    """
    Looks in a thread of its own, and carries out each task in another. Nothing waits for them: what is under way when
    the process ends is ended by the next one, as after any crash.

    :param Controller controller: what to act through
    :param float grace: as of :func:`reconcile`
    """

    def __init__(self, controller, grace=GRACE):
        self._controller = controller
        self._grace = grace
        self._lock = threading.Lock()
        self._busy = set()
        self._slots = threading.BoundedSemaphore(_MOST_TASKS)
        self._wanted = threading.Event()
        self._everything = False
        self._closed = False
        threading.Thread(target=self._run, name="reconcile", daemon=True).start()

    def look(self, everything=True):
        """
        Look soon; returns at once.

        :param bool everything: at the providers, too; otherwise only at what Slurm wants
        """
        self._everything = self._everything or everything
        self._wanted.set()

    def close(self):
        """Look no more."""
        self._closed = True
        self._wanted.set()

    def _run(self):
        while self._wanted.wait() and not self._closed:
            self._wanted.clear()
            everything, self._everything = self._everything, False
            try:
                if everything:
                    reconcile(self._controller, grace=self._grace, begin=self._begin, say=log.warning)
                else:
                    answer_slurm(self._controller, begin=self._begin, say=log.warning)
            except Exception:  # the thread's last chance to be heard; the next look is soon
                log.exception("reconcile failed")

    def _begin(self, task):
        """Begin a task, unless one for a node of it is under way or waits."""
        with self._lock:
            if not self._busy.isdisjoint(task.names):
                return
            self._busy.update(task.names)
        threading.Thread(target=self._carry_out, args=(task,), name=f"{task.repair.name}", daemon=True).start()

    def _carry_out(self, task):
        try:
            with self._slots:
                task.carry_out(self._controller, log.warning)
        except Exception:  # as above
            log.exception("%s of %s failed", task.repair.name, ", ".join(task.names))
        finally:
            with self._lock:
                self._busy.difference_update(task.names)


def _mend(controller, snapshot, findings, begin, say):
    for task in mending.tasks(controller, snapshot, findings):
        if begin:
            begin(task)
        else:
            task.carry_out(controller, say)


def _since(snapshot, findings, grace, before):
    """Findings with since when they have been there: those of the last look, if that is not long ago."""
    # An administrator who will not wait (0) begins no other's wait anew.
    recent = snapshot.at - before.at <= (grace or GRACE)
    known = {_key(each.finding): each for each in before.seen} if recent else {}
    return tuple(
        Seen(finding, known[_key(finding)].since if _key(finding) in known else snapshot.at) for finding in findings
    )


def _suspended(snapshot, before):
    """What suspended nodes take on disk, by pool and host; of a host that does not answer, what they took before."""
    found = Counter()
    for node in snapshot.nodes.values():
        if node.state is State.SUSPENDED:
            where = node.pool, node.host or ""
            if snapshot.doubt(node.pool, node.host):
                found[where] = before.get(where, 0)
            else:
                found[where] += snapshot.saved.get(node.name, 0)
    return dict(found)


def _key(finding):
    # What follows the colon is what somebody else says of it, each time in other words.
    return finding.subject, finding.why.partition(":")[0]


def _write(controller, look):
    path = _file(controller)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    rows = [[vars(each.finding), each.since] for each in look.seen]
    suspended = [[*where, size] for where, size in look.suspended.items()]
    new.write_text(json.dumps({"at": look.at, "seconds": look.seconds, "seen": rows, "suspended": suspended}))
    new.replace(path)


def _file(controller):
    return Path(controller.site.state_dir, "findings.json")
