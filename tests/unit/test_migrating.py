"""migrate: to another host with the running jobs, or back to where they were."""

import pytest
from views import assert_suspended, assert_working, error_of, reasons, states

from saltmarsh.errors import InvalidInput, NoCapacity, OperationFailed, ProviderError, Unreachable
from saltmarsh.growing import grow
from saltmarsh.migrating import migrate, plan
from saltmarsh.model import State
from saltmarsh.recovery import recover_abandoned
from saltmarsh.resuming import resume
from saltmarsh.suspending import suspend

ALL = ["osg1", "osg2", "osg3", "osg4"]
BOTH = ["osg1", "osg2"]


@pytest.fixture(autouse=True)
def grown(controller, slurm):
    """osg1 to osg4 on hv1, job 17 on the first two, 18 on osg2 alone."""
    grow(controller, 4, "osg")
    slurm.start_job(17, "osg[1-2]")
    slurm.start_job(18, "osg2")


def move(controller, *names, host="hv2", **kwargs):
    return migrate(controller, list(names), host, by="alice", **kwargs)


def hosts(controller, names=ALL):
    """Where the ledger has nodes, which must be where they are."""
    vmstates = controller.vmstates_of("osg1")
    there = {node.name: node.host for node in controller.ledger.nodes(names)}
    assert {name: vmstates.look(name).machine.host for name in names} == there
    return there


def everything(controller):
    """All that a call which is refused must leave alone."""
    slurm, vmstates = controller.slurm, controller.vmstates_of("osg1")
    looks = [vmstates.look(name) for name in ALL]
    return controller.ledger.nodes(), controller.ledger.operations(unfinished=False), slurm.nodes(), slurm.jobs(), looks


# The way


def test_nodes_move_with_their_jobs_and_those_that_share_one(controller):
    answer = move(controller, "osg1")
    assert {name: each["host"] for name, each in answer.items()} == dict.fromkeys(BOTH, "hv2")
    assert hosts(controller) == {"osg1": "hv2", "osg2": "hv2", "osg3": "hv1", "osg4": "hv1"}
    assert_working(controller, ALL, [17, 18])
    assert [operation.verb for operation in controller.ledger.operations(unfinished=False)] == ["grow", "migrate"]
    assert controller.ledger.operations() == ()


def test_history_tells_the_way_and_why(controller):
    move(controller, "osg3")
    rows = reasons(controller, "osg3")
    assert [state for state, _ in rows][-5:] == [
        State.SUSPENDING,
        State.SUSPENDING,
        State.SUSPENDED,
        State.RESUMING,
        State.READY,
    ]
    assert rows[-3][1].endswith(": migrate to hv2")
    assert rows[-2][1] == "restoring on hv2"


def test_slurms_users_are_told_why(controller, slurm):
    seen = []
    slurm.before["set_addresses"] = lambda: seen.append(slurm.nodes()["osg3"].reason)
    move(controller, "osg3")
    assert seen[0].startswith("suspended by alice at 2")
    assert seen[0].endswith(": migrate to hv2")


def test_live_a_node_moves_without_a_pause_and_alone(controller, slurm, vmstates):
    slurm.calls.clear()
    vmstates.calls.clear()
    assert move(controller, "osg1", live=True)["osg1"]["host"] == "hv2"
    assert slurm.calls == ["ping", "jobs"]
    assert vmstates.calls == [("migrate", "osg1")]
    assert hosts(controller) == {"osg1": "hv2", "osg2": "hv1", "osg3": "hv1", "osg4": "hv1"}
    assert_working(controller, ALL, [17, 18])
    assert reasons(controller, "osg1")[-1] == (State.READY, "moved from hv1, live")


@pytest.mark.parametrize("live", [False, True])
def test_a_plan_tells_where_from_and_where_to_and_changes_nothing(controller, live):
    before = everything(controller)
    expected = {name: {"from": "hv1", "to": "hv2"} for name in (["osg1"] if live else BOTH)}
    jobs = {} if live else {"osg1": {"jobs": ["17"]}, "osg2": {"jobs": ["17", "18"]}}
    assert plan(controller, ["osg1"], "hv2", live) == {name: expected[name] | jobs.get(name, {}) for name in expected}
    assert everything(controller) == before


def test_a_node_that_moved_can_be_suspended_and_resumed_where_it_is(controller):
    move(controller, *BOTH)
    suspend(controller, BOTH, by="alice", why="")
    resume(controller, BOTH)
    assert set(hosts(controller, BOTH).values()) == {"hv2"}
    assert_working(controller, BOTH, [17, 18])


# What can't be, is refused before anything is done

REFUSED = {
    "a host that does not exist": (["osg1"], "hv9", InvalidInput, "host 'hv9' does not exist; hosts: hv1, hv2"),
    "the host where it is": (["osg1"], "hv1", InvalidInput, "osg1 is on hv1 already"),
    "a name of no pool": (["vn099"], "hv2", InvalidInput, "node 'vn099' belongs to no pool; "),
    "what is not there": (["vn001"], "hv2", InvalidInput, "vn001: not there, nothing to migrate"),
}


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("function", [plan, move])
@pytest.mark.parametrize(("names", "host", "error", "line"), REFUSED.values(), ids=REFUSED)
def test_what_can_not_be_is_refused(controller, function, live, names, host, error, line):
    before = everything(controller)
    with pytest.raises(error) as raised:
        plan(controller, names, host, live) if function is plan else move(controller, *names, host=host, live=live)
    assert error_of(raised).startswith(line)
    assert everything(controller) == before


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("function", [plan, move])
def test_a_node_that_lives_under_a_lease_is_refused(controller, slurm, function, live):
    slurm.queue_lease(5, "osg3", "hv1")
    before = everything(controller)
    with pytest.raises(InvalidInput) as raised:
        plan(controller, ["osg3"], "hv2", live) if function is plan else move(controller, "osg3", live=live)
    line = "can't be migrated: osg3: lives on hv1 under lease 5: drain that host in Slurm and requeue the lease"
    assert error_of(raised) == line
    assert everything(controller) == before


def test_a_node_goes_with_none_that_lives_under_a_lease(controller, slurm):
    """Job 17 runs on both."""
    slurm.queue_lease(5, "osg2", "hv1")
    with pytest.raises(InvalidInput, match=r"^can't be migrated: osg2: lives on hv1 under lease 5"):
        move(controller, "osg1")
    move(controller, "osg1", live=True)
    assert hosts(controller) == {"osg1": "hv2", "osg2": "hv1", "osg3": "hv1", "osg4": "hv1"}


@pytest.mark.parametrize("live", [False, True])
def test_a_target_without_room_is_refused(controller, provider, live):
    provider.fail("check_target", "hv2", "no room for osg[1-2] (4096 MiB): hv2 has 5 MiB")
    before = everything(controller)
    with pytest.raises(NoCapacity, match=r"^no room for osg"):
        move(controller, "osg1", live=live)
    assert everything(controller) == before


def test_a_node_that_is_suspended_is_not_migrated_but_resumed_elsewhere(controller):
    suspend(controller, ["osg3"], by="alice", why="")
    with pytest.raises(InvalidInput, match=r"^can't be migrated: osg3: suspended$"):
        move(controller, "osg3")
    assert_suspended(controller, ["osg3"])


@pytest.mark.parametrize("live", [False, True])
def test_while_slurm_is_away_nothing_is_begun(controller, slurm, live):
    slurm.reachable = False
    with pytest.raises(Unreachable, match=r"^slurmctld on ctl does not answer$"):
        move(controller, "osg1", live=live)
    assert set(states(controller).values()) == {State.READY}
    assert len(controller.ledger.operations(unfinished=False)) == 1


# What fails


def test_nodes_that_can_not_be_written_go_on_where_they_are(controller, provider):
    provider.fail("half-saved", "osg2", "hv1: no space left")
    with pytest.raises(OperationFailed, match=r"^hv1: no space left; osg\[1-2\] and all jobs go on$"):
        move(controller, "osg1")
    assert set(hosts(controller).values()) == {"hv1"}
    assert_working(controller, ALL, [17, 18])


BACK = {
    "the target can't restore one": ("restore", "osg2.hv2", "hv2: no such bridge"),
    "the target has no room any more": ("choose_host", "hv2", "no room for osg1 (2048 MiB): hv2 has 5 MiB"),
}


@pytest.mark.parametrize(("function", "name", "why"), BACK.values(), ids=BACK)
def test_nodes_that_can_not_be_restored_there_come_back_where_they_were(controller, provider, function, name, why):
    provider.fail(function, name, why)
    with pytest.raises(OperationFailed) as raised:
        move(controller, "osg1")
    assert error_of(raised) == f"{why}; osg[1-2] and all jobs go on where they were"
    assert set(hosts(controller).values()) == {"hv1"}
    assert_working(controller, ALL, [17, 18])
    assert controller.ledger.operations() == ()
    assert controller.ledger.operations(unfinished=False)[-1].outcome.startswith(f"given up: {why}")


def test_nodes_that_can_be_restored_nowhere_are_suspended_and_come_back_later(controller, provider):
    provider.fail("restore", "osg2.hv2", "hv2: no such bridge")
    provider.fail("restore", "osg1.hv1", "hv1: nor here")
    with pytest.raises(OperationFailed) as raised:
        move(controller, "osg1")
    assert error_of(raised) == "hv1: nor here; left to the engine: osg[1-2]"
    assert_suspended(controller, BOTH, [17, 18])
    assert recover_abandoned(controller) == 0
    assert_suspended(controller, BOTH, [17, 18])
    provider.mend("restore", "osg1.hv1")
    assert recover_abandoned(controller) == 1
    assert_working(controller, BOTH, [17, 18])


@pytest.mark.parametrize("step", ["resume_jobs", "undrain"])
def test_machines_that_run_on_the_target_are_never_restored_on_the_host_they_came_from(
    controller, slurm, vmstates, step
):
    """Slurm goes away when they are there."""
    slurm.before[step] = slurm.go_down
    with pytest.raises(OperationFailed, match=r"^slurmctld on ctl does not answer; left to the engine: osg\[1-2\]$"):
        move(controller, "osg1")
    assert [call for call in vmstates.calls if call[0] == "restore"] == [("restore", "osg1"), ("restore", "osg2")]
    assert {vmstates.look(name).machine.host for name in BOTH} == {"hv2"}
    slurm.before.clear()
    slurm.reachable = True
    assert recover_abandoned(controller) == 1
    assert_working(controller, ALL, [17, 18])
    assert set(hosts(controller, BOTH).values()) == {"hv2"}


def test_a_node_whose_gate_fails_there_keeps_its_job_there_and_can_be_resumed(controller, slurm, provider):
    provider.fail("gate", "osg1", "/shared is not mounted")
    with pytest.raises(OperationFailed) as raised:
        move(controller, "osg1")
    assert error_of(raised) == "osg1: /shared is not mounted; osg2: waits with job 17 for osg1"
    assert {states(controller)[name] for name in BOTH} == {State.FAILED}
    assert controller.ledger.operations() == ()
    provider.mend("gate", "osg1")
    resume(controller, ["osg1"])
    assert_working(controller, BOTH, [17, 18])
    assert set(hosts(controller, BOTH).values()) == {"hv2"}


def test_a_node_whose_gate_fails_where_it_was_is_told_with_why_it_did_not_move(controller, provider):
    provider.fail("restore", "osg3.hv2", "hv2: no such bridge")
    provider.fail("gate", "osg3", "/shared is not mounted")
    with pytest.raises(OperationFailed, match=r"^hv2: no such bridge; osg3: /shared is not mounted$"):
        move(controller, "osg3")
    assert states(controller)["osg3"] is State.FAILED
    assert controller.ledger.operations() == ()


def test_live_one_that_can_not_be_moved_stays_and_the_others_move(controller, provider):
    provider.fail("migrate", "osg2", "hv1: can't move osg2 to hv2: no such bridge")
    with pytest.raises(OperationFailed) as raised:
        move(controller, "osg1", "osg2", "osg3", live=True)
    assert error_of(raised) == "osg2: hv1: can't move osg2 to hv2: no such bridge; it stays where it is"
    assert hosts(controller) == {"osg1": "hv2", "osg2": "hv1", "osg3": "hv2", "osg4": "hv1"}
    assert_working(controller, ALL, [17, 18])
    assert controller.ledger.operations() == ()


@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), Unreachable("hv1 can't be reached")])
def test_live_where_a_node_is_is_known_though_its_move_was_interrupted(controller, vmstates, trouble):
    """The move goes on without whoever asked for it."""
    really = vmstates.migrate

    def moves(name, host, target):
        really(name, host, target)
        raise trouble

    vmstates.migrate = moves
    with pytest.raises((OperationFailed, Unreachable), match=r"^(interrupted|hv1 can't be reached)$"):
        move(controller, "osg1", "osg2", live=True)
    assert hosts(controller) == {"osg1": "hv2", "osg2": "hv1", "osg3": "hv1", "osg4": "hv1"}
    assert controller.ledger.operations() == ()


def test_an_interruption_between_two_hosts_is_gone_on_from_by_whoever_comes_next(controller):
    def say(line):
        if line.endswith(": restoring"):
            raise KeyboardInterrupt

    with pytest.raises(OperationFailed, match=r"^interrupted; left to the engine: osg\[1-2\]$"):
        move(controller, "osg1", say=say)
    assert recover_abandoned(controller) == 1
    assert_working(controller, ALL, [17, 18])
    assert set(states(controller).values()) == {State.READY}


def test_a_provider_that_fails_is_never_a_traceback(controller, provider):
    provider.fail("look", "osg1", "hv1: can't look at osg1")
    with pytest.raises(ProviderError, match=r"^hv1: can't look at osg1$"):
        move(controller, "osg1")
    provider.mend("look", "osg1")
    assert_working(controller, ALL, [17, 18])
