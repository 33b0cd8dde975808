"""shrink: from nodes to free names; no job is ended that nobody gave up."""

import itertools

import neighbours
import pytest
from views import assert_undone, error_of, states, traces

from saltmarsh import joining, recovery
from saltmarsh.errors import Conflict, InvalidInput, OperationFailed, SaltmarshError, Unreachable
from saltmarsh.growing import grow
from saltmarsh.model import State
from saltmarsh.pools import parse_nodes
from saltmarsh.shrinking import plan, shrink

MOMENT = 0.05  # seconds: what a test that waits for a timeout waits


@pytest.fixture
def grown(controller):
    """osg1 to osg4, ready."""
    grow(controller, 4, "osg")


def fail(controller, name, reason="the disk is gone"):
    """Make a ready node a failed one."""
    operation, _ = controller.ledger.begin("test", "osg", [name], expect={State.READY}, to=State.FAILED, reason=reason)
    controller.ledger.finish(operation)


# The way of a node


def test_shrink_returns_names_of_which_nothing_is_left(controller, grown):
    assert shrink(controller, 4, "osg") == ["osg1", "osg2", "osg3", "osg4"]
    assert_undone(controller)
    assert [operation.outcome for operation in controller.ledger.operations(unfinished=False)] == ["done", "done"]


def test_a_node_on_a_host_that_is_silent_stays_until_the_host_is_taken_out(
    controller, provider, slurm, pillar, tmp_path
):
    grow(controller, 1, "osg", host="hv1")
    provider.fail("host", "hv1", "it burnt down")
    slurm.down(["osg1"], "Not responding")
    slurm.keep_in(tmp_path / "slurm")
    with pytest.raises(OperationFailed, match="osg1: not proven gone: hv1 can't be reached: it burnt down"):
        shrink(controller, parse_nodes("osg1"), "osg", force=True)
    del pillar["elastic"]["hosts"]["hv1"]
    without = neighbours.controller(pillar, tmp_path)
    without.slurm.keep_in(tmp_path / "slurm")
    assert shrink(without, parse_nodes("osg1"), "osg", force=True) == ["osg1"]
    assert states(without) == {}
    without.ledger.close()


def test_history_tells_the_way_of_a_node_and_why(controller, grown):
    shrink(controller, parse_nodes("osg1"), "osg", reason="shrink by alice")
    assert [(row.after, row.reason) for row in controller.ledger.history("osg1")][-3:] == [
        (State.DRAINING, "shrink by alice"),
        (State.DESTROYING, "shrink by alice"),
        (State.FREE, ""),
    ]


def test_a_freed_name_can_be_grown_again(controller, grown):
    shrink(controller, parse_nodes("osg2"), "osg")
    assert set(grow(controller, 1, "osg")["nodes"]) == {"osg2"}


def test_progress_is_told_in_hostlists(controller, grown):
    said = []
    shrink(controller, 4, "osg", say=said.append)
    assert said == ["osg[1-4]: draining", "osg[1-4]: gone"]


def test_a_node_that_left_slurms_configuration_can_be_shrunk(controller, slurm, grown):
    slurm.forget("osg1")
    assert shrink(controller, parse_nodes("osg1"), "osg") == ["osg1"]


# Which


def test_a_count_takes_failed_nodes_first_then_idle_ones_then_those_with_fewest_jobs(controller, slurm, grown):
    slurm.start_job(1, "osg[1-2]")
    slurm.start_job(2, "osg1")
    fail(controller, "osg4")
    for count, names in enumerate(["osg4", "osg3", "osg2", "osg1"], start=1):
        assert list(plan(controller, count, "osg"))[-1] == names


def test_a_hostlist_takes_exactly_these(controller, slurm, grown):
    slurm.start_job(1, "osg1")
    assert shrink(controller, parse_nodes("osg[2,4]"), "osg") == ["osg2", "osg4"]
    assert states(controller) == dict.fromkeys(["osg1", "osg3"], State.READY)


def test_a_plan_tells_states_and_jobs_and_changes_nothing(controller, slurm, grown):
    slurm.start_job(17, "osg1")
    fail(controller, "osg2")
    before = controller.ledger.nodes(), controller.ledger.operations(unfinished=False), slurm.nodes()
    assert plan(controller, parse_nodes("osg[1-2]"), "osg") == {
        "osg1": {"state": "ready", "jobs": [17]},
        "osg2": {"state": "failed", "jobs": []},
    }
    assert (controller.ledger.nodes(), controller.ledger.operations(unfinished=False), slurm.nodes()) == before


REFUSED = {
    "a pool that does not exist": ((1, "gpu"), InvalidInput, "^pool 'gpu' does not exist; pools: osg, virtual$"),
    "no pool, of several": ((1,), InvalidInput, "^which pool"),
    "more than there are": ((5, "osg"), InvalidInput, "^pool osg: 4 nodes can be shrunk, 5 asked for$"),
    "names of another pool": (
        (parse_nodes("vn[001-002],osg1"), "osg"),
        InvalidInput,
        r"^pool osg has no node vn\[001-002\], its nodes are osg\[1-4\]$",
    ),
    "what is not there": (
        (parse_nodes("vn[001-003]"), "virtual"),
        InvalidInput,
        r"^pool virtual: vn\[001-003\]: not there, nothing to shrink$",
    ),
}


@pytest.mark.parametrize("function", [shrink, plan])
@pytest.mark.parametrize(("args", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_can_not_be_is_refused_before_anything_is_done(function, args, error, message, controller, grown):
    before = controller.ledger.nodes(), controller.ledger.operations(unfinished=False)
    with pytest.raises(error, match=message) as raised:
        function(controller, *args)
    error_of(raised)
    assert (controller.ledger.nodes(), controller.ledger.operations(unfinished=False)) == before


def test_a_node_that_grows_just_now_is_left_alone(controller, provider):
    operation, _ = controller.ledger.claim("grow", controller.site.pool("osg"), count=2)
    controller.ledger.move(operation, ["osg1"], State.CREATING)
    controller.ledger.move(operation, ["osg1"], State.BOOTING)
    with pytest.raises(Conflict, match=r"^expected failed or ready or suspended: osg1 booting, osg2 claimed$"):
        shrink(controller, parse_nodes("osg[1-2]"), "osg")
    with pytest.raises(InvalidInput, match=r"^pool osg: 0 nodes can be shrunk, 1 asked for$"):
        shrink(controller, 1, "osg")


# Jobs


def test_a_running_job_is_never_ended(controller, slurm, provider, grown):
    slurm.start_job(17, "osg[1-2]")
    with pytest.raises(OperationFailed) as raised:
        shrink(controller, 4, "osg", timeout=MOMENT)
    assert error_of(raised) == (
        "pool osg: osg[1-2]: still runs 17 and stays (wait longer with timeout=, or force=True)"
    )
    assert slurm.killed == []
    assert states(controller) == dict.fromkeys(["osg1", "osg2"], State.READY)
    assert set(provider.machines()) == {"osg1", "osg2"}
    assert slurm.usable("osg1")
    assert slurm.usable("osg2")
    assert controller.ledger.operations() == ()


def test_a_job_that_ends_in_time_is_waited_for(controller, slurm, grown):
    slurm.start_job(17, "osg1")
    asked = itertools.count(1)
    slurm.before["jobs"] = lambda: slurm.end_job(17) if next(asked) == 4 else None
    said = []
    assert shrink(controller, parse_nodes("osg1"), "osg", say=said.append) == ["osg1"]
    assert slurm.killed == []
    assert said == ["osg1: draining", "waiting for jobs: osg1: 17", "osg1: gone"]


def test_nodes_are_drained_before_their_jobs_are_looked_at(controller, slurm, grown):
    slurm.calls.clear()
    shrink(controller, parse_nodes("osg[1-2]"), "osg")
    assert slurm.calls.index("drain") < slurm.calls.index("jobs")


def test_with_force_jobs_are_not_waited_for(controller, slurm, grown):
    slurm.start_job(17, "osg1")
    assert shrink(controller, parse_nodes("osg1"), "osg", force=True) == ["osg1"]
    assert slurm.killed == [17]


def test_a_node_that_is_cut_off_keeps_its_job(controller, slurm, grown):
    slurm.start_job(17, "osg1")
    slurm.lose("osg1")
    with pytest.raises(OperationFailed, match=r"^pool osg: osg1: still runs 17 and stays "):
        shrink(controller, parse_nodes("osg1"), "osg", timeout=MOMENT)
    assert slurm.killed == []
    (node,) = controller.ledger.nodes(["osg1"])
    assert (node.state, node.reason) == (
        State.FAILED,
        "could not go back to work: Slurm has it IDLE+CLOUD+DRAIN+NOT_RESPONDING",
    )


def test_a_failed_node_with_a_job_stays_what_it_was(controller, slurm, grown):
    slurm.start_job(17, "osg1")
    fail(controller, "osg1", "the disk is full")
    with pytest.raises(OperationFailed, match=r"^pool osg: osg1: still runs 17 and stays "):
        shrink(controller, parse_nodes("osg1"), "osg", timeout=MOMENT)
    assert slurm.killed == []
    (node,) = controller.ledger.nodes(["osg1"])
    assert (node.state, node.reason, node.operation) == (State.FAILED, "the disk is full", None)


# Slurm away, machines that stay, interruptions


@pytest.mark.parametrize("force", [False, True])
def test_while_slurm_does_not_answer_nothing_is_begun(controller, slurm, provider, grown, force):
    slurm.reachable = False
    before = controller.ledger.nodes(), controller.ledger.operations(unfinished=False)
    for what in (2, parse_nodes("osg[1-2]")):
        with pytest.raises(Unreachable, match=r"^slurmctld on ctl does not answer$"):
            shrink(controller, what, "osg", force=force)
    assert (controller.ledger.nodes(), controller.ledger.operations(unfinished=False)) == before
    assert set(provider.machines()) == {"osg1", "osg2", "osg3", "osg4"}


@pytest.mark.parametrize("step", ["nodes", "drain", "jobs", "undrain"])
def test_when_slurm_goes_away_no_machine_is_destroyed_and_nodes_go_back_to_work_later(step, controller, slurm, grown):
    slurm.start_job(17, "osg1")
    slurm.before[step] = slurm.go_down
    with pytest.raises(SaltmarshError) as raised:
        shrink(controller, parse_nodes("osg[1-2]"), "osg", timeout=MOMENT)
    assert error_of(raised) == "pool osg: slurmctld on ctl does not answer; left to the engine: osg[1-2]"
    assert controller.minions.provider.machines().keys() == {"osg1", "osg2", "osg3", "osg4"}
    slurm.before.clear()
    slurm.reachable = True
    recovery.recover_abandoned(controller)
    assert states(controller) == dict.fromkeys(["osg1", "osg2", "osg3", "osg4"], State.READY)
    assert slurm.killed == []
    assert slurm.usable("osg1")
    assert slurm.usable("osg2")


def test_when_slurm_goes_away_at_the_end_the_names_are_not_freed(controller, slurm, grown):
    slurm.before["release"] = slurm.go_down
    with pytest.raises(OperationFailed, match=r"^pool osg: osg\[1-2\]: not proven gone: slurmctld on ctl does not"):
        shrink(controller, parse_nodes("osg[1-2]"), "osg")
    slurm.before.clear()
    slurm.reachable = True
    assert [states(controller)[name] for name in ("osg1", "osg2")] == [State.FAILED] * 2
    assert set(shrink(controller, 2, "osg")) == {"osg1", "osg2"}
    assert traces(controller) == {"osg3", "osg4"}


def test_a_machine_that_is_not_proven_gone_stays_failed_and_can_be_shrunk_again(controller, provider, grown):
    provider.fail("destroy", "osg2", "hv1: the disk is busy")
    with pytest.raises(OperationFailed, match=r"^pool osg: osg2: not proven gone: hv1: the disk is busy$"):
        shrink(controller, parse_nodes("osg[1-3]"), "osg")
    (failed, ready) = controller.ledger.nodes()
    assert (failed.name, failed.state, failed.reason, failed.operation) == (
        "osg2",
        State.FAILED,
        "not proven gone: hv1: the disk is busy",
        None,
    )
    assert (ready.name, ready.state) == ("osg4", State.READY)
    provider.mend("destroy", "osg2")
    assert shrink(controller, 1, "osg") == ["osg2"]


def test_a_host_that_is_down_does_not_keep_another_hosts_machine(controller, provider, grown):
    provider.fail("host", "hv2", "no route to host")
    assert shrink(controller, parse_nodes("osg1"), "osg") == ["osg1"]
    provider.fail("host", "hv1", "no route to host")
    with pytest.raises(OperationFailed, match=r"^pool osg: osg2: not proven gone: hv1 can't be reached: no route to"):
        shrink(controller, parse_nodes("osg2"), "osg")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_lets_draining_nodes_work_again(controller, slurm, grown, interruption):
    slurm.start_job(17, "osg1")

    def say(line):
        if line.startswith("waiting for jobs"):
            raise interruption

    with pytest.raises(OperationFailed, match=r"^pool osg: interrupted$"):
        shrink(controller, 4, "osg", say=say)
    assert states(controller) == dict.fromkeys(["osg1", "osg2", "osg3", "osg4"], State.READY)
    assert all(map(slurm.usable, ["osg1", "osg2", "osg3", "osg4"]))
    assert controller.ledger.operations() == ()


def test_an_interruption_while_machines_are_destroyed_leaves_the_rest_to_whoever_comes_next(controller, slurm, grown):
    def interrupt():
        raise KeyboardInterrupt

    slurm.before["release"] = interrupt
    with pytest.raises(OperationFailed, match=r"^pool osg: interrupted; left to the engine: osg\[1-2\]$"):
        shrink(controller, parse_nodes("osg[1-2]"), "osg")
    slurm.before.clear()
    recovery.recover_abandoned(controller)
    assert traces(controller) == states(controller).keys() == {"osg3", "osg4"}


def test_two_shrinks_at_once_do_not_get_into_each_others_way(controller, slurm, grown):
    """The first waits for a job when the second begins."""
    slurm.start_job(17, "osg1")
    second = []

    def say(line):
        if line.startswith("waiting for jobs"):
            with pytest.raises(Conflict, match=r"^expected failed or ready or suspended: osg1 draining$"):
                shrink(controller, parse_nodes("osg1"), "osg")
            second.extend(shrink(controller, 2, "osg"))
            slurm.end_job(17)

    assert shrink(controller, parse_nodes("osg[1-2]"), "osg", say=say) == ["osg1", "osg2"]
    assert second == ["osg3", "osg4"]
    assert_undone(controller)


def test_nobody_joins_a_node_that_is_being_shrunk(controller, minions, grown):
    with joining.joiner(controller) as joiner:
        minions.calls.clear()
        joiner.started(["osg1"])
        joiner.look()
    assert minions.calls == []
