"""The ledger among processes: many at once, killed at any moment, and taken over."""

import itertools
import multiprocessing
import os
import resource
import signal
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import pytest

from saltmarsh.errors import Conflict, LedgerError, NotEnoughFree
from saltmarsh.ledger import RESTING, Ledger
from saltmarsh.model import State
from saltmarsh.pools import Site

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger"


@pytest.fixture
def pool(site):
    return site.pool("virtual")


@pytest.fixture
def big_pool(pillar):
    """A pool of 2000 nodes without a limit."""
    pillar["elastic"]["network"]["prefix"] = 16
    pillar["elastic"]["pools"]["osg"] |= {"nodes": "n[0001-2000]", "addresses": "10.77.100.0-10.77.107.207"}
    return Site.from_pillar(pillar).pool("osg")


def together(count, function, *args):
    """Run a function in so many processes at the same moment, once in each, and return what they returned."""
    with ProcessPoolExecutor(count, FORK, initializer=_meet_at, initargs=(FORK.Barrier(count),)) as processes:
        return [future.result() for future in [processes.submit(_meet, function, *args) for _ in range(count)]]


def _meet_at(barrier):
    global _barrier
    _barrier = barrier


def _meet(function, *args):
    _barrier.wait()
    return function(*args)


def killed(function, *args):
    """Run a function in a process that is killed on the way, and return when it is dead, but not reaped."""
    process = FORK.Process(target=function, args=args)
    process.start()
    end = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert (end.si_code, end.si_status) == (os.CLD_KILLED, signal.SIGKILL)


def interrupt():
    raise KeyboardInterrupt


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_eight_processes_never_claim_a_name_twice(path, big_pool):
    shares = together(8, _claim_all, path, big_pool)
    claimed = [name for share in shares for name in share]
    assert len(claimed) == 2000
    assert set(claimed) == set(big_pool.nodes)
    with Ledger(path) as ledger:
        assert len({node.address for node in ledger.nodes()}) == 2000


def _claim_all(path, pool):
    names = []
    with Ledger(path) as ledger, suppress(NotEnoughFree):
        for size in itertools.cycle([1, 5, 20]):
            names += [node.name for node in ledger.claim("grow", pool, count=size, minimum=1)[1]]
    return names


def test_processes_that_need_a_ledger_at_the_same_moment_make_one(path, pool):
    shares = together(8, _claim_one, path, pool)
    assert sorted(shares) == sorted(pool.nodes[:8])


def _claim_one(path, pool):
    with Ledger(path) as ledger:
        return ledger.claim("grow", pool, count=1)[1][0].name


@pytest.mark.parametrize("call", range(1, 9))
def test_a_claim_killed_halfway_leaves_nothing(call, path, pool):
    killed(_claim_and_die, path, pool, call)
    with Ledger(path) as ledger:
        assert ledger.nodes() == ledger.operations(unfinished=False) == ledger.history("vn001") == ()
        assert len(ledger.claim("grow", pool, count=4)[1]) == 4


def _claim_and_die(path, pool, call):
    Ledger(path).claim("grow", _fateful(pool, call, die), count=4)


def _fateful(pool, call, fate):
    """A pool to which something happens when it is asked for an address, as a claim does before and after it writes."""
    calls = itertools.count(1)

    def address_of(name):
        if next(calls) == call:
            fate()
        return pool.address_of(name)

    return SimpleNamespace(**dict(pool) | {"nodeset": pool.nodeset, "room": pool.room, "address_of": address_of})


@pytest.mark.parametrize("call", range(1, 9))
def test_a_claim_interrupted_halfway_leaves_nothing(call, path, pool):
    with Ledger(path) as ledger:
        with pytest.raises(KeyboardInterrupt):
            ledger.claim("grow", _fateful(pool, call, interrupt), count=4)
        assert ledger.nodes() == ledger.operations(unfinished=False) == ledger.history("vn001") == ()
        assert len(ledger.claim("grow", pool, count=4)[1]) == 4


@pytest.mark.parametrize("steps", range(1, 40, 3))
def test_whatever_a_killed_process_leaves_can_be_taken_over_and_undone(steps, path, pool):
    reader, writer = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_live, args=(path, pool, writer))
    process.start()
    for _ in range(steps):
        reader.recv()
    process.kill()
    process.join()
    with Ledger(path) as ledger:
        for name in pool.nodes:
            history = ledger.history(name)
            states = [node.state for node in ledger.nodes([name])] or [State.FREE]
            assert [history[-1].after if history else State.FREE] == states
        abandoned = ledger.abandoned()
        assert {node.operation for node in ledger.nodes() if node.state not in RESTING} <= {o.id for o in abandoned}
        for operation in abandoned:
            ledger.finish(ledger.adopt(operation), "its owner died")
        assert {node.state for node in ledger.nodes()} <= RESTING
        assert ledger.operations() == ()


def _live(path, pool, writer):
    """Grow and shrink for ever; tell of every change."""
    ledger = Ledger(path)
    while True:
        operation, nodes = ledger.claim("grow", pool, count=3)
        names = [node.name for node in nodes]
        writer.send("claimed")
        for state in (State.CREATING, State.BOOTING, State.READY):
            ledger.move(operation, names, state)
            writer.send(state)
        ledger.finish(operation)
        writer.send("grown")
        operation, _ = ledger.begin("shrink", pool.name, names, expect={State.READY}, to=State.DESTROYING)
        writer.send("destroying")
        ledger.move(operation, names, State.FREE)
        writer.send("free")
        ledger.finish(operation)
        writer.send("shrunk")


def test_the_operation_of_a_killed_owner_is_abandoned_at_once(path, pool):
    killed(_grow_and_die, path, pool)
    with Ledger(path) as ledger:
        assert ledger.abandoned() == ledger.operations()
        assert str(ledger.abandoned()[0].nodes) == "vn[001-002]"
        with pytest.raises(Conflict, match=r"^vn\[001-002\] creating: held by grow 1 \(process \d+, which is gone\)$"):
            ledger.begin("shrink", pool.name, pool.nodes[:2], expect={State.CREATING}, to=State.DESTROYING)


def test_an_operation_that_is_let_go_of_is_abandoned_though_its_process_lives(path, pool):
    with Ledger(path) as ledger:
        operation, _ = ledger.claim("grow", pool, count=2)
        ledger.abandon(operation)
        (abandoned,) = ledger.abandoned()
        assert abandoned.id == operation.id
        with pytest.raises(Conflict, match=r"^grow 1 \(process \d+\) was taken over by process 0$"):
            ledger.move(operation, ["vn001"], State.CREATING)
        ledger.move(ledger.adopt(abandoned), ["vn001"], State.CREATING)


def test_of_many_that_adopt_an_operation_one_succeeds(path, pool):
    killed(_grow_and_die, path, pool)
    with Ledger(path) as ledger:
        (operation,) = ledger.abandoned()
    outcomes = together(6, _adopt, path, operation)
    assert outcomes.count("adopted") == 1
    assert outcomes.count("too late") == 5


def test_what_is_adopted_is_finished_by_its_new_owner_alone(path, pool):
    killed(_grow_and_die, path, pool)
    with Ledger(path) as ledger:
        (abandoned,) = ledger.abandoned()
        adopted = ledger.adopt(abandoned)
        with pytest.raises(Conflict, match=rf"was taken over by process {os.getpid()}$"):
            ledger.move(abandoned, ["vn001"], State.BOOTING)
        ledger.move(adopted, pool.nodes[:2], State.DESTROYING, reason="its owner died")
        ledger.move(adopted, pool.nodes[:2], State.FREE)
        ledger.finish(adopted, "undone")
        assert ledger.nodes() == ledger.operations() == ()


def _grow_and_die(path, pool):
    ledger = Ledger(path)
    operation, _ = ledger.claim("grow", pool, count=2)
    ledger.move(operation, pool.nodes[:2], State.CREATING)
    die()


def _adopt(path, operation):
    with Ledger(path) as ledger:
        try:
            ledger.adopt(operation)
        except Conflict:
            return "too late"
        return "adopted"


def test_a_ledger_does_not_cross_a_fork(path):
    reader, writer = FORK.Pipe(duplex=False)
    with Ledger(path) as ledger:
        process = FORK.Process(target=_ask, args=(ledger, writer))
        process.start()
        process.join()
    assert reader.recv().endswith("opened by another process; open it anew after a fork")


def _ask(ledger, writer):
    try:
        writer.send(ledger.nodes())
    except LedgerError as err:
        writer.send(str(err))


def test_a_full_disk_changes_nothing_and_is_told_in_one_line(path, big_pool):
    Ledger(path).close()
    with ProcessPoolExecutor(1, FORK) as processes, pytest.raises(LedgerError, match=r"^ledger .*; "):
        processes.submit(_claim_on_a_full_disk, path, big_pool).result()
    with Ledger(path) as ledger:
        assert ledger.nodes() == ledger.operations(unfinished=False) == ()


def _claim_on_a_full_disk(path, pool):
    """A limit on the size of files stands in for the disk: writing beyond it fails in the same place."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    with Ledger(path) as ledger:
        ledger.claim("grow", pool, count=2000)
