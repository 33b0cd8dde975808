"""From a machine that has booted to a node that Slurm uses; events only say where to look."""

import threading
from types import SimpleNamespace

import pytest
from views import states

from saltmarsh import joining
from saltmarsh.joining import Boot, Joiner, join
from saltmarsh.model import State

NODES = ["osg1", "osg2", "osg3"]


@pytest.fixture
def operation(controller, provider):
    """A grow whose nodes osg1 to osg3 are booting; their machines exist."""
    operation, nodes = controller.ledger.claim("grow", controller.site.pool("osg"), names=NODES)
    controller.slurm.expect({node.name: node.address for node in nodes})
    controller.ledger.move(operation, NODES, State.CREATING)
    for name in NODES:
        provider.add(name)
    controller.ledger.move(operation, NODES, State.BOOTING, host="hv1")
    return operation


@pytest.fixture
def joiner(controller):
    """A joiner; when a test closes it, its batches have ended."""
    made = Joiner(controller)
    yield made
    made.close()


def finish(joiner):
    """Wait until all that a joiner was told to do is done."""
    joiner._pool.shutdown()


def batch(operation):
    """The nodes of a grow, to be joined together."""
    return {Boot(name, operation.id) for name in NODES}


def functions(minions):
    """What the minions were asked, in order."""
    return [function for function, _ in minions.calls]


# Who is joined


def test_a_node_that_has_started_is_joined(controller, operation, joiner):
    joiner.started(["osg1"])
    finish(joiner)
    assert states(controller) == {"osg1": State.READY, "osg2": State.BOOTING, "osg3": State.BOOTING}


def test_nodes_that_start_together_are_joined_in_one_batch(controller, minions, operation, joiner):
    joiner.started(NODES)
    finish(joiner)
    assert set(states(controller).values()) == {State.READY}
    assert [names for function, names in minions.calls if function == "state.highstate"] == [frozenset(NODES)]


def test_without_an_event_nodes_are_found_by_looking(controller, minions, operation, joiner):
    minions.silent.add("osg2")
    joiner.look()
    while states(controller) != {"osg1": State.READY, "osg2": State.BOOTING, "osg3": State.READY}:
        assert State.FAILED not in states(controller).values()
    minions.silent.clear()
    joiner.look()
    while states(controller)["osg2"] is not State.READY:
        assert State.FAILED not in states(controller).values()


@pytest.fixture
def asked(minions, monkeypatch):
    """Who was asked for an answer, and with how many seconds for it; nobody gives one, and the seconds are over when
    the semaphore is released."""
    made = SimpleNamespace(calls=[], over=threading.Semaphore(0))

    def answering(names, timeout, over):
        made.calls.append((set(names), timeout))
        made.over.acquire()
        return frozenset()

    monkeypatch.setattr(minions, "answering", answering)
    return made


def test_a_slow_machine_is_given_more_time_at_each_try_and_is_asked_nothing_meanwhile(operation, joiner, asked):
    for tries in range(1, 6):
        while len(asked.calls) < tries:
            joiner.look()
        joiner.look()
        asked.over.release()
    finish(joiner)
    assert asked.calls == [(set(NODES), timeout) for timeout in (5, 10, 20, 40, 40)]


def test_a_machine_that_has_just_come_does_not_wait_for_slow_ones(controller, operation, joiner, asked):
    joiner.look()
    asked.over.release()
    later, _ = controller.ledger.claim("grow", controller.site.pool("osg"), names=["osg4"])
    controller.ledger.move(later, ["osg4"], State.CREATING)
    controller.ledger.move(later, ["osg4"], State.BOOTING, host="hv1")
    while len(asked.calls) < 3:
        joiner.look()
    asked.over.release(2)
    finish(joiner)
    assert asked.calls[0] == (set(NODES), 5)
    assert sorted(asked.calls[1:], key=lambda call: call[1]) == [({"osg4"}, 5), (set(NODES), 10)]


FORGED = {
    "a name that is free": ["osg4"],
    "names of no pool": ["ctl", "hv1", "*", ""],
    "the name of another pool's node": ["vn001"],
    "what no name can be": [
        "osg1\n",
        "OSG1",
        "\udcff",
        "osg[1-3]",
        "' OR 1=1 --",
        "%",
        "v" * 100_000,
    ],
    "nothing": [],
}


@pytest.mark.parametrize("names", FORGED.values(), ids=FORGED)
def test_a_hint_at_what_is_not_booting_does_nothing(names, controller, minions, operation, joiner):
    before = controller.ledger.nodes()
    joiner.started(names)
    finish(joiner)
    assert minions.calls == []
    assert controller.ledger.nodes() == before


@pytest.mark.parametrize("state", [State.READY, State.FAILED, State.DESTROYING])
def test_a_hint_at_a_node_in_another_state_does_nothing(state, controller, minions, operation, joiner):
    controller.ledger.move(operation, ["osg1"], state, reason="for the test")
    joiner.started(["osg1"])
    finish(joiner)
    assert minions.calls == []
    assert states(controller)["osg1"] is state


def test_a_hint_at_a_machine_that_does_not_answer_changes_nothing(controller, minions, operation, joiner):
    minions.silent.add("osg1")
    before = controller.ledger.nodes()
    joiner.started(["osg1"])
    finish(joiner)
    assert "state.highstate" not in functions(minions)
    assert controller.ledger.nodes() == before


def test_a_node_is_not_joined_twice_at_a_time(controller, minions, slurm, operation, joiner):
    under_way, go_on = threading.Event(), threading.Event()
    slurm.before["nodes"] = lambda: (under_way.set(), go_on.wait())
    joiner.started(NODES)
    under_way.wait()
    joiner.started(NODES)
    joiner.look()
    go_on.set()
    finish(joiner)
    assert functions(minions).count("state.highstate") == 1


# What is done


def test_a_node_with_other_modules_is_synchronised_first(controller, minions, operation):
    minions.outdated.add("osg2")
    join(controller, batch(operation), threading.Event())
    assert minions.calls[1:] == [("saltutil.sync_all", {"osg2"}), ("state.highstate", frozenset(NODES))]
    assert set(states(controller).values()) == {State.READY}


def test_each_node_is_judged_by_itself(controller, minions, operation):
    minions.answers["osg1"] = ["Rendering SLS 'base:munge' failed: no key"]
    minions.hanging.add("osg2")
    join(controller, batch(operation), threading.Event())
    assert {node.name: (node.state, node.reason) for node in controller.ledger.nodes()} == {
        "osg1": (State.FAILED, "highstate failed: Rendering SLS 'base:munge' failed: no key"),
        "osg2": (State.FAILED, "its minion did not answer, while it applied its states, for 300 s"),
        "osg3": (State.READY, "Slurm has it"),
    }


def test_a_node_is_ready_only_when_its_slurmd_has_registered(controller, minions, slurm, operation):
    minions.without_slurmd.update(["osg1", "osg2"])
    slurm.forget("osg2")
    join(controller, batch(operation), threading.Event())
    assert {node.name: (node.state, node.reason) for node in controller.ledger.nodes()} == {
        "osg1": (State.FAILED, "slurmd did not register in 0.2 s: Slurm has it DOWN+CLOUD+POWERED_DOWN"),
        "osg2": (State.FAILED, "slurmd did not register in 0.2 s: Slurm does not know it"),
        "osg3": (State.READY, "Slurm has it"),
    }


def test_a_node_that_was_given_up_meanwhile_is_left_alone(controller, minions, slurm, operation):
    def give_up():
        slurm.before.clear()
        controller.ledger.move(operation, ["osg2"], State.DESTROYING)

    slurm.before["nodes"] = give_up
    join(controller, batch(operation), threading.Event())
    assert states(controller) == {"osg1": State.READY, "osg2": State.DESTROYING, "osg3": State.READY}


def test_a_name_that_was_given_up_and_grown_anew_is_joined_while_the_machine_before_it_is_still_waited_for(
    controller, minions, provider, operation, joiner, monkeypatch
):
    under_way, go_on = threading.Event(), threading.Event()
    answer = minions.call

    def call(names, function, *args, timeout, over=None):
        if function == "state.highstate" and not under_way.is_set():
            under_way.set()
            go_on.wait()
            assert over()
            return iter(())
        return answer(names, function, *args, timeout=timeout, over=over)

    monkeypatch.setattr(minions, "call", call)
    joiner.started(NODES)
    under_way.wait()
    controller.ledger.move(operation, NODES, State.DESTROYING)
    controller.ledger.move(operation, NODES, State.FREE)
    controller.ledger.finish(operation, "interrupted")
    anew, _ = controller.ledger.claim("grow", controller.site.pool("osg"), names=NODES)
    controller.ledger.move(anew, NODES, State.CREATING)
    controller.ledger.move(anew, NODES, State.BOOTING, host="hv1")
    joiner.look()
    while set(states(controller).values()) != {State.READY}:
        assert State.FAILED not in states(controller).values()
    go_on.set()
    finish(joiner)
    assert set(states(controller).values()) == {State.READY}


def test_a_batch_that_fails_as_a_whole_is_told_and_tried_again(controller, slurm, operation, joiner, caplog):
    slurm.before["nodes"] = slurm.go_down
    joiner.started(NODES)
    while "joining osg[1-3] failed" not in caplog.text:
        assert set(states(controller).values()) == {State.BOOTING}
    slurm.before.clear()
    slurm.reachable = True
    while set(states(controller).values()) != {State.READY}:
        joiner.look()


def test_looking_that_fails_is_told(controller, minions, operation, joiner, caplog, monkeypatch):
    def fail(names, timeout, over):
        raise OSError("the master's socket is gone")

    monkeypatch.setattr(minions, "answering", fail)
    joiner.look()
    finish(joiner)
    assert "looking for osg[1-3] failed" in caplog.text
    assert "the master's socket is gone" in caplog.text


# One at a time


def test_one_process_at_a_time_joins(controller):
    with joining.joiner(controller) as first:
        assert isinstance(first, Joiner)
        for _ in range(2):
            with joining.joiner(controller) as second:
                assert second is None
    with joining.joiner(controller) as third:
        assert isinstance(third, Joiner)


def test_who_joins_makes_way_at_once_even_if_it_waits_for_a_slow_machine(controller, minions, operation, monkeypatch):
    asked = threading.Event()

    def answering(names, timeout, over):
        asked.set()
        while not over():
            pass
        return frozenset()

    monkeypatch.setattr(minions, "answering", answering)
    with joining.joiner(controller) as joiner:
        joiner.look()
        asked.wait()
    assert set(states(controller).values()) == {State.BOOTING}


def test_who_joins_makes_way_at_once_even_if_nodes_never_register(controller, minions, operation, monkeypatch):
    monkeypatch.setattr(joining, "REGISTER_SECONDS", 3600)
    minions.without_slurmd.update(NODES)
    with joining.joiner(controller) as joiner:
        joiner.started(NODES)
        while {node.reason for node in controller.ledger.nodes()} != {joining.CONFIGURED}:
            assert set(states(controller).values()) == {State.BOOTING}
    assert set(states(controller).values()) == {State.BOOTING}
