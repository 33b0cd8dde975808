"""
From a machine that has booted to a node that Slurm uses: highstate with the ready gate in it, then slurmd registers.

One process at a time does this (:func:`joiner`): the engine, or a runner while no engine runs.
"""

import fcntl
import logging
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from saltmarsh import library
from saltmarsh.errors import SaltmarshError
from saltmarsh.minions import failures
from saltmarsh.model import State, nodeset

log = logging.getLogger(__name__)

PING_SECONDS = 5
PATIENT_SECONDS = 40
HIGHSTATE_SECONDS = 300
REGISTER_SECONDS = 60
_BATCHES = 8
_POLL = 0.25

ANSWERS = "minion answers, applying its states"
CONFIGURED = "configured, slurmd is registering"
_SILENT = "its minion did not answer, while it applied its states,"


@contextmanager
def joiner(controller):
    """
    Be the one process that joins nodes.

    :param Controller controller: what to act through
    :returns: a context; its value is a Joiner, or None while another process is the one
    """
    with Path(controller.site.state_dir, "joining.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            alone = False
        else:
            alone = True
            joiner = Joiner(controller)
            try:
                yield joiner
            finally:
                joiner.close()
                fcntl.flock(lock, fcntl.LOCK_UN)  # closing isn't enough if the process has forked meanwhile
    if not alone:
        yield None


@dataclass(frozen=True)
class Boot:
    """A node that is booting, for the operation that has made it: given up and grown anew, a name is another node."""

    name: str
    operation: int


class Joiner:
    """
    Joins nodes in batches, each in its own thread.

    One that is slow to answer is given twice the time at the next try, and is asked nothing else meanwhile: each
    question is a process on it, and as many as would come until it answers need more memory than a small one has.

    :param Controller controller: what to act through
    """

    def __init__(self, controller):
        self._controller = controller
        self._pool = ThreadPoolExecutor(_BATCHES, thread_name_prefix="join")
        self._busy = set()
        self._asked = set()
        self._tries = Counter()
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def started(self, names):
        """
        Begin to join nodes of which an event says that they have started; what is not booting is left out.

        :param names: the nodes; it need not be true
        """
        with self._lock:
            batch = _booting(self._controller, names) - self._busy
            self._busy |= batch
        if batch:
            self._pool.submit(self._join, batch)

    def look(self):
        """Begin to join the nodes that are booting and answer, event or not; returns at once."""
        with self._lock:
            booting = _booting(self._controller)
            self._tries = Counter({boot: tries for boot, tries in self._tries.items() if boot in booting})
            waiting = booting - self._busy - self._asked
            self._asked |= waiting
        for patience in {self._patience({boot}) for boot in waiting}:
            self._pool.submit(self._look_for, {boot for boot in waiting if self._patience({boot}) == patience})

    def close(self):
        """Begin nothing more, and wait for no more answers; returns when the batches under way have ended."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def _look_for(self, batch):
        names = {boot.name for boot in batch}
        with _heard("looking for", names):
            answering = self._controller.minions.answering(names, self._tried(batch), self._stop.is_set)
            if not self._stop.is_set():
                self.started(answering)
        with self._lock:
            self._asked -= batch

    def _join(self, batch):
        with _heard("joining", {boot.name for boot in batch}):
            join(self._controller, batch, self._stop, self._tried(batch))
        with self._lock:
            self._busy -= batch

    def _tried(self, batch):
        """Seconds for the next try."""
        patience = self._patience(batch)
        with self._lock:
            self._tries.update(batch)
        return patience

    def _patience(self, batch):
        return min(PING_SECONDS * 2 ** max(self._tries[boot] for boot in batch), PATIENT_SECONDS)


@contextmanager
def _heard(doing, names):
    """A thread's last chance to be heard. Its nodes stay booting: they are looked at again, until their timeout."""
    try:
        yield
    except Exception:
        log.exception("%s %s failed", doing, nodeset(names))


def _booting(controller, names=None):
    return {Boot(node.name, node.operation) for node in controller.ledger.nodes(names, states={State.BOOTING})}


def join(controller, batch, stop, patience=PING_SECONDS):
    """
    Join nodes that are booting; those that do not answer yet are left as they are, those that fail become failed.

    :param Controller controller: what to act through
    :param set[Boot] batch: the nodes
    :param threading.Event stop: when set, nothing more is waited for: nodes are left as they are
    :param float patience: seconds until one that does not answer is left as it is
    """
    _Batch(controller, batch, stop).join(patience)


class _Batch:
    """Nodes that are joined together."""

    def __init__(self, controller, batch, stop):
        self._controller = controller
        self._batch = batch
        self._names = {boot.name for boot in batch}
        self._stop = stop

    def join(self, patience):
        wanted = library.digest()
        replies = self._call(self._names, "grains.get", library.GRAIN, timeout=patience)
        libraries = {reply.minion: reply.value for reply in replies}
        answering = libraries.keys()
        self._note(answering, State.BOOTING, ANSWERS)
        if stale := {name for name, has in libraries.items() if has != wanted}:
            list(self._call(stale, "saltutil.sync_all", "base", timeout=HIGHSTATE_SECONDS))
        configured = self._configure(answering)
        self._wait_registered(configured)

    def _configure(self, names):
        """Apply their states; the nodes where that went well."""
        configured, silent = set(), set(names)
        for reply in self._call(names, "state.highstate", timeout=HIGHSTATE_SECONDS):
            silent.discard(reply.minion)
            if reply.ok:
                configured.add(reply.minion)
                self._note({reply.minion}, State.BOOTING, CONFIGURED)
            else:
                self._note({reply.minion}, State.FAILED, f"highstate failed: {failures(reply.value)}")
        if not self._stop.is_set():
            self._note(silent, State.FAILED, f"{_SILENT} for {HIGHSTATE_SECONDS} s")
        return configured

    def _call(self, names, function, *args, timeout):
        """Call a function on minions, for as long as somebody still wants one of the nodes."""
        if not names or self._is_over():
            return ()
        return self._controller.minions.call(names, function, *args, timeout=timeout, over=self._is_over)

    def _is_over(self):
        return self._stop.is_set() or not self._batch & _booting(self._controller, self._names)

    def _wait_registered(self, names):
        deadline = time.monotonic() + REGISTER_SECONDS
        waiting = set(names)
        while waiting and not self._is_over():
            known = self._controller.slurm.nodes(waiting)
            registered = {name for name, node in known.items() if node.registered}
            self._note(registered, State.READY, "Slurm has it")
            waiting -= registered
            if waiting and time.monotonic() > deadline:
                for name in waiting:
                    seen = f"Slurm has it {known[name].state}" if name in known else "Slurm does not know it"
                    self._note({name}, State.FAILED, f"slurmd did not register in {REGISTER_SECONDS} s: {seen}")
                return
            if waiting:
                self._stop.wait(_POLL)

    def _note(self, names, state, reason):
        """Write down how far nodes have come; those that were given up in the meantime are left out."""
        ledger = self._controller.ledger
        by_operation = defaultdict(set)
        for boot in self._batch & _booting(self._controller, names):
            by_operation[boot.operation].add(boot.name)
        running = {operation.id: operation for operation in ledger.operations()}
        for number, members in by_operation.items():
            try:
                ledger.move(running[number], members, state, reason=reason)
            except (KeyError, SaltmarshError) as err:
                log.warning("%s: %s: not noted: %s", ", ".join(sorted(members)), reason, err)
