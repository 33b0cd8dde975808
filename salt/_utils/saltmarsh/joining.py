"""
From a machine that has booted to a node that Slurm uses: highstate with the ready gate in it, then slurmd registers.

One process at a time does this (:func:`joiner`): the engine, or a runner while no engine runs.
"""

import fcntl
import logging
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from saltmarsh import library
from saltmarsh.errors import SaltmarshError
from saltmarsh.minions import failures
from saltmarsh.model import State, nodeset

log = logging.getLogger(__name__)

PING_SECONDS = 5
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


class Joiner:
    """
    Joins nodes in batches, each in its own thread.

    :param Controller controller: what to act through
    """

    def __init__(self, controller):
        self._controller = controller
        self._pool = ThreadPoolExecutor(_BATCHES, thread_name_prefix="join")
        self._busy = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def started(self, names):
        """
        Begin to join nodes of which an event says that they have started; what is not booting is left out.

        :param names: the nodes; it need not be true
        """
        booting = {node.name for node in self._controller.ledger.nodes(names, states={State.BOOTING})}
        with self._lock:
            batch = booting - self._busy
            self._busy |= batch
        if batch:
            self._pool.submit(self._join, batch)

    def look(self):
        """Begin to join the nodes that are booting and answer, event or not; returns at once."""
        with self._lock:
            waiting = {node.name for node in self._controller.ledger.nodes(states={State.BOOTING})} - self._busy
        if waiting:
            self._pool.submit(self._look_for, waiting)

    def close(self):
        """Begin nothing more, and wait for no more answers; returns when the batches under way have ended."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def _look_for(self, names):
        with _heard("looking for", names):
            answering = self._controller.minions.answering(names, PING_SECONDS)
            if not self._stop.is_set():
                self.started(answering)

    def _join(self, names):
        with _heard("joining", names):
            join(self._controller, names, self._stop)
        with self._lock:
            self._busy -= names


@contextmanager
def _heard(doing, names):
    """A thread's last chance to be heard. Its nodes stay booting: they are looked at again, until their timeout."""
    try:
        yield
    except Exception:
        log.exception("%s %s failed", doing, nodeset(names))


def join(controller, names, stop):
    """
    Join nodes that are booting; those that do not answer yet are left as they are, those that fail become failed.

    :param Controller controller: what to act through
    :param names: the nodes
    :param threading.Event stop: when set, nothing more is waited for: nodes are left as they are
    """
    wanted = library.digest()
    replies = controller.minions.call(names, "grains.get", library.GRAIN, timeout=PING_SECONDS)
    libraries = {reply.minion: reply.value for reply in replies}
    answering = libraries.keys()
    _note(controller, answering, State.BOOTING, ANSWERS)
    if not answering:
        return
    if stale := {name for name, has in libraries.items() if has != wanted}:
        list(controller.minions.call(stale, "saltutil.sync_all", "base", timeout=HIGHSTATE_SECONDS, stop=stop))
    configured = set()
    silent = set(answering)
    for reply in controller.minions.call(answering, "state.highstate", timeout=HIGHSTATE_SECONDS, stop=stop):
        silent.discard(reply.minion)
        if reply.ok:
            configured.add(reply.minion)
            _note(controller, {reply.minion}, State.BOOTING, CONFIGURED)
        else:
            _note(controller, {reply.minion}, State.FAILED, f"highstate failed: {failures(reply.value)}")
    if not stop.is_set():
        _note(controller, silent, State.FAILED, f"{_SILENT} for {HIGHSTATE_SECONDS} s")
    _wait_registered(controller, configured, stop)


def _wait_registered(controller, names, stop):
    deadline = time.monotonic() + REGISTER_SECONDS
    waiting = set(names)
    while waiting and not stop.is_set():
        known = controller.slurm.nodes(waiting)
        registered = {name for name, node in known.items() if node.registered}
        _note(controller, registered, State.READY, "Slurm has it")
        waiting -= registered
        if waiting and time.monotonic() > deadline:
            for name in waiting:
                seen = f"Slurm has it {known[name].state}" if name in known else "Slurm does not know it"
                _note(controller, {name}, State.FAILED, f"slurmd did not register in {REGISTER_SECONDS} s: {seen}")
            return
        if waiting:
            stop.wait(_POLL)


def _note(controller, names, state, reason):
    """Write down how far nodes have come; those that were given up in the meantime are left out."""
    by_operation = defaultdict(set)
    for node in controller.ledger.nodes(names, states={State.BOOTING}):
        by_operation[node.operation].add(node.name)
    running = {operation.id: operation for operation in controller.ledger.operations()}
    for number, members in by_operation.items():
        try:
            controller.ledger.move(running[number], members, state, reason=reason)
        except (KeyError, SaltmarshError) as err:
            log.warning("%s: %s: not noted: %s", ", ".join(sorted(members)), reason, err)
