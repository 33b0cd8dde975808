"""The ledger: who gets which names, what may follow what, and who answers for it."""

import os
import sqlite3
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from ClusterShell.NodeSet import NodeSet

from saltmarsh import ledgerfile
from saltmarsh.errors import Conflict, InvalidInput, LedgerError, NotEnoughFree
from saltmarsh.ledger import RESTING, Ledger
from saltmarsh.model import TRANSITIONS, Owner, State
from saltmarsh.pools import Site

# The states on the way of a node from claimed to each other state.
WAYS = {
    State.CLAIMED: [],
    State.CREATING: [State.CREATING],
    State.BOOTING: [State.CREATING, State.BOOTING],
    State.READY: [State.CREATING, State.BOOTING, State.READY],
    State.DRAINING: [State.CREATING, State.BOOTING, State.READY, State.DRAINING],
    State.SUSPENDING: [State.CREATING, State.BOOTING, State.READY, State.SUSPENDING],
    State.SUSPENDED: [State.CREATING, State.BOOTING, State.READY, State.SUSPENDING, State.SUSPENDED],
    State.RESUMING: [State.CREATING, State.BOOTING, State.READY, State.SUSPENDING, State.SUSPENDED, State.RESUMING],
    State.DESTROYING: [State.DESTROYING],
    State.FAILED: [State.FAILED],
}


@pytest.fixture
def pool(site):
    """16 nodes, of which 12 may exist at the same time."""
    return site.pool("virtual")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger"


@pytest.fixture
def ledger(path):
    with Ledger(path) as ledger:
        yield ledger


@pytest.fixture
def bring(ledger, pool):
    """A function that claims nodes and brings them to a state, within one unfinished operation, which it returns."""

    def bring(names, state):
        operation, _ = ledger.claim("grow", pool, names=NodeSet(names))
        for step in WAYS[state]:
            ledger.move(operation, NodeSet(names), step, host="hv1", reason="as the test wants it")
        return operation

    return bring


def states(ledger):
    return {node.name: node.state for node in ledger.nodes()}


def free(ledger, pool, names):
    """Destroy nodes that rest."""
    operation, _ = ledger.begin("shrink", pool.name, names, expect=RESTING, to=State.DESTROYING)
    ledger.move(operation, names, State.FREE)
    ledger.finish(operation)


# Claiming


def test_claims_hand_out_names_in_the_order_of_the_pool_with_their_addresses(ledger, pool):
    _, first = ledger.claim("grow", pool, count=2)
    _, second = ledger.claim("grow", pool, count=1)
    assert [(node.name, node.address) for node in first + second] == [
        ("vn001", "10.77.0.101"),
        ("vn002", "10.77.0.102"),
        ("vn003", "10.77.0.103"),
    ]


def test_a_claim_returns_what_stands_in_the_ledger(ledger, pool):
    operation, nodes = ledger.claim("grow", pool, count=2, reason="for the test")
    assert nodes == ledger.nodes()
    assert {(node.pool, node.state, node.host, node.reason, node.operation) for node in nodes} == {
        ("virtual", State.CLAIMED, None, "for the test", operation.id)
    }
    assert ledger.operations() == (operation,)
    assert (operation.verb, operation.pool, str(operation.nodes)) == ("grow", "virtual", "vn[001-002]")
    assert operation.owner == Owner.current()


def test_a_freed_name_is_the_next_one_to_be_claimed(ledger, pool, bring):
    ledger.finish(bring("vn[001-003]", State.READY))
    free(ledger, pool, ["vn002"])
    _, nodes = ledger.claim("grow", pool, count=2)
    assert [node.name for node in nodes] == ["vn002", "vn004"]


def test_a_claim_of_names_gets_exactly_these(ledger, pool):
    _, nodes = ledger.claim("grow", pool, names=NodeSet("vn[016,009]"))
    assert [(node.name, node.address) for node in nodes] == [("vn009", "10.77.0.109"), ("vn016", "10.77.0.116")]


def test_a_claim_is_all_or_none(ledger, site):
    ledger.claim("grow", site.pool("osg"), count=2)
    before = ledger.nodes(), ledger.operations(unfinished=False)
    with pytest.raises(NotEnoughFree, match=r"^pool osg: 2 of 4 names free, 3 asked for$"):
        ledger.claim("grow", site.pool("osg"), count=3)
    assert (ledger.nodes(), ledger.operations(unfinished=False)) == before


def test_a_claim_may_be_content_with_a_minimum(ledger, site):
    ledger.claim("grow", site.pool("osg"), count=1)
    _, nodes = ledger.claim("grow", site.pool("osg"), count=4, minimum=2)
    assert [node.name for node in nodes] == ["osg2", "osg3", "osg4"]


def test_a_claim_of_names_may_be_content_with_a_minimum(ledger, pool, bring):
    bring("vn[001-002]", State.READY)
    _, nodes = ledger.claim("grow", pool, names=NodeSet("vn[002-004]"), minimum=2)
    assert [node.name for node in nodes] == ["vn003", "vn004"]
    with pytest.raises(NotEnoughFree, match=r"^pool virtual: 0 of 2 names free, 1 asked for$"):
        ledger.claim("grow", pool, names=NodeSet("vn[003-004]"), minimum=1)


def test_a_pool_grows_to_its_max_nodes_and_no_further(ledger, pool):
    ledger.claim("grow", pool, count=10)
    with pytest.raises(NotEnoughFree, match=r"^pool virtual: limit of 12 nodes leaves room for 2, 3 asked for$"):
        ledger.claim("grow", pool, count=3)
    _, nodes = ledger.claim("grow", pool, count=3, minimum=1)
    assert len(nodes) == 2


def test_max_nodes_counts_only_the_nodes_of_its_pool(ledger, site):
    ledger.claim("grow", site.pool("osg"), count=4)
    ledger.claim("grow", site.pool("virtual"), count=12)


def test_a_claim_of_taken_names_tells_the_state_of_each(ledger, pool, bring):
    bring("vn[001-002]", State.READY)
    bring("vn003", State.FAILED)
    with pytest.raises(Conflict, match=r"^pool virtual: not free: vn003 failed, vn\[001-002\] ready$"):
        ledger.claim("grow", pool, names=NodeSet("vn[001-005]"))
    assert not ledger.nodes(["vn004", "vn005"])


def test_a_claim_of_another_pools_name_is_refused(ledger, pool):
    with pytest.raises(InvalidInput, match=r"^osg1 is not of pool virtual, whose nodes are vn\[001-016\]$"):
        ledger.claim("grow", pool, names=NodeSet("osg1,vn001"))
    assert ledger.operations() == ()


@pytest.mark.parametrize(
    "numbers", [{"count": 0}, {"count": -1}, {"names": []}, {"count": 2, "minimum": 3}, {"count": 2, "minimum": 0}]
)
def test_a_claim_with_numbers_that_do_not_fit_is_refused(numbers, ledger, pool):
    with pytest.raises(InvalidInput, match=r"^pool virtual: at least -?\d of -?\d nodes can't be claimed$"):
        ledger.claim("grow", pool, **numbers)


def test_an_address_is_not_given_to_two_nodes_when_pillar_has_moved_it(ledger, pool, pillar, bring):
    bring("vn001", State.READY)
    pillar["elastic"]["pools"]["virtual"]["nodes"] = "new[01-16]"
    moved = Site.from_pillar(pillar).pool("virtual")
    with pytest.raises(
        Conflict, match=r"^pool virtual: new01's address 10\.77\.0\.101 is in use by vn001 ready, .* shrink that first$"
    ):
        ledger.claim("grow", moved, count=1)
    assert list(states(ledger)) == ["vn001"]


def test_free_names_are_those_without_a_row(ledger, pool, bring):
    bring("vn[002-004]", State.FAILED)
    assert str(ledger.free_names(pool)) == "vn[001,005-016]"


# Moving


@pytest.mark.parametrize("to", State)
@pytest.mark.parametrize("before", WAYS)
def test_a_node_moves_only_as_the_model_says(before, to, ledger, bring):
    operation = bring("vn001", before)
    if to in TRANSITIONS[before]:
        ledger.move(operation, ["vn001"], to, reason="because")
        assert ledger.history("vn001")[-1].after is to
    else:
        with pytest.raises(Conflict, match=f"^can't become {to}: vn001 {before}$"):
            ledger.move(operation, ["vn001"], to, reason="because")
        assert states(ledger) == {"vn001": before}


def test_a_move_is_for_all_nodes_or_for_none(ledger, bring):
    operation = bring("vn[001-002]", State.CREATING)
    ledger.move(operation, ["vn001"], State.DESTROYING)
    with pytest.raises(Conflict, match=r"^can't become booting: vn001 destroying$"):
        ledger.move(operation, NodeSet("vn[001-002]"), State.BOOTING)
    assert states(ledger) == {"vn001": State.DESTROYING, "vn002": State.CREATING}


def test_a_node_keeps_its_host_until_it_gets_another(ledger, bring):
    operation = bring("vn001", State.SUSPENDED)
    ledger.move(operation, ["vn001"], State.RESUMING)
    assert ledger.nodes()[0].host == "hv1"
    ledger.move(operation, ["vn001"], State.READY, host="hv2")
    assert ledger.nodes()[0].host == "hv2"


def test_a_node_does_not_fail_without_a_reason(ledger, bring):
    operation = bring("vn001", State.BOOTING)
    with pytest.raises(InvalidInput, match=r"^vn001 can't become failed without a reason$"):
        ledger.move(operation, ["vn001"], State.FAILED)


def test_a_freed_node_leaves_its_history(ledger, pool, bring):
    ledger.finish(bring("vn001", State.READY))
    free(ledger, pool, ["vn001"])
    assert ledger.nodes() == ()
    history = ledger.history("vn001")
    assert [(step.before, step.after) for step in history] == [
        (State.FREE, State.CLAIMED),
        (State.CLAIMED, State.CREATING),
        (State.CREATING, State.BOOTING),
        (State.BOOTING, State.READY),
        (State.READY, State.DESTROYING),
        (State.DESTROYING, State.FREE),
    ]
    assert [step.operation for step in history] == [1, 1, 1, 1, 2, 2]
    assert [step.host for step in history] == [None, *["hv1"] * 5]
    assert [step.at for step in history] == sorted(step.at for step in history)


def test_thousands_of_nodes_move_in_one_transaction(ledger, pillar):
    pillar["elastic"]["network"]["prefix"] = 16
    pillar["elastic"]["pools"] = {"big": pillar["elastic"]["pools"]["osg"]}
    pillar["elastic"]["pools"]["big"] |= {"nodes": "n[0001-5000]", "addresses": "10.77.100.0-10.77.119.135"}
    pool = Site.from_pillar(pillar).pool()
    operation, nodes = ledger.claim("grow", pool, count=5000)
    ledger.move(operation, pool.nodes, State.CREATING, host="hv1")
    assert len({node.since for node in ledger.nodes(states=[State.CREATING])}) == 1
    assert len(ledger.nodes()) == len(nodes) == 5000


# Operations


def test_begin_moves_nodes_that_are_as_expected_and_holds_them(ledger, bring):
    ledger.finish(bring("vn[001-003]", State.READY))
    operation, nodes = ledger.begin(
        "shrink", "virtual", NodeSet("vn[001-002]"), expect={State.READY}, to=State.DRAINING, reason="too many"
    )
    assert nodes == ledger.nodes(states={State.DRAINING})
    assert [(node.name, node.host, node.reason, node.operation) for node in nodes] == [
        ("vn001", "hv1", "too many", operation.id),
        ("vn002", "hv1", "too many", operation.id),
    ]


BAD_BEGINNINGS = [
    # names, error, message
    ("", InvalidInput, r"^shrink: no nodes named$"),
    ("vn[001,009-010]", Conflict, r"^vn\[009-010\] is free$"),
    ("vn001,osg1", InvalidInput, r"^osg1 is not of pool virtual$"),
    ("vn[001-002]", Conflict, r"^expected ready: vn002 failed$"),
    ("vn[001,003]", Conflict, r"^vn003 ready: held by grow 3 \(process \d+\)$"),
]


@pytest.mark.parametrize(("names", "error", "message"), BAD_BEGINNINGS)
def test_begin_takes_all_nodes_or_none(names, error, message, ledger, site, bring):
    ledger.finish(bring("vn001", State.READY))
    ledger.finish(bring("vn002", State.FAILED))
    bring("vn003", State.READY)
    ledger.claim("grow", site.pool("osg"), count=1)
    before = ledger.nodes(), ledger.operations(unfinished=False)
    with pytest.raises(error, match=message):
        ledger.begin("shrink", "virtual", NodeSet(names), expect={State.READY}, to=State.DRAINING)
    assert (ledger.nodes(), ledger.operations(unfinished=False)) == before


def test_only_the_operation_that_holds_a_node_moves_it(ledger, bring):
    bring("vn001", State.READY)
    other = bring("vn002", State.READY)
    with pytest.raises(Conflict, match=r"^vn001 ready: not held by grow 2 \(process \d+\)$"):
        ledger.move(other, ["vn001"], State.DRAINING)


def test_finish_lets_go_of_nodes_that_rest(ledger, bring):
    operation = bring("vn001", State.READY)
    ledger.finish(operation, "1 node is ready")
    assert ledger.nodes()[0].operation is None
    assert ledger.operations() == ()
    (finished,) = ledger.operations(unfinished=False)
    assert finished.outcome == "1 node is ready"
    assert finished.finished >= finished.started


def test_a_finished_operation_moves_nothing_and_finishes_once(ledger, bring):
    operation = bring("vn001", State.READY)
    ledger.finish(operation, "enough")
    with pytest.raises(Conflict, match=r"^grow 1 \(process \d+\) is finished: enough$"):
        ledger.move(operation, ["vn001"], State.DRAINING)
    with pytest.raises(Conflict, match=r"^grow 1 \(process \d+\) is finished: enough$"):
        ledger.finish(operation)


def test_nobody_is_left_halfway_without_an_operation(ledger, bring):
    operation = bring("vn[001-002]", State.CREATING)
    ledger.move(operation, ["vn002"], State.BOOTING)
    ledger.finish(operation, "hv1 went away")
    assert [(node.name, node.state, node.reason, node.operation) for node in ledger.nodes()] == [
        ("vn001", State.FAILED, "left creating by grow 1: hv1 went away", None),
        ("vn002", State.FAILED, "left booting by grow 1: hv1 went away", None),
    ]


def test_the_operation_of_a_living_owner_is_not_adopted(ledger, bring):
    operation = bring("vn001", State.CREATING)
    assert ledger.abandoned() == ()
    with pytest.raises(Conflict, match=r"^grow 1 \(process \d+\) is at work$"):
        ledger.adopt(operation)


# Asking


def test_nodes_are_found_by_name_pool_and_state(ledger, site, bring):
    bring("vn[001-002]", State.READY)
    bring("vn010", State.FAILED)
    ledger.claim("grow", site.pool("osg"), count=1)

    def names(*args, **kwargs):
        return [node.name for node in ledger.nodes(*args, **kwargs)]

    assert names() == ["osg1", "vn001", "vn002", "vn010"]
    assert names(NodeSet("vn[002-009]")) == ["vn002"]
    assert names([]) == []
    assert names(pool="virtual") == ["vn001", "vn002", "vn010"]
    assert names(states={State.READY, State.CLAIMED}) == ["osg1", "vn001", "vn002"]
    assert names(["vn001", "vn010"], pool="virtual", states=[State.FAILED]) == ["vn010"]


def test_a_name_that_was_never_used_has_no_history(ledger):
    assert ledger.history("vn001") == ()


# The file


def test_a_ledger_that_is_opened_again_is_as_it_was(path, pool):
    with Ledger(path) as ledger:
        ledger.claim("grow", pool, count=1)
    assert [file.name for file in path.parent.iterdir()] == ["ledger"]
    with Ledger(path) as ledger:
        assert list(states(ledger)) == ["vn001"]


def test_only_its_owner_can_read_the_ledger_whatever_the_umask(path, pool):
    before = os.umask(0)
    try:
        with Ledger(path) as ledger:
            ledger.claim("grow", pool, count=1)
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"ledger": 0o600, "ledger-wal": 0o600, "ledger-shm": 0o600}


def test_threads_share_a_ledger(ledger, pool):
    start = threading.Barrier(6)

    def claim(_):
        start.wait()
        return [node.name for number in range(2) for node in ledger.claim("grow", pool, count=1)[1]]

    with ThreadPoolExecutor(6) as threads:
        claimed = [name for names in threads.map(claim, range(6)) for name in names]
    assert sorted(claimed) == list(pool.nodes[:12])


def test_closing_a_ledger_waits_for_the_thread_that_reads_it(path, bring):
    bring("vn[001-012]", State.READY)

    def read(ledger, begun):
        while ledger.nodes():
            begun.set()

    for _ in range(20):
        ledger, begun = Ledger(path), threading.Event()
        with ThreadPoolExecutor() as threads:
            reading = threads.submit(read, ledger, begun)
            begun.wait()
            ledger.close()
            with pytest.raises(LedgerError, match="closed database"):
                reading.result()


def test_a_ledger_of_a_newer_version_is_refused(path):
    Ledger(path).close()
    alter(path, "PRAGMA user_version = 2")
    with pytest.raises(LedgerError, match=r"^ledger .*/ledger: of a newer version \(schema 2, known is 1\)"):
        Ledger(path)


@pytest.mark.parametrize("statement", ["CREATE TABLE nodes (name TEXT)", "PRAGMA user_version = 0"])
def test_another_programs_database_is_refused(statement, path):
    alter(path, statement)
    with pytest.raises(LedgerError, match=r"^ledger .*/ledger: not a ledger; restore it from a backup, or name anot"):
        Ledger(path)


@pytest.mark.parametrize(
    "spoil",
    [pytest.param(lambda data: b"no database " * 999, id="garbage"), pytest.param(lambda data: data[:5000], id="cut")],
)
def test_a_damaged_ledger_is_refused_in_one_line(spoil, path, pool):
    with Ledger(path) as ledger:
        ledger.claim("grow", pool, count=4)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(LedgerError, match=r"^ledger .*/ledger: .*; restore it from a backup$"), Ledger(path) as ledger:
        ledger.nodes()


def test_a_ledger_that_cannot_be_made_is_told_in_one_line(tmp_path):
    with pytest.raises(LedgerError, match=r"^ledger .*/none/ledger: No such file or directory; its directory must be "):
        Ledger(tmp_path / "none" / "ledger")
    with pytest.raises(
        LedgerError, match=r"unable to open database file; it must be a file that the master's user owns"
    ):
        Ledger(tmp_path)


def test_a_ledger_that_stays_locked_says_so(path, pool, monkeypatch):
    monkeypatch.setattr(ledgerfile, "_BUSY_SECONDS", 0.05)
    with Ledger(path) as ledger:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(
            LedgerError, match=r"^ledger .*: database is locked; another process has held it for 60 sec"
        ):
            ledger.claim("grow", pool, count=1)
        other.close()
        ledger.claim("grow", pool, count=1)


def alter(path, statement):
    database = sqlite3.connect(path)
    database.execute(statement)
    database.close()
