"""suspend: from ready to a file on disk with the running jobs in it, or everything goes on as if nothing had been."""

import itertools
import re

import pytest
from views import assert_suspended, assert_working, error_of, reasons, states

from saltmarsh.errors import Conflict, InvalidInput, NoCapacity, NotFound, OperationFailed, ProviderError, Unreachable
from saltmarsh.growing import grow
from saltmarsh.model import State
from saltmarsh.pools import parse_nodes
from saltmarsh.resuming import resume
from saltmarsh.shrinking import plan as shrink_plan
from saltmarsh.shrinking import shrink
from saltmarsh.suspending import expand, plan, suspend

ALL = ["osg1", "osg2", "osg3", "osg4"]
BOTH = ["osg1", "osg2"]
SAID = r"suspended by alice at 2\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d: hv1 gets a disk"


@pytest.fixture(autouse=True)
def grown(controller):
    """osg1 to osg4, ready."""
    grow(controller, 4, "osg")


def out(controller, *names, **kwargs):
    return suspend(controller, list(names), by="alice", why="hv1 gets a disk", **kwargs)


def everything(controller):
    """All that a call which is refused must leave alone."""
    slurm, vmstates = controller.slurm, controller.vmstates_of("osg1")
    return (
        controller.ledger.nodes(),
        controller.ledger.operations(unfinished=False),
        slurm.nodes(),
        slurm.jobs(),
        [vmstates.look(name) for name in ALL],
    )


# The way of a node


def test_a_node_becomes_its_state_file_with_its_job_in_it(controller, slurm, vmstates):
    slurm.start_job(17, "osg1")
    slurm.start_job(18, "osg1")
    answer = out(controller, "osg1")
    assert_suspended(controller, ["osg1"], [17, 18])
    assert_working(controller, ["osg2", "osg3", "osg4"])
    state = vmstates.look("osg1").state
    assert answer["osg1"].pop("seconds").keys() == {"drain", "stop", "freeze", "save"}
    assert answer == {"osg1": {"host": "hv1", "file": state.path, "size": state.size, "jobs": ["17", "18"]}}
    assert (state.suspension.by, state.suspension.why, state.suspension.jobs) == (
        "alice",
        "hv1 gets a disk",
        ("17", "18"),
    )
    assert [operation.outcome for operation in controller.ledger.operations(unfinished=False)] == ["done", "done"]


def test_history_tells_the_way_of_a_node_who_wanted_it_and_why(controller, slurm):
    slurm.start_job(17, "osg1")
    out(controller, "osg1")
    rows = reasons(controller, "osg1")[-4:]
    assert [state for state, _ in rows] == [State.SUSPENDING] * 3 + [State.SUSPENDED]
    assert [why for _, why in rows][1:3] == ["stopping jobs 17", "frozen, writing memory"]
    assert re.fullmatch(SAID, rows[0][1])
    assert re.fullmatch(SAID, rows[3][1])


def test_slurms_users_are_told_who_drained_a_node_and_why(controller, slurm):
    out(controller, "osg1")
    assert re.fullmatch(SAID, slurm.nodes()["osg1"].reason)


def test_without_a_reason_who_and_when_are_told(controller, slurm):
    suspend(controller, ["osg1"], by="alice", why="")
    assert re.fullmatch(SAID.removesuffix(": hv1 gets a disk"), slurm.nodes()["osg1"].reason)


def test_no_job_is_stopped_before_its_nodes_are_drained_and_none_is_frozen_while_it_runs(controller, slurm, vmstates):
    slurm.start_job(17, "osg[1-2]")
    seen = {}
    slurm.before["suspend_jobs"] = lambda: seen.update(usable=[slurm.usable(name) for name in BOTH])
    slurm.before["set_addresses"] = lambda: seen.update(
        power=[str(vmstates.look(name).machine.state) for name in BOTH], job=slurm.job_states(17)
    )
    out(controller, *BOTH)
    assert seen == {"usable": [False, False], "power": ["running", "running"], "job": {"SUSPENDED"}}


def test_all_are_stood_in_for_before_the_first_is_frozen_and_frozen_before_the_first_is_written(
    controller, slurm, vmstates
):
    slurm.before["set_addresses"] = lambda: vmstates.calls.append(("set_addresses", ""))
    out(controller, *BOTH)
    calls = [call for call, _ in vmstates.calls]
    order = [call for call in calls if call in ("mark", "pause", "set_addresses", "save", "let_go")]
    assert order == ["mark"] * 4 + ["set_addresses"] + ["pause"] * 2 + ["save"] * 2 + ["let_go"] * 2


def test_progress_is_told_in_hostlists(controller, slurm):
    slurm.start_job(17, "osg[1-2]")
    said = []
    out(controller, *BOTH, say=said.append)
    assert said == [
        "osg[1-2]: stopping jobs 17",
        "osg[1-2]: frozen, writing memory",
        "osg[1-2]: suspended",
    ]


def test_nodes_of_several_pools_can_be_suspended_together(controller):
    grow(controller, 1, "virtual")
    out(controller, "osg1", "vn001")
    assert_suspended(controller, ["osg1", "vn001"])


def test_a_plan_tells_what_goes_and_changes_nothing(controller, slurm):
    slurm.start_job(17, "osg[1-2]")
    before = everything(controller)
    assert plan(controller, ["osg1"]) == {
        "osg1": {"host": "hv1", "jobs": ["17"]},
        "osg2": {"host": "hv1", "jobs": ["17"], "because": "goes with osg1, as job 17 runs on both"},
    }
    assert everything(controller) == before


# The jobs


def test_a_parallel_job_takes_all_its_nodes_along_and_theirs(controller, slurm):
    slurm.start_job(17, "osg[1-2]")
    slurm.start_job(18, "osg[2-3]")
    said = []
    assert set(out(controller, "osg1", say=said.append)) == {"osg1", "osg2", "osg3"}
    assert_suspended(controller, ["osg1", "osg2", "osg3"], [17, 18])
    assert_working(controller, ["osg4"])
    assert said[0] == "osg2: goes with osg1, as job 17 runs on both"


def test_the_parts_of_a_heterogeneous_job_go_together_and_are_stopped_by_their_handle(controller, slurm, vmstates):
    slurm.start_job(17, "osg1", handle="17")
    slurm.start_job(18, "osg2", handle="17")
    out(controller, "osg1")
    assert_suspended(controller, BOTH, [17, 18])
    assert {vmstates.look(name).state.suspension.jobs for name in BOTH} == {("17",)}


class Job:
    def __init__(self, handle, nodes, *states):
        self.handle, self.nodes, self.states = handle, parse_nodes(nodes), set(states or ["RUNNING"])


@pytest.mark.parametrize(
    ("names", "jobs", "expected"),
    [
        (["a1"], [], ["a1"]),
        (["a1"], [Job("1", "a[2-3]")], ["a1"]),
        (["a4"], [Job("1", "a[1-2]"), Job("2", "a[2-3]"), Job("3", "a[3-4]")], ["a4", "a3", "a2", "a1"]),
        (["a1"], [Job("1", "a[1-2]", "SUSPENDED")], ["a1", "a2"]),
        (["a1"], [Job("1", "a[1-2]", "COMPLETED", "COMPLETING")], ["a1", "a2"]),
        (["a1"], [Job("1", "a[1-2]", "PENDING")], ["a1"]),
        (["a1", "a2"], [Job("1", "a[1-2]")], ["a1", "a2"]),
    ],
)
def test_a_set_of_nodes_is_closed_under_their_jobs(names, jobs, expected):
    together, added, touched = expand(names, jobs)
    assert together == expected
    assert set(added) == set(expected) - set(names)
    assert {job.handle for job in touched} <= {job.handle for job in jobs}


def test_a_job_that_also_runs_on_bare_metal_is_refused_and_named(controller, slurm):
    slurm.start_job(17, "osg1,metal1")
    before = everything(controller)
    with pytest.raises(InvalidInput, match=r"^job 17 also runs on metal1, which is no node of a pool$"):
        out(controller, "osg1")
    assert everything(controller) == before


@pytest.mark.parametrize("handle", [None, "17"])
def test_a_job_that_begins_on_others_while_nodes_are_drained_takes_those_along(controller, slurm, handle):
    slurm.start_job(17, "osg1", handle=handle)
    began = iter([lambda: slurm.start_job(18, "osg2" if handle else "osg[1-2]", handle=handle)])
    slurm.before["drain"] = lambda: next(began, lambda: None)()
    assert set(out(controller, "osg1")) == set(BOTH)
    assert_suspended(controller, BOTH, [17, 18])


def test_jobs_that_begin_faster_than_nodes_can_be_drained_are_left_to_run(controller, slurm):
    began = itertools.count(1)

    def begin():
        number = next(began)
        if number < 4:
            slurm.start_job(number, f"osg[{number}-{number + 1}]")

    slurm.before["drain"] = begin
    with pytest.raises(
        Conflict, match=r"^osg1: parallel jobs begin faster than their nodes can be drained; try again$"
    ):
        out(controller, "osg1")
    assert_working(controller, ALL, [1, 2, 3])
    assert controller.ledger.operations() == ()


@pytest.mark.parametrize("moving", [("COMPLETED", "COMPLETING"), ("RUNNING", "CONFIGURING")])
def test_a_job_that_begins_or_ends_just_now_is_waited_for(controller, slurm, moving):
    slurm.start_job(17, "osg1", states=moving)
    asked = itertools.count(1)

    def settle():
        if next(asked) == 4:
            assert slurm.job_states(17) == set(moving)
            slurm.change_job(17, "RUNNING") if "RUNNING" in moving else slurm.end_job(17)

    slurm.before["jobs"] = settle
    out(controller, "osg1")
    assert_suspended(controller, ["osg1"], [17] if "RUNNING" in moving else [])


def test_a_job_that_neither_runs_nor_ends_is_named_and_all_goes_on(controller, slurm):
    slurm.start_job(17, "osg1", states=("COMPLETED", "COMPLETING"))
    with pytest.raises(OperationFailed) as raised:
        out(controller, "osg1")
    assert error_of(raised) == ("osg1: jobs neither run nor end: 17 COMPLETED+COMPLETING; osg1 and all jobs go on")
    assert_working(controller, ["osg1"])


def test_a_job_that_somebody_else_has_suspended_stays_so_when_its_node_is_back(controller, slurm):
    slurm.start_job(17, "osg1", states=("SUSPENDED",))
    slurm.start_job(18, "osg1")
    assert out(controller, "osg1")["osg1"]["jobs"] == ["18"]
    resume(controller, ["osg1"])
    assert (slurm.job_states(17), slurm.job_states(18)) == ({"SUSPENDED"}, {"RUNNING"})


def test_a_node_that_the_administrator_has_drained_is_drained_for_that_when_it_is_back(controller, slurm):
    slurm.drain(["osg2"], "a fan is loud")
    out(controller, *BOTH)
    resume(controller, BOTH)
    assert ("DRAIN" in slurm.nodes()["osg2"].states, slurm.nodes()["osg2"].reason) == (True, "a fan is loud")
    assert slurm.usable("osg1")
    assert states(controller)["osg2"] is State.READY


# What can't be, is refused before anything is done


def in_state(controller, name, state, reason="test"):
    operation, _ = controller.ledger.begin("test", "osg", [name], expect={State.READY}, to=state, reason=reason)
    if state is State.FAILED:
        controller.ledger.finish(operation)
    return operation


REFUSED = {
    "a name of no pool": (lambda c: None, ["vn099"], InvalidInput, "node 'vn099' belongs to no pool"),
    "what is not there": (lambda c: None, ["vn001"], InvalidInput, "vn001: not there, nothing to suspend"),
    "a failed node": (
        lambda c: in_state(c, "osg1", State.FAILED),
        ["osg1", "osg2"],
        InvalidInput,
        "can't be suspended: osg1: failed",
    ),
    "a node that is being shrunk": (
        lambda c: in_state(c, "osg1", State.DRAINING),
        ["osg1"],
        InvalidInput,
        "can't be suspended: osg1: draining",
    ),
    "a node that is suspended already": (
        lambda c: out(c, "osg1"),
        ["osg1"],
        InvalidInput,
        "can't be suspended: osg1: suspended",
    ),
    "a node that does not answer Slurm": (
        lambda c: c.slurm.lose("osg1"),
        ["osg1"],
        InvalidInput,
        "can't be suspended: osg1: Slurm has it IDLE+CLOUD+NOT_RESPONDING",
    ),
    "a node that Slurm does not know": (
        lambda c: c.slurm.forget("osg1"),
        ["osg1"],
        InvalidInput,
        "can't be suspended: osg1: not in Slurm's configuration",
    ),
    "a machine that is off": (
        lambda c: c.vmstates_of("osg1").die("osg1"),
        ["osg1"],
        NotFound,
        "hv1: osg1 does not run: it is stopped",
    ),
    "no room for memory": (
        lambda c: c.minions.provider.fail("check_room", "osg2", "hv1: /state has 1 MiB left"),
        ["osg1", "osg2"],
        NoCapacity,
        "hv1: /state has 1 MiB left",
    ),
    "a guest agent that is silent": (
        lambda c: c.minions.provider.fail("test", "osg2", "hv1: can't ask the guest agent of osg2"),
        ["osg1", "osg2"],
        ProviderError,
        "hv1: can't ask the guest agent of osg2",
    ),
    "a node without the programs of its gate": (
        lambda c: c.minions.provider.fail("gateless", "osg2", "an old image"),
        ["osg1", "osg2"],
        ProviderError,
        "osg2 has no /usr/local/libexec/saltmarsh/ready-again; apply its states: salt osg2 state.highstate",
    ),
    "Slurm that is away": (
        lambda c: c.slurm.go_down(),
        ["osg1"],
        Unreachable,
        "slurmctld on ctl does not answer",
    ),
}


@pytest.mark.parametrize("function", [plan, out])
@pytest.mark.parametrize(("make", "names", "error", "line"), REFUSED.values(), ids=REFUSED)
def test_what_can_not_be_is_refused_before_anything_is_done(function, make, names, error, line, controller, slurm):
    make(controller)
    slurm.reachable, away = True, not slurm.reachable
    before = everything(controller)
    slurm.reachable = not away
    with pytest.raises(error) as raised:
        function(controller, names) if function is plan else function(controller, *names)
    assert error_of(raised).startswith(line)
    slurm.reachable = True
    assert everything(controller) == before


# Whatever fails, everything goes on


def fails(function, name, why="hv1: no"):
    return lambda controller: controller.minions.provider.fail(function, name, why)


def slurm_fails(function, times=1):
    """Slurm refuses a command so many times."""

    def make(controller):
        left = iter(range(times))

        def refuse():
            if next(left, None) is not None:
                raise ProviderError("slurm_update error: no")

        controller.slurm.before[function] = refuse

    return make


TROUBLES = {
    "the mark of the second": (fails("mark", "osg2"), "hv1: no"),
    "the drain": (slurm_fails("drain"), "slurm_update error: no"),
    "the stop of jobs": (slurm_fails("suspend_jobs"), "slurm_update error: no"),
    "jobs that do not stop": (
        fails("hanging", "osg2", "yes"),
        "osg2: jobs still run 0.2 s after they were stopped: 17 1 S, 18 1 S",
    ),
    "the freeze of the second": (fails("pause", "osg2"), "hv1: no"),
    "the change of addresses": (slurm_fails("set_addresses"), "slurm_update error: no"),
    "the writing of the first": (fails("save", "osg1"), "hv1: no"),
    "the writing of the second": (fails("save", "osg2"), "hv1: no"),
    "a disk that is full": (fails("half-saved", "osg2"), "hv1: no"),
    "a writing that is done": (fails("saved", "osg2"), "hv1: no"),
    "the leaving of the first": (fails("let_go", "osg1"), "hv1: no"),
    "the leaving of the second": (fails("let_go", "osg2"), "hv1: no"),
}


@pytest.mark.parametrize(("make", "why"), TROUBLES.values(), ids=TROUBLES)
def test_whatever_fails_the_nodes_and_their_jobs_go_on(controller, slurm, make, why):
    slurm.start_job(17, "osg[1-2]")
    slurm.start_job(18, "osg2")
    make(controller)
    with pytest.raises(OperationFailed) as raised:
        out(controller, *BOTH)
    assert error_of(raised) == f"{why}; osg[1-2] and all jobs go on"
    assert_working(controller, ALL, [17, 18])
    assert slurm.killed == []
    assert controller.ledger.operations() == ()
    assert controller.ledger.operations(unfinished=False)[-1].outcome == f"given up: {why}"


def test_a_node_that_goes_on_is_drained_as_it_was(controller, slurm):
    slurm.drain(["osg2"], "a fan is loud")
    slurm.before["drain"] = lambda: controller.minions.provider.fail("save", "osg1", "hv1: no")
    with pytest.raises(OperationFailed):
        out(controller, *BOTH)
    assert slurm.usable("osg1")
    assert (slurm.usable("osg2"), slurm.nodes()["osg2"].reason) == (False, "a fan is loud")


def test_a_node_that_was_not_frozen_goes_on_though_its_agent_has_fallen_silent(controller, slurm, provider):
    slurm.start_job(17, "osg1")
    slurm.before["suspend_jobs"] = lambda: provider.fail("job-processes", "osg1", "the agent is silent")
    with pytest.raises(OperationFailed, match=r"^the agent is silent; osg1 and all jobs go on$"):
        out(controller, "osg1")
    assert_working(controller, ["osg1"], [17])


def test_a_machine_that_dies_while_it_is_written_is_failed_and_the_others_go_on(controller, slurm, provider):
    slurm.start_job(17, "osg[1-2]")
    slurm.start_job(18, "osg1")
    provider.fail("died", "osg2", "hv1: can't write the memory of osg2: QEMU ended")
    with pytest.raises(OperationFailed) as raised:
        out(controller, *BOTH)
    why = "its machine died, and the memory of its jobs with it"
    assert error_of(raised) == f"hv1: can't write the memory of osg2: QEMU ended; osg2: {why}"
    assert_working(controller, ["osg1", "osg3", "osg4"], [18])
    (node,) = controller.ledger.nodes(["osg2"])
    assert (node.state, node.reason, node.operation) == (State.FAILED, why, None)
    assert slurm.killed == [17]
    assert "DOWN" in slurm.nodes()["osg2"].states
    assert not slurm.stood_in("osg2")
    assert shrink(controller, parse_nodes("osg2"), "osg") == ["osg2"]


def test_a_node_whose_gate_fails_after_it_was_frozen_keeps_its_job_and_can_be_resumed(controller, slurm, provider):
    slurm.start_job(17, "osg1")
    provider.fail("save", "osg1", "hv1: no")
    provider.fail("gate", "osg1", "/shared is not mounted")
    with pytest.raises(OperationFailed, match=r"^hv1: no; osg1: /shared is not mounted$"):
        out(controller, "osg1")
    assert states(controller)["osg1"] is State.FAILED
    assert (slurm.job_states(17), slurm.nodes()["osg1"].reason) == ({"SUSPENDED"}, "not back: /shared is not mounted")
    provider.mend("gate", "osg1")
    resume(controller, ["osg1"])
    assert_working(controller, ["osg1"], [17])


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("moment", ["stopping jobs", "frozen"])
def test_an_interruption_lets_everything_go_on_and_is_one_line(controller, slurm, moment, interruption):
    slurm.start_job(17, "osg[1-2]")

    def say(line):
        if moment in line:
            raise interruption

    with pytest.raises(OperationFailed, match=r"^interrupted; osg\[1-2\] and all jobs go on$"):
        out(controller, *BOTH, say=say)
    assert_working(controller, ALL, [17])
    assert controller.ledger.operations() == ()


def test_an_interruption_that_comes_too_late_undoes_nothing(controller, slurm):
    slurm.start_job(17, "osg[1-2]")

    def say(line):
        if line.endswith(": suspended"):
            raise KeyboardInterrupt

    with pytest.raises(OperationFailed, match=r"^interrupted; osg\[1-2\] were suspended before that$"):
        out(controller, *BOTH, say=say)
    assert_suspended(controller, BOTH, [17])
    assert controller.ledger.operations() == ()


# shrink, of nodes that are suspended


def test_a_suspended_node_with_a_job_is_shrunk_only_by_force(controller, slurm):
    slurm.start_job(17, "osg1")
    out(controller, "osg1")
    before = everything(controller)
    with pytest.raises(Conflict) as raised:
        shrink(controller, parse_nodes("osg[1-2]"), "osg")
    assert error_of(raised) == (
        "suspended: osg1: has job 17 in its memory: resume it first, or give up its job with force=True"
    )
    assert everything(controller) == before
    assert shrink(controller, parse_nodes("osg1"), "osg", force=True) == ["osg1"]
    assert slurm.killed == [17]
    assert not slurm.stood_in("osg1")


def test_a_count_takes_suspended_nodes_only_if_they_have_no_job(controller, slurm):
    slurm.start_job(17, "osg1")
    out(controller, *BOTH)
    assert set(shrink_plan(controller, 3, "osg")) == {"osg2", "osg3", "osg4"}
    with pytest.raises(InvalidInput, match=r"^pool osg: 3 nodes can be shrunk, 4 asked for$"):
        shrink(controller, 4, "osg")
    assert set(shrink(controller, 3, "osg")) == {"osg2", "osg3", "osg4"}
    assert_suspended(controller, ["osg1"], [17])


def test_a_suspended_node_that_is_not_shrunk_after_all_is_suspended_again(controller, slurm):
    """Slurm goes away when it is about to drain the others."""
    out(controller, "osg1")
    slurm.start_job(17, "osg2")
    (before,) = controller.ledger.nodes(["osg1"])

    def refuse():
        raise InvalidInput("no")

    slurm.before["drain"] = refuse
    with pytest.raises(InvalidInput):
        shrink(controller, parse_nodes("osg[1-2]"), "osg")
    slurm.before.clear()
    assert_suspended(controller, ["osg1"])
    (after,) = controller.ledger.nodes(["osg1"])
    assert after.reason == before.reason
    resume(controller, ["osg1"])
    assert_working(controller, ALL, [17])


def test_a_node_that_was_shrunk_while_suspended_leaves_no_state_file(controller, vmstates):
    out(controller, "osg1")
    shrink(controller, parse_nodes("osg1"), "osg")
    assert vmstates.state_files() == []
    assert set(grow(controller, 1, "osg")["nodes"]) == {"osg1"}
