"""Operations whose process died at any moment are finished or undone by whoever comes next."""

import multiprocessing
import os
import signal

import neighbours
import pytest
from neighbours.provider import KILL
from views import assert_undone, states, traces

from saltmarsh import recovery
from saltmarsh.errors import Conflict
from saltmarsh.growing import grow
from saltmarsh.model import State
from saltmarsh.pools import parse_nodes
from saltmarsh.shrinking import shrink

FORK = multiprocessing.get_context("fork")
NODES = ["osg1", "osg2", "osg3"]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(function):
    """Die when the verb calls this function of Slurm."""
    return lambda controller: controller.slurm.before.update({function: die})


def at_fault(function):
    """Die in this function of the cloud driver, at the second node."""
    return lambda controller: controller.minions.provider.fail(function, "osg2", KILL)


def at_states(state, reason=""):
    """Die when the ledger has a node in this state."""

    def arm(controller):
        move = controller.ledger.move

        def moved(operation, names, to, **kwargs):
            move(operation, names, to, **kwargs)
            if to is state and reason in kwargs.get("reason", ""):
                die()

        controller.ledger.move = moved

    return arm


GROW = {
    "before Slurm is told": at_call("expect"),
    "before a machine is made": at_states(State.CREATING),
    "while machines are made": at_fault("create"),
    "when a machine was made, before the ledger has it": at_fault("created"),
    "when a machine was made": at_states(State.BOOTING),
    "when minions have answered": at_states(State.BOOTING, "applying"),
    "when nodes are configured": at_states(State.BOOTING, "registering"),
}
SHRINK = {
    "before Slurm is told": at_call("drain"),
    "when nodes are drained": at_call("jobs"),
    "before machines are destroyed": at_states(State.DESTROYING),
    "while machines are destroyed": at_fault("destroy"),
    "when machines are gone": at_call("release"),
    "when a name is free": at_states(State.FREE),
}
NOTHING_DESTROYED_YET = {"before Slurm is told", "when nodes are drained"}


@pytest.fixture
def dies(pillar, tmp_path, controller):
    """Run a verb on the same site in a process that dies; this one's Slurm then knows what that one's did."""

    def run(verb, arm):
        file = tmp_path / "slurm"
        process = FORK.Process(target=_act, args=(pillar, tmp_path, file, verb, arm))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        controller.slurm.keep_in(file)
        for fault in ("create", "created", "destroy"):
            controller.minions.provider.mend(fault, "osg2")

    return run


def _act(pillar, directory, file, verb, arm):
    controller = neighbours.controller(pillar, directory)
    controller.slurm.keep_in(file)
    if verb is shrink:
        grow(controller, 3, "osg")
    arm(controller)
    if verb is recovery.recover_abandoned:
        verb(controller)
    else:
        verb(controller, parse_nodes("osg[1-3]"), "osg")


@pytest.mark.parametrize("arm", GROW.values(), ids=GROW)
def test_a_grow_that_died_is_undone(arm, controller, dies):
    dies(grow, arm)
    assert {node.state for node in controller.ledger.nodes()} - {State.READY, State.FAILED, State.FREE}
    assert recovery.recover_abandoned(controller) == 1
    assert_undone(controller)
    assert set(grow(controller, 3, "osg")["nodes"]) == set(NODES)


def test_nodes_that_were_ready_when_their_grow_died_stay(controller, dies):
    dies(grow, at_states(State.READY))
    recovery.recover_abandoned(controller)
    ready = states(controller)
    assert set(ready.values()) == {State.READY}
    assert traces(controller) == ready.keys()
    assert controller.ledger.operations() == ()


@pytest.mark.parametrize("moment", SHRINK)
def test_a_shrink_that_died_is_finished_or_its_nodes_work_again(moment, controller, slurm, dies):
    dies(shrink, SHRINK[moment])
    assert recovery.recover_abandoned(controller) == 1
    if moment in NOTHING_DESTROYED_YET:
        assert states(controller) == dict.fromkeys(NODES, State.READY)
        assert all(map(slurm.usable, NODES))
        assert controller.ledger.operations() == ()
    else:
        assert_undone(controller)
    assert slurm.killed == []


@pytest.mark.parametrize("moment", ["while machines are destroyed", "when machines are gone", "when a name is free"])
def test_a_recovery_that_died_is_recovered(moment, controller, dies):
    dies(grow, GROW["when nodes are configured"])
    dies(recovery.recover_abandoned, SHRINK[moment])
    assert recovery.recover_abandoned(controller) == 1
    assert_undone(controller)


def test_a_machine_that_was_not_made_by_the_grow_that_died_is_not_touched(controller, provider, dies):
    dies(grow, GROW["before Slurm is told"])
    provider.add("osg2")
    recovery.recover_abandoned(controller)
    assert states(controller) == {}
    assert set(provider.machines()) == {"osg2"}


def test_there_is_nothing_to_recover_twice(controller, dies):
    dies(grow, GROW["while machines are made"])
    assert [recovery.recover_abandoned(controller) for _ in range(2)] == [1, 0]


def test_the_operation_of_a_living_process_is_left_alone(controller):
    operation, _ = controller.ledger.claim("grow", controller.site.pool("osg"), count=2)
    assert recovery.recover_abandoned(controller) == 0
    assert controller.ledger.operations() == (operation,)


def test_what_somebody_else_takes_over_is_left_to_them(controller, monkeypatch):
    operation, _ = controller.ledger.claim("grow", controller.site.pool("osg"), count=2)
    controller.ledger.abandon(operation)

    def too_late(operation):
        raise Conflict("somebody was faster")

    monkeypatch.setattr(controller.ledger, "adopt", too_late)
    assert recovery.recover_abandoned(controller) == 0
    assert set(states(controller)) == {"osg1", "osg2"}


@pytest.mark.parametrize("verb", [grow, shrink])
def test_while_slurm_is_away_nothing_is_decided(verb, controller, slurm, provider, dies):
    dies(verb, GROW["before Slurm is told"] if verb is grow else SHRINK["when nodes are drained"])
    before = states(controller), set(provider.machines())
    slurm.reachable = False
    for _ in range(2):
        assert recovery.recover_abandoned(controller) == 0
        assert (states(controller), set(provider.machines())) == before
    slurm.reachable = True
    assert recovery.recover_abandoned(controller) == 1
    assert set(states(controller).values()) <= {State.READY}


def test_what_can_not_be_recovered_now_keeps_nothing_else_from_it(controller, provider, caplog):
    """The pool's profile has been taken out of salt-cloud's configuration."""
    for name in ("osg", "virtual"):
        operation, nodes = controller.ledger.claim("grow", controller.site.pool(name), count=1)
        controller.ledger.move(operation, [nodes[0].name], State.CREATING)
        controller.ledger.abandon(operation)
    profile = controller.cloud._client.opts["profiles"].pop("osg")
    assert recovery.recover_abandoned(controller) == 1
    assert "grow 1 of osg1 can't be ended yet: salt-cloud has no profile 'osg'" in caplog.text
    assert set(states(controller)) == {"osg1"}
    controller.cloud._client.opts["profiles"]["osg"] = profile
    assert recovery.recover_abandoned(controller) == 1
    assert_undone(controller)


def test_what_is_not_proven_gone_stays_failed(controller, provider, dies):
    dies(grow, GROW["when a machine was made"])
    provider.fail("destroy", "osg1", "hv1 can't be reached")
    recovery.recover_abandoned(controller)
    (node,) = controller.ledger.nodes()
    assert (node.name, node.state, node.reason) == ("osg1", State.FAILED, "not proven gone: hv1 can't be reached")
    assert controller.ledger.operations(unfinished=False)[-1].outcome == (
        "its process died; osg1: not proven gone: hv1 can't be reached"
    )
