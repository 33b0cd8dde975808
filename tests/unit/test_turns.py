"""One writer at a time, urgent ones first."""

import fcntl
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from saltmarsh.turns import turn_to_write


@pytest.fixture
def directory(tmp_path):
    """Where the locks are."""
    return tmp_path / "locks"


def turn(directory, entered, leave, urgent=False, host="hv1"):
    with turn_to_write(directory, f"writer-{host}", urgent):
        entered.append(urgent)
        leave.wait(10)


def test_one_at_a_time_writes(directory):
    lock, writing, most = threading.Lock(), [], []

    def write(urgent):
        with turn_to_write(directory, "writer-hv1", urgent):
            with lock:
                writing.append(urgent)
                most.append(len(writing))
            with lock:
                writing.pop()

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(write, [False, True] * 30))
    assert most == [1] * 60


def test_who_is_urgent_writes_next(directory, monkeypatch):
    """One writes; then one that is not urgent waits, then one that is."""
    waits = {False: threading.Event(), True: threading.Event()}
    real, role = fcntl.flock, threading.local()

    def flock(file, operation):
        if file.name.endswith(".lock") and operation == fcntl.LOCK_EX and hasattr(role, "urgent"):
            waits[role.urgent].set()
        return real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    entered, leave, done = [], threading.Event(), threading.Event()
    done.set()

    def wait(urgent):
        role.urgent = urgent
        turn(directory, entered, done, urgent)

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(turn, directory, entered, leave)
        while not entered:
            assert not first.done()
        for urgent in (False, True):
            pool.submit(wait, urgent)
            assert waits[urgent].wait(10)
        assert entered == [False]
        leave.set()
    assert entered == [False, True, False]


def test_each_storage_has_its_own_turn(directory):
    entered, at_once = [], threading.Event()
    at_once.set()
    with turn_to_write(directory, "writer-hv1", False):
        turn(directory, entered, at_once, host="hv2")
    assert entered == [False]


def test_a_turn_ends_with_an_error(directory):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), turn_to_write(directory, "writer-hv1", True):
            raise ZeroDivisionError
