"""checkpoint and restore: memory and disk of one moment, kept while the node goes on, and put back later."""

import pytest
from views import assert_suspended, assert_working, error_of, reasons, states

from saltmarsh import checkpointing, reporting
from saltmarsh.checkpointing import checkpoint, discard, listing, restore
from saltmarsh.errors import InvalidInput, OperationFailed
from saltmarsh.growing import grow
from saltmarsh.migrating import migrate
from saltmarsh.model import State
from saltmarsh.pools import parse_nodes
from saltmarsh.resuming import resume
from saltmarsh.shrinking import shrink
from saltmarsh.suspending import suspend

NODE = "osg1"
JOB = 17


@pytest.fixture(autouse=True)
def nodes(controller, slurm):
    """osg1 with a job, osg2 and osg3 with one on both."""
    grow(controller, 3, "osg")
    slurm.start_job(JOB, NODE)
    slurm.start_job(18, "osg[2-3]")


@pytest.fixture
def disk(provider):
    """How far the node's disk has come."""
    return lambda: int((provider.store / "disks" / NODE).read_text())


def make(controller):
    return checkpoint(controller, NODE, by="alice", why="before the big step")["checkpoint"]


def put_back(controller, number=1):
    return restore(controller, NODE, number, by="alice")


def test_a_checkpoint_is_made_and_the_node_goes_on(controller):
    made = checkpoint(controller, NODE, by="alice", why="before the big step")
    assert made["checkpoint"] == 1
    assert made["jobs"] == [str(JOB)]
    assert_working(controller, [NODE], [JOB])
    assert [op.verb for op in controller.ledger.operations(unfinished=False)] == ["grow", "checkpoint"]


def test_checkpoints_are_listed_with_their_jobs_and_reasons(controller):
    make(controller)
    make(controller)
    told = listing(controller, NODE)
    assert list(told) == [2, 1]
    assert told[1].pop("age") >= 0
    assert told[1].pop("size") > 0
    assert told[1].pop("file").endswith("osg1.1.state")
    assert told[1] == {"by": "alice", "why": "before the big step", "jobs": [str(JOB)]}
    assert listing(controller, "osg2") == {}


def test_a_node_goes_back_to_its_checkpoint_with_its_disk_and_its_job_goes_on(controller, disk):
    make(controller)
    before = disk()
    suspend(controller, [NODE], by="alice", why="to move on")
    resume(controller, [NODE])
    assert disk() > before
    assert put_back(controller)["jobs"] == [str(JOB)]
    assert disk() == before
    assert_working(controller, [NODE], [JOB])
    assert list(listing(controller, NODE)) == [1]


def test_a_checkpoint_can_be_restored_again_and_again(controller):
    make(controller)
    for _ in range(3):
        put_back(controller)
        assert_working(controller, [NODE], [JOB])
    assert list(listing(controller, NODE)) == [1]


def test_an_earlier_checkpoint_can_be_restored_and_the_later_one_after_that(controller):
    make(controller)
    make(controller)
    put_back(controller, 1)
    assert list(listing(controller, NODE)) == [2, 1]
    put_back(controller, 2)
    assert_working(controller, [NODE], [JOB])


def test_what_ties_the_machine_to_others_is_ended_before_it_is_given_up(controller, vmstates):
    make(controller)
    vmstates.calls.clear()
    put_back(controller)
    calls = [call for call, _ in vmstates.calls]
    order = ["choose", "part", "give_up", "restore", "unpause", "settle", "forget"]
    assert [call for call in calls if call in order] == order


def test_what_can_not_be_ended_does_not_keep_the_node_from_going_back(controller, provider):
    make(controller)
    provider.fail("part", NODE, "target is busy")
    put_back(controller)
    assert_working(controller, [NODE], [JOB])


def test_history_tells_of_a_restore(controller):
    make(controller)
    restore(controller, NODE, 1, by="alice", why="it went wrong")
    told = reasons(controller, NODE)
    assert (State.SUSPENDING, "restore checkpoint 1") in told
    assert told[-1] == (State.READY, "back at work")
    assert any(state is State.SUSPENDED and why.endswith(": it went wrong") for state, why in told)


def test_a_node_with_checkpoints_is_suspended_resumed_and_migrated_as_any_other(controller):
    make(controller)
    suspend(controller, [NODE], by="alice", why="a test")
    assert_suspended(controller, [NODE], [JOB])
    resume(controller, [NODE], host="hv2")
    migrate(controller, [NODE], "hv1", by="alice")
    assert_working(controller, [NODE], [JOB])
    assert list(listing(controller, NODE)) == [1]
    put_back(controller)


def test_status_tells_nothing_of_memory_while_a_node_with_checkpoints_works(controller):
    make(controller)
    assert "memory" not in reporting.status(controller, [NODE])[NODE]


def test_a_node_that_is_shrunk_takes_its_checkpoints_along(controller, vmstates, slurm):
    make(controller)
    slurm.end_job(JOB)
    shrink(controller, parse_nodes(NODE), "osg")
    assert vmstates.checkpoints([NODE]) == vmstates.state_files([NODE]) == []


def test_a_checkpoint_is_discarded(controller, vmstates):
    make(controller)
    make(controller)
    discard(controller, NODE, 1)
    assert list(listing(controller, NODE)) == [2]
    put_back(controller, 2)
    assert_working(controller, [NODE], [JOB])


def test_a_plan_tells_what_would_be_and_changes_nothing(controller):
    assert checkpointing.plan(controller, NODE) == {NODE: {"host": "hv1", "jobs": [str(JOB)]}}
    assert listing(controller, NODE) == {}
    make(controller)
    before = controller.ledger.operations(unfinished=False)
    assert checkpointing.plan_restore(controller, NODE, 1)["jobs"] == [str(JOB)]
    assert checkpointing.plan_discard(controller, NODE, 1)["jobs"] == [str(JOB)]
    assert controller.ledger.operations(unfinished=False) == before


def start_another(controller):
    controller.slurm.start_job(19, NODE)


def suspended(controller):
    suspend(controller, [NODE], by="alice", why="a test")


def nothing(controller):
    """All is as it was."""


PARALLEL = "osg2 runs parallel jobs (18), also on osg3: no checkpoint"
MISTAKES = {
    "of a parallel job": (checkpoint, nothing, "osg2", (), PARALLEL),
    "of a node that is free": (checkpoint, nothing, "osg4", (), "osg4: not there, nothing to suspend"),
    "of a node of no pool": (checkpoint, nothing, "osg9", (), "node 'osg9' belongs to no pool; "),
    "of a suspended node": (checkpoint, suspended, NODE, (), "can't be suspended: osg1: suspended"),
    "none there": (restore, nothing, "osg2", (1,), "osg2 has no checkpoint 1; checkpoints: none"),
    "no such number": (restore, nothing, NODE, (7,), "osg1 has no checkpoint 7; checkpoints: 1"),
    "no number": (restore, nothing, NODE, ("last",), "osg1 has no checkpoint 'last'; checkpoints: 1"),
    "a job that is not in it": (
        restore,
        start_another,
        NODE,
        (1,),
        "osg1 has jobs that are not in checkpoint 1 and would be lost: 19",
    ),
    "to a suspended node": (restore, suspended, NODE, (1,), "osg1 is suspended: expected ready"),
    "to a free node": (restore, nothing, "osg4", (1,), "osg4 is free: expected ready"),
}


@pytest.mark.parametrize(("verb", "arrange", "name", "arguments", "line"), MISTAKES.values(), ids=MISTAKES)
def test_what_can_not_be_is_refused_before_anything_is_done(controller, verb, arrange, name, arguments, line):
    make(controller)
    arrange(controller)
    before = controller.ledger.nodes(), controller.ledger.operations(unfinished=False)
    with pytest.raises(InvalidInput) as raised:
        verb(controller, name, *arguments, by="alice")
    assert error_of(raised).startswith(line)
    assert (controller.ledger.nodes(), controller.ledger.operations(unfinished=False)) == before


def test_a_provider_that_can_not_keep_checkpoints_says_so(controller, vmstates, monkeypatch):
    monkeypatch.setattr(type(vmstates), "keeps_checkpoints", False)
    with pytest.raises(InvalidInput, match=r"^osg1: its provider can't keep checkpoints$"):
        make(controller)


def test_a_checkpoint_that_can_not_be_written_leaves_the_job_running(controller, provider):
    provider.fail("half-saved", NODE, "no space left")
    with pytest.raises(OperationFailed, match=r"no space left; osg1 and all jobs go on$"):
        make(controller)
    assert listing(controller, NODE) == {}


def test_a_restore_that_fails_before_the_memory_is_given_up_leaves_the_job_running(controller, slurm):
    make(controller)
    controller.minions.provider.fail("hanging", NODE, "yes")
    with pytest.raises(OperationFailed, match=r"osg1 and all jobs go on$"):
        put_back(controller)
    controller.minions.provider.mend("hanging", NODE)
    assert_working(controller, [NODE], [JOB])
    assert list(listing(controller, NODE)) == [1]


def test_a_node_whose_gate_fails_after_it_went_back_keeps_its_job_and_its_checkpoint(controller, provider):
    make(controller)
    provider.fail("gate", NODE, "/shared is not mounted")
    with pytest.raises(OperationFailed, match="/shared is not mounted"):
        put_back(controller)
    assert states(controller)[NODE] is State.FAILED
    provider.mend("gate", NODE)
    resume(controller, [NODE])
    assert_working(controller, [NODE], [JOB])
    assert list(listing(controller, NODE)) == [1]
