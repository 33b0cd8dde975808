"""resume: from disk to ready, and the jobs go on where they stopped; what can't come back is not lost."""

import itertools
from dataclasses import replace

import pytest
from views import assert_suspended, assert_working, error_of, reasons, states

from saltmarsh import reporting
from saltmarsh.errors import InvalidInput, NoCapacity, OperationFailed, ProviderError, SaltmarshError, Unreachable
from saltmarsh.growing import grow
from saltmarsh.machine import Phase
from saltmarsh.model import State
from saltmarsh.pools import parse_nodes
from saltmarsh.recovery import recover_abandoned
from saltmarsh.resuming import plan, resume
from saltmarsh.shrinking import shrink
from saltmarsh.suspending import suspend

ALL = ["osg1", "osg2", "osg3", "osg4"]
BOTH = ["osg1", "osg2"]


@pytest.fixture(autouse=True)
def away(controller, slurm):
    """osg1 and osg2 suspended with job 17 on both and job 18 on osg2; osg3 with job 19; osg4 is ready."""
    grow(controller, 4, "osg")
    slurm.start_job(17, "osg[1-2]")
    slurm.start_job(18, "osg2")
    slurm.start_job(19, "osg3")
    suspend(controller, BOTH, by="alice", why="a test")
    suspend(controller, ["osg3"], by="alice", why="a test")


def files(vmstates):
    """The state files and what is in them; whether a snapshot goes with them is their own business."""
    return [
        (state.path, state.number, replace(state.suspension, phase=Phase.WRITTEN)) for state in vmstates.state_files()
    ]


def everything(controller):
    """All that a call which is refused must leave alone."""
    slurm, vmstates = controller.slurm, controller.vmstates_of("osg1")
    looks = [vmstates.look(name) for name in ALL]
    return controller.ledger.nodes(), controller.ledger.operations(unfinished=False), slurm.nodes(), slurm.jobs(), looks


# The way back


def test_a_node_comes_back_with_its_job_and_leaves_no_file(controller, vmstates):
    answer = resume(controller, ["osg3"])
    assert answer["osg3"].pop("seconds") >= 0
    assert answer == {"osg3": {"host": "hv1", "jobs": ["19"]}}
    assert_working(controller, ["osg3"], [19])
    assert_suspended(controller, BOTH, [17, 18])
    assert controller.ledger.operations() == ()
    assert controller.ledger.operations(unfinished=False)[-1].outcome == "done"


def test_history_tells_the_way_back(controller):
    resume(controller, ["osg3"])
    assert reasons(controller, "osg3")[-3:] == [
        (State.RESUMING, "restoring"),
        (State.RESUMING, "restoring on hv1"),
        (State.READY, "back at work"),
    ]


def test_all_nodes_of_a_parallel_job_come_back_together(controller):
    assert set(resume(controller, ["osg1"])) == set(BOTH)
    assert_working(controller, BOTH, [17, 18])
    assert_suspended(controller, ["osg3"], [19])


def test_a_plan_tells_what_comes_back_and_where_and_changes_nothing(controller, vmstates):
    before = everything(controller)
    assert plan(controller, ["osg2"]) == {
        name: {"host": "hv1", "file": vmstates.look(name).state.path} for name in ("osg2", "osg1")
    }
    assert everything(controller) == before


def test_slurm_speaks_to_a_node_only_when_clock_and_gate_are_right_and_its_jobs_go_on_after_that(
    controller, slurm, vmstates
):
    order = vmstates.calls
    order.clear()
    for call in ("set_addresses", "resume_jobs", "undrain"):
        slurm.before[call] = lambda call=call: order.append((call, ""))
    resume(controller, ["osg1"])
    calls = [call for call, _ in order]
    last = {call: max(at for at, each in enumerate(calls) if each == call) for call in calls}
    first = {call: calls.index(call) for call in calls}
    steps = ["restore", "mark", "unpause", "set_clock", "ready-again", "settle", "set_addresses", "resume_jobs"]
    steps.append("undrain")
    for earlier, later in itertools.pairwise(steps):
        if (earlier, later) in (("mark", "unpause"), ("unpause", "set_clock"), ("set_clock", "ready-again")):
            continue  # each node for itself
        assert last[earlier] < first[later] or earlier == "mark", (earlier, later)
    for name in BOTH:
        own = [call for call, each in order if each == name]
        first_part = ["restore", "mark", "unpause", "set_clock", "ready-again", "job-processes"]
        assert own == [*first_part, "settle", "mark", "forget"]


def test_no_job_goes_on_while_slurm_speaks_to_the_stand_in(controller, slurm, vmstates):
    seen = []
    slurm.before["resume_jobs"] = lambda: seen.append(
        [(slurm.stood_in(name), str(vmstates.look(name).machine.state), slurm.usable(name)) for name in BOTH]
    )
    resume(controller, BOTH)
    assert seen == [[(False, "running", False)] * 2]


def test_progress_is_told_in_hostlists(controller):
    said = []
    resume(controller, ["osg1"], say=said.append)
    assert said == [
        "osg[1-2]: restoring",
        "osg[1-2]: running, checking clock, munge, mounts, DNS",
        "osg[1-2]: jobs 17, 18 go on",
        "osg[1-2]: back at work",
    ]


def test_a_node_can_be_suspended_again(controller, slurm):
    for _ in range(2):
        resume(controller, BOTH)
        suspend(controller, BOTH, by="alice", why="again")
    assert_suspended(controller, BOTH, [17, 18])
    resume(controller, BOTH)
    assert_working(controller, BOTH, [17, 18])


# Where


def test_a_host_that_is_asked_for_gets_the_machine(controller, vmstates):
    assert resume(controller, ["osg3"], host="hv2")["osg3"]["host"] == "hv2"
    assert vmstates.look("osg3").machine.host == controller.ledger.nodes(["osg3"])[0].host == "hv2"


@pytest.mark.parametrize("function", [plan, resume])
def test_a_host_that_does_not_exist_is_refused(controller, function):
    before = everything(controller)
    with pytest.raises(InvalidInput, match=r"^hv9 is not a host of this provider: hv1, hv2$"):
        function(controller, ["osg3"], host="hv9")
    assert everything(controller) == before


def test_a_host_without_room_is_refused(controller, provider):
    provider.fail("choose_host", "hv2", "no room for osg3 (2048 MiB): hv2 has 5 MiB")
    before = everything(controller)
    with pytest.raises(NoCapacity, match=r"^no room for osg3"):
        resume(controller, ["osg3"], host="hv2")
    assert everything(controller) == before


# What can't be, is refused before anything is done


def lose(controller, name):
    controller.vmstates_of("osg1").forget(name, "hv1")


def damage(controller, name):
    (state,) = controller.vmstates_of("osg1").state_files([name])
    open(state.path, "w").close()


@pytest.mark.parametrize("function", [plan, resume])
@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["vn099"], "node 'vn099' belongs to no pool; pools: "),
        (["vn001", "osg3"], "vn001: not there, nothing to resume"),
        (["osg3", "osg4"], "not suspended: osg4: ready"),
    ],
)
def test_what_is_not_suspended_is_refused(controller, function, names, line):
    before = everything(controller)
    with pytest.raises(InvalidInput) as raised:
        function(controller, names)
    assert error_of(raised).startswith(line)
    assert everything(controller) == before


def test_while_slurm_is_away_nothing_is_begun(controller, slurm, vmstates):
    slurm.reachable = False
    before = files(vmstates), controller.ledger.operations(unfinished=False)
    with pytest.raises(Unreachable, match=r"^slurmctld on ctl does not answer$"):
        resume(controller, ["osg3"])
    assert (files(vmstates), controller.ledger.operations(unfinished=False)) == before


LOST = {
    "lost": (lose, "its state file is lost", lambda state: "lost"),
    "damaged": (
        damage,
        "{path} can't be restored from: save image is incomplete",
        lambda path: f"{path} can't be restored from: save image is incomplete",
    ),
}


@pytest.mark.parametrize(("spoil", "why", "status"), LOST.values(), ids=LOST)
def test_a_state_file_that_is_lost_is_said_in_one_line_and_nothing_is_changed(controller, vmstates, spoil, why, status):
    path = vmstates.look("osg2").state.path
    spoil(controller, "osg2")
    before = everything(controller)
    with pytest.raises(ProviderError) as raised:
        resume(controller, ["osg1"])
    assert error_of(raised) == (
        f"osg2 can't come back, nor can its jobs: {why.format(path=path)}; "
        "give it up with elastic.shrink osg2 force=True"
    )
    assert everything(controller) == before
    assert reporting.status(controller, ["osg2"])["osg2"]["memory"] == status(path)
    assert shrink(controller, parse_nodes("osg2"), "osg", force=True) == ["osg2"]


def test_the_others_come_back_when_a_lost_one_was_given_up(controller, slurm, vmstates):
    """The job on both is Slurm's to requeue; its processes on the other node are ended."""
    lose(controller, "osg2")
    shrink(controller, parse_nodes("osg2"), "osg", force=True)
    assert set(slurm.killed) == {17, 18}
    controller.minions.provider.fail("processes", "osg1", "17")
    resume(controller, ["osg1"])
    assert_working(controller, ["osg1"])
    assert ("systemctl", "osg1") in vmstates.calls


def test_a_failed_node_that_was_never_suspended_is_refused(controller):
    operation, _ = controller.ledger.begin(
        "test", "osg", ["osg4"], expect={State.READY}, to=State.FAILED, reason="burnt"
    )
    controller.ledger.finish(operation)
    with pytest.raises(InvalidInput, match=r"^osg4 is failed \(burnt\) and can't be resumed: it was not suspended$"):
        resume(controller, ["osg4"])
    assert states(controller)["osg4"] is State.FAILED


def test_a_failed_node_whose_machine_is_gone_is_refused(controller, provider):
    operation, _ = controller.ledger.begin(
        "test", "osg", ["osg4"], expect={State.READY}, to=State.FAILED, reason="burnt"
    )
    controller.ledger.finish(operation)
    (provider.machine_files / "osg4").unlink()
    with pytest.raises(InvalidInput, match=r"^osg4 is failed \(burnt\) and can't be resumed: its state file is lost$"):
        resume(controller, ["osg4"])


# Until a machine runs, everything is undone


@pytest.mark.parametrize("function", ["restore", "restored"])
@pytest.mark.parametrize("name", BOTH)
def test_if_one_can_not_be_restored_all_are_suspended_as_before(controller, vmstates, provider, function, name):
    before = files(vmstates), controller.ledger.nodes(BOTH)[0].reason
    provider.fail(function, f"{name}.hv2" if function == "restore" else name, "hv2: no such bridge")
    with pytest.raises(OperationFailed) as raised:
        resume(controller, ["osg1"], host="hv2")
    assert error_of(raised) == "hv2: no such bridge; osg[1-2]: suspended as before"
    assert_suspended(controller, BOTH, [17, 18])
    assert (files(vmstates), controller.ledger.nodes(BOTH)[0].reason) == before
    assert {node.host for node in controller.ledger.nodes(BOTH)} == {"hv1"}
    assert controller.ledger.operations() == ()
    provider.mend(function, f"{name}.hv2" if function == "restore" else name)
    resume(controller, ["osg1"])
    assert_working(controller, BOTH, [17, 18])


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_before_a_machine_runs_leaves_all_suspended_once_somebody_looks(controller, interruption):
    def say(line):
        if line.endswith(": restoring"):
            raise interruption

    with pytest.raises(OperationFailed, match=r"^interrupted; "):
        resume(controller, ["osg1"], say=say)
    recover_abandoned(controller)
    assert_suspended(controller, BOTH, [17, 18])


@pytest.mark.parametrize("moment", ["running, checking", "go on"])
def test_an_interruption_after_that_is_gone_on_from_by_whoever_comes_next(controller, moment):
    def say(line):
        if moment in line:
            raise KeyboardInterrupt

    with pytest.raises(OperationFailed, match=r"^interrupted; left to the engine: osg\[1-2\]$"):
        resume(controller, ["osg1"], say=say)
    assert recover_abandoned(controller) == 1
    assert_working(controller, BOTH, [17, 18])


def test_an_interruption_that_comes_too_late_tells_that_the_nodes_are_back(controller):
    def say(line):
        if line.endswith(": back at work"):
            raise KeyboardInterrupt

    with pytest.raises(OperationFailed, match=r"^interrupted; osg\[1-2\]: back at work$"):
        resume(controller, ["osg1"], say=say)
    assert_working(controller, BOTH, [17, 18])
    assert controller.ledger.operations() == ()


@pytest.mark.parametrize("step", ["set_addresses", "resume_jobs", "undrain", "nodes"])
def test_when_slurm_goes_away_meanwhile_the_nodes_come_back_once_it_answers(controller, slurm, step):
    def say(line):
        if "checking clock" in line:
            slurm.before[step] = slurm.go_down

    with pytest.raises(SaltmarshError) as raised:
        resume(controller, ["osg1"], say=say)
    assert error_of(raised) == "slurmctld on ctl does not answer; left to the engine: osg[1-2]"
    assert recover_abandoned(controller) == 0
    slurm.before.clear()
    slurm.reachable = True
    assert recover_abandoned(controller) == 1
    assert_working(controller, BOTH, [17, 18])
    assert slurm.killed == []


# A node whose way back fails


def gate_fails(controller, name="osg1", why="/shared is not mounted"):
    controller.minions.provider.fail("gate", name, why)
    with pytest.raises(OperationFailed) as raised:
        resume(controller, ALL[:3])
    return error_of(raised)


def test_a_node_whose_gate_fails_and_who_shares_its_job_stay_drained_and_others_go_on(controller, slurm):
    assert gate_fails(controller) == "osg1: /shared is not mounted; osg2: waits with job 17 for osg1"
    assert_working(controller, ["osg3"], [19])
    for name, why in (("osg1", "/shared is not mounted"), ("osg2", "waits with job 17 for osg1")):
        (node,) = controller.ledger.nodes([name])
        assert (node.state, node.reason, node.operation) == (State.FAILED, why, None)
        assert slurm.nodes()[name].reason == f"not back: {why}"
        assert not slurm.usable(name)
    assert (slurm.job_states(17), slurm.job_states(18)) == ({"SUSPENDED"}, {"SUSPENDED"})
    assert slurm.killed == []


def test_when_it_is_mended_it_can_be_resumed_again_without_being_restored(controller, provider, vmstates):
    gate_fails(controller)
    provider.mend("gate", "osg1")
    vmstates.calls.clear()
    assert set(resume(controller, ["osg1"])) == set(BOTH)
    assert_working(controller, BOTH, [17, 18])
    assert not {"restore", "put_back", "let_go"} & {call for call, _ in vmstates.calls}


def test_a_failed_node_that_runs_can_not_change_hosts_on_its_way(controller):
    gate_fails(controller)
    with pytest.raises(InvalidInput, match=r"^osg1 is on hv1 already; resume it there, then migrate it$"):
        resume(controller, ["osg1"], host="hv2")


def test_a_clock_that_can_not_be_set_is_a_reason_too(controller, slurm, provider):
    provider.fail("set_clock", "osg3", "hv1: the clock of osg3 is +480.000 s off after it was set")
    with pytest.raises(OperationFailed, match=r"^osg3: hv1: the clock of osg3 is \+480"):
        resume(controller, ["osg3"])
    assert slurm.stood_in("osg3")
    assert slurm.job_states(19) == {"SUSPENDED"}


def test_a_node_that_is_shrunk_by_count_is_not_one_whose_job_waits_in_it(controller, slurm):
    gate_fails(controller)
    with pytest.raises(OperationFailed, match=r"still runs 17"):
        shrink(controller, parse_nodes("osg1"), "osg", timeout=0.05)
    assert slurm.killed == []
    assert states(controller)["osg1"] is State.FAILED


def test_a_machine_that_died_before_it_was_proven_fit_is_restored_again_with_its_disk(controller, provider, vmstates):
    gate_fails(controller)
    vmstates.die("osg1")
    provider.mend("gate", "osg1")
    resume(controller, ["osg1"])
    assert_working(controller, BOTH, [17, 18])


def died_while_it_was_resumed(controller, vmstates, moment):
    """Their host loses power after they were let run; the process that resumes them dies as well."""

    def say(line):
        if moment in line:
            raise KeyboardInterrupt

    with pytest.raises(OperationFailed):
        resume(controller, ["osg1"], say=say)
    for name in BOTH:
        vmstates.die(name)
    vmstates.calls.clear()
    assert recover_abandoned(controller) == 1


def test_machines_that_died_with_their_resume_before_they_were_proven_fit_are_restored_again(controller, vmstates):
    died_while_it_was_resumed(controller, vmstates, "running")
    assert_working(controller, BOTH, [17, 18])


def test_machines_whose_jobs_went_on_before_they_died_are_failed_and_never_restored(controller, slurm, vmstates):
    died_while_it_was_resumed(controller, vmstates, "jobs 17, 18 go on")
    assert {states(controller)[name] for name in BOTH} == {State.FAILED}
    assert set(slurm.killed) == {17, 18}
    assert not {"restore", "put_back", "let_go"} & {call for call, _ in vmstates.calls}
    assert not any(map(slurm.stood_in, BOTH))
    with pytest.raises(InvalidInput, match=r"its machine died after it had been resumed: /.* no longer fits its disk$"):
        resume(controller, ["osg1"])


def test_machines_that_go_on_after_a_failed_suspend_and_die_then_are_not_taken_for_suspended(
    controller, slurm, vmstates, provider
):
    """Their memory was written, but they have run since."""
    resume(controller, BOTH)
    provider.fail("let_go", "osg2", "hv1: no")
    slurm.before["resume_jobs"] = slurm.go_down
    with pytest.raises(OperationFailed):
        suspend(controller, BOTH, by="alice", why="a test")
    for name in BOTH:
        assert vmstates.look(name).state.machine
        vmstates.die(name)
    provider.mend("let_go", "osg2")
    slurm.before.clear()
    slurm.reachable = True
    assert recover_abandoned(controller) == 1
    assert {states(controller)[name] for name in BOTH} == {State.FAILED}
    assert set(slurm.killed) == {17, 18}


def test_nodes_of_one_job_wait_for_each_other_though_the_resume_died_between_telling_of_them(controller, slurm):
    """osg1 is failed already, osg2 not yet told to wait."""
    move = controller.ledger.move

    def moved(operation, names, to, **kwargs):
        move(operation, names, to, **kwargs)
        if to is State.FAILED:
            raise KeyboardInterrupt

    controller.ledger.move = moved
    gate_fails(controller)
    controller.ledger.move = move
    assert [states(controller)[name] for name in BOTH] == [State.FAILED, State.RESUMING]
    recover_abandoned(controller)
    assert {states(controller)[name] for name in BOTH} == {State.FAILED}
    assert slurm.job_states(17) == {"SUSPENDED"}
    assert_working(controller, ["osg3"], [19])


# Jobs that have ended meanwhile


def test_processes_of_jobs_that_have_ended_are_ended_before_the_node_works_again(controller, slurm, provider, vmstates):
    slurm.end_job(19)
    provider.fail("processes", "osg3", "19")
    seen = []
    slurm.before["undrain"] = lambda: seen.append(("systemctl", "osg3") in vmstates.calls)
    resume(controller, ["osg3"])
    assert seen == [True]
    assert_working(controller, ["osg3"])


def test_processes_that_do_not_end_keep_the_node_drained(controller, slurm, provider):
    slurm.end_job(19)
    provider.fail("processes", "osg3", "19")
    provider.fail("immortal", "osg3", "yes")
    with pytest.raises(OperationFailed) as raised:
        resume(controller, ["osg3"])
    assert error_of(raised) == "osg3: processes of jobs 19, which have ended, are still there"
    assert not slurm.usable("osg3")


def test_a_node_whose_slurmd_does_not_register_has_failed_and_can_be_resumed_again(controller, slurm):
    slurm.before["undrain"] = lambda: slurm.lose("osg3")
    with pytest.raises(OperationFailed, match=r"^osg3: slurmd did not register in 0.2 s: Slurm has it "):
        resume(controller, ["osg3"])
    assert states(controller)["osg3"] is State.FAILED
    slurm.before.clear()
    slurm.register("osg3")
    resume(controller, ["osg3"])
    assert_working(controller, ["osg3"], [19])
