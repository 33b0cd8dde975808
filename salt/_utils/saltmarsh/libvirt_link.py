"""
This process's connections to libvirt daemons, and how libvirt's errors are read.

The lower half of :mod:`saltmarsh.hypervisor`; nobody else uses it.
"""

import contextlib
import logging
import os
import threading
import time
from concurrent.futures import Future

import libvirt

from saltmarsh.errors import ProviderError, Unreachable

log = logging.getLogger(__name__)

if not hasattr(libvirt, "virConnect"):
    # Salt puts the directory of its cloud drivers on the path while it loads them, and one of them has this name.
    raise ImportError("libvirt-python is not installed for this Python")

CONNECT_TIMEOUT = 10  # seconds until a host that is silent is unreachable
RETRY_AFTER = 5  # seconds for which a failed attempt to connect stands for all who ask
_KEEPALIVE = (5, 3)  # seconds between probes, and how many may go unanswered before a connection is given up


def link(uri):
    """The one :class:`Link` of this process to a libvirt connection URI."""
    with _links_lock:
        return _links.setdefault(uri, Link(uri))


def drop_link(uri):
    """Let go of the :class:`Link` to a libvirt connection URI; it is closed when nobody uses it any more."""
    with _links_lock:
        _links.pop(uri, None)


@contextlib.contextmanager
def asking(host, connection, failure):
    """
    Turn what libvirt raises into one line.

    :param str host: for the message
    :param connection: which is used
    :param str failure: what can't be done if libvirt raises
    :raises Unreachable: the connection is gone, so what became of the call isn't known
    :raises ProviderError: libvirt answered
    """
    try:
        with _fork_guard.call():
            yield
    except libvirt.libvirtError as err:
        kind = ProviderError if connection.isAlive() else Unreachable
        raise kind(f"{host}: {failure}: {one_line(err)}") from err


def or_none(ask, code):
    """What ``ask`` returns, or None if libvirt answers with that error code."""
    try:
        return ask()
    except libvirt.libvirtError as err:
        if err.get_error_code() != code:
            raise
        return None


def one_line(err):
    return " ".join((err.get_error_message() or "unknown error").split())


class Link:
    """The connection to one libvirt daemon: made once, shared by all threads, made anew if it breaks."""

    def __init__(self, uri):
        self._uri = uri
        self._lock = threading.Lock()
        self._attempt = None
        self._began = 0.0

    def begin(self):
        """See to it that there is a connection or an attempt to make one; returns at once."""
        with self._lock:
            if self._attempt is None or self._is_over():
                _event_loop.start()
                self._attempt = Future()
                self._began = time.monotonic()
                # A thread of its own, because libvirt can't be told how long to try.
                threading.Thread(target=self._open, args=(self._attempt,), daemon=True).start()
            return self._attempt

    def wait(self, host):
        """
        The connection.

        :raises Unreachable: there is none, or none within the timeout
        """
        attempt = self.begin()
        try:
            return attempt.result(max(0.0, self._began + CONNECT_TIMEOUT - time.monotonic()))
        except TimeoutError as err:
            raise Unreachable(f"{host} can't be reached: {self._uri} is silent for {CONNECT_TIMEOUT} s") from err
        except libvirt.libvirtError as err:
            raise Unreachable(f"{host} can't be reached: {self._uri}: {one_line(err)}") from err

    def _is_over(self):
        """Whether the last attempt is no longer good."""
        if not self._attempt.done():
            return False
        if self._attempt.exception():
            return time.monotonic() > self._began + RETRY_AFTER
        return not self._attempt.result().isAlive()

    def _open(self, attempt):
        try:
            with _fork_guard.call():
                connection = libvirt.open(self._uri)
                # Drivers without a daemon have none to lose.
                or_none(lambda: connection.setKeepAlive(*_KEEPALIVE), libvirt.VIR_ERR_NO_SUPPORT)
            attempt.set_result(connection)
        except libvirt.libvirtError as err:
            attempt.set_exception(err)


class _EventLoop:
    """
    libvirt's event loop, which sends and answers the probes that tell a silent daemon from a slow one.

    It must be there before the first connection and then run for ever (virEventRegisterDefaultImpl).
    """

    def __init__(self):
        self._starting = threading.Lock()
        self._timer = None
        self._has_thread = False
        self._may_run = threading.Event()
        self._running = threading.Lock()

    def start(self):
        with self._starting:
            if self._timer is not None:
                return
            libvirt.registerErrorHandler(lambda _, error: log.debug("libvirt: %s", error), None)
            libvirt.virEventRegisterDefaultImpl()
            self._timer = libvirt.virEventAddTimeout(
                -1, lambda timer, _: libvirt.virEventUpdateTimeout(timer, -1), None
            )
            self._may_run.set()
            self._has_thread = True
            threading.Thread(target=self._run, name="libvirt events", daemon=True).start()

    def _run(self):
        while True:
            self._may_run.wait()
            with self._running:
                libvirt.virEventRunDefaultImpl()

    def pause(self):
        self._starting.acquire()
        if self._has_thread:
            self._may_run.clear()
            libvirt.virEventUpdateTimeout(self._timer, 0)  # ends the wait for events
            self._running.acquire()

    def resume(self):
        if self._has_thread:
            self._running.release()
            self._may_run.set()
        self._starting.release()

    def go_on_without_thread(self):
        self._has_thread = False
        self._starting.release()


class _ForkGuard:
    """
    Lets a process fork while it uses libvirt, as salt-cloud does for every map and query.

    A forked child has none of its parent's threads: a lock that one of them holds inside libvirt is locked for ever.
    So a fork waits for calls to end, and new ones for the fork. It doesn't wait long: a call that takes its time is
    waiting for an answer, and holds no lock that others need. Measured with four busy threads, GLib 2.74: 1 child in 6
    could not connect without this, 1 in 200 with it (Python also frees objects of libvirt between calls). Such a child
    reports its hosts as silent.

    A child must neither use its parent's connections nor close them, so it keeps them untouched and makes its own.
    They do without the event loop; libvirt then probes during calls only.
    """

    _PATIENCE = 1  # seconds

    def __init__(self):
        self._changed = threading.Condition()
        self._calls = 0
        self._forking = False

    @contextlib.contextmanager
    def call(self):
        with self._changed:
            self._changed.wait_for(lambda: not self._forking)
            self._calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    def before_fork(self):
        _event_loop.pause()
        with self._changed:
            self._forking = True
            self._changed.wait_for(lambda: self._calls == 0, self._PATIENCE)

    def after_fork_in_parent(self):
        with self._changed:
            self._forking = False
            self._changed.notify_all()
        _event_loop.resume()

    def after_fork_in_child(self):
        global _links, _links_lock
        self.__init__()
        _inherited.append(_links)
        _links, _links_lock = {}, threading.Lock()
        _event_loop.go_on_without_thread()


_event_loop = _EventLoop()
_fork_guard = _ForkGuard()
_links = {}
_links_lock = threading.Lock()
_inherited = []  # what closes these connections would end them for the parent

os.register_at_fork(
    before=_fork_guard.before_fork,
    after_in_parent=_fork_guard.after_fork_in_parent,
    after_in_child=_fork_guard.after_fork_in_child,
)
