"""A slurmctld that was killed has forgotten its last seconds; it is told again before that costs a job."""

import pytest
from views import assert_suspended, assert_working, reasons

from saltmarsh import recovery, standin
from saltmarsh.errors import SlurmError, Unreachable
from saltmarsh.growing import grow
from saltmarsh.model import State
from saltmarsh.resuming import resume
from saltmarsh.suspending import suspend

BOTH = ["osg1", "osg2"]
JOB = 17


@pytest.fixture(autouse=True)
def nodes(controller, slurm):
    """osg1 and osg2 with a job on both; osg3 is ready."""
    grow(controller, 3, "osg")
    slurm.start_job(JOB, "osg[1-2]")


def suspend_both(controller):
    suspend(controller, BOTH, by="alice", why="a test")


# The last thing that slurmctld wrote to its disk.
MOMENTS = ["drain", "suspend_jobs", "set_addresses"]


def memory_before(slurm, call):
    """Where slurmctld's memory will be kept, as it is before a call."""
    kept = []
    slurm.before[call] = lambda: kept or kept.append(slurm.memory())
    return kept


@pytest.mark.parametrize("call", MOMENTS)
def test_nodes_that_left_are_away_for_slurm_again(controller, slurm, call):
    kept = memory_before(slurm, call)
    suspend_both(controller)
    slurm.die(*kept)
    assert str(standin.remind(controller)) == "osg[1-2]"
    assert_suspended(controller, BOTH, [JOB])
    assert slurm.nodes()["osg1"].reason == reasons(controller, "osg1")[-1][1]
    assert slurm.nodes()["osg1"].reason.endswith(": a test")


@pytest.mark.parametrize("call", ["resume_jobs", "set_addresses", "undrain"])
def test_nodes_that_are_back_are_here_for_slurm_again(controller, slurm, call):
    suspend_both(controller)
    kept = memory_before(slurm, call)
    resume(controller, BOTH)
    slurm.die(*kept)
    assert str(standin.remind(controller)) == "osg[1-2]"
    assert_working(controller, [*BOTH, "osg3"], [JOB])


def test_what_slurm_has_not_forgotten_is_left_alone(controller, slurm):
    suspend_both(controller)
    slurm.drain(["osg3"], "a fan is loud")
    before, slurm.calls[:] = slurm.memory(), []
    assert not standin.remind(controller)
    assert slurm.memory() == before
    assert set(slurm.calls) == {"nodes", "jobs"}
    assert controller.ledger.operations(unfinished=False)[-1].verb == "suspend"


def test_a_job_that_somebody_lets_go_on_while_its_nodes_are_away_is_suspended_again(controller, slurm):
    suspend_both(controller)
    slurm.resume_jobs([JOB], 1)
    standin.remind(controller)
    assert_suspended(controller, BOTH, [JOB])


def test_a_node_that_an_operation_holds_is_left_to_it(controller, slurm):
    suspend_both(controller)
    controller.ledger.begin("resume", None, BOTH, expect={State.SUSPENDED}, to=State.RESUMING)
    slurm.set_addresses({"osg1": "10.77.0.51"})
    before = slurm.memory()
    assert not standin.remind(controller)
    assert slurm.memory() == before


def test_a_resume_reminds_first(controller, slurm):
    kept = memory_before(slurm, "suspend_jobs")
    suspend_both(controller)
    slurm.die(*kept)
    resume(controller, ["osg1"])
    assert_working(controller, [*BOTH, "osg3"], [JOB])


def test_when_slurm_is_away_nothing_is_taken_for_forgotten(controller, slurm):
    suspend_both(controller)
    slurm.go_down()
    with pytest.raises(Unreachable):
        standin.remind(controller)
    assert controller.ledger.operations() == ()


def test_a_reminder_that_slurm_refuses_is_made_again(controller, slurm):
    kept = memory_before(slurm, "suspend_jobs")
    suspend_both(controller)
    slurm.die(*kept)

    def refuse():
        raise SlurmError("scontrol update failed: Slurm is in an ill temper")

    slurm.before["drain"] = refuse
    with pytest.raises(SlurmError):
        standin.remind(controller)
    assert controller.ledger.operations() == ()
    del slurm.before["drain"]
    standin.remind(controller)
    assert_suspended(controller, BOTH, [JOB])


def test_a_reminder_whose_process_died_is_made_again(controller, slurm):
    kept = memory_before(slurm, "suspend_jobs")
    suspend_both(controller)
    slurm.die(*kept)
    operation, _ = controller.ledger.begin("remind", None, BOTH, expect={State.SUSPENDED}, to=State.SUSPENDED)
    controller.ledger.abandon(operation)
    recovery.recover_abandoned(controller)
    standin.remind(controller)
    assert_suspended(controller, BOTH, [JOB])
