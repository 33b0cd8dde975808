"""
Suspend, resume and migrate, killed at every boundary: before each call to a machine, to Slurm, to the ledger.

Whoever comes next finds nodes that all work or are all suspended, with their job, and can go on with them.
"""

from contextlib import contextmanager

import neighbours
import pytest
from deadly import LOSSES, Site
from views import assert_suspended, assert_working, states

from saltmarsh import recovery, standin
from saltmarsh.checkpointing import checkpoint, restore
from saltmarsh.growing import grow
from saltmarsh.migrating import migrate
from saltmarsh.model import State
from saltmarsh.resuming import resume
from saltmarsh.suspending import suspend

NODES = ["osg1", "osg2"]
JOB = 17
LOUD = "a fan is loud"


def suspend_both(controller):
    suspend(controller, NODES, by="alice", why="a test")


def suspend_in_vain(controller):
    """The second can't be written, so all go on."""
    controller.minions.provider.fail("half-saved", "osg2", "no space left")
    suspend_both(controller)


def resume_both(controller):
    """On another host."""
    resume(controller, NODES, host="hv2")


def migrate_both(controller):
    migrate(controller, NODES, "hv2", by="alice")


def migrate_in_vain(controller):
    """The second can't be restored there, so all come back where they were."""
    controller.minions.provider.fail("restore", "osg2.hv2", "no such bridge")
    migrate_both(controller)


def migrate_live(controller):
    migrate(controller, NODES, "hv2", by="alice", live=True)


def checkpoint_one(controller):
    checkpoint(controller, "osg1", by="alice")


def restore_one(controller):
    """To a checkpoint that was made before."""
    restore(controller, "osg1", 1, by="alice")


# What is done, and what nodes are after it was killed: sooner or later.
IN_VAIN = (suspend_in_vain, migrate_in_vain)
ACTS = {
    suspend_both: {State.READY, State.SUSPENDED},
    suspend_in_vain: {State.READY},
    resume_both: {State.SUSPENDED, State.READY},
    migrate_both: {State.READY},
    migrate_in_vain: {State.READY},
    migrate_live: {State.READY},
    checkpoint_one: {State.READY},
    restore_one: {State.READY},
}


@pytest.fixture
def site(pillar, tmp_path):
    directory = tmp_path / "site"
    directory.mkdir()
    controller = neighbours.controller(pillar, directory)
    made = Site(directory, controller)
    grow(controller, 2, "osg")
    controller.slurm.start_job(JOB, "osg[1-2]")
    controller.ledger.close()
    return made


@pytest.fixture
def act(request, site):
    """Something that is done to two nodes, of which the administrator has drained one."""
    controller = site.open()
    controller.slurm.drain(["osg2"], LOUD)
    if request.param is resume_both:
        suspend_both(controller)
    if request.param in (checkpoint_one, restore_one):
        controller.slurm.end_job(JOB)
        controller.slurm.start_job(JOB, "osg1")
    if request.param is restore_one:
        checkpoint_one(controller)
    controller.ledger.close()
    site.keep()
    return request.param


@contextmanager
def next_one(site, what):
    """The controller of whoever comes next; everything is put back afterwards."""
    controller = site.open()
    for fault, name in (("half-saved", "osg2"), ("restore", "osg2.hv2")):
        controller.minions.provider.mend(fault, name)
    try:
        yield controller
    except Exception as err:
        raise AssertionError(f"{what}: {err}") from err
    finally:
        controller.ledger.close()


def assert_nothing_is_lost(controller):
    """All nodes are in one state, which is the answer; with their job, and drained as they were."""
    assert controller.ledger.operations() == ()
    assert controller.slurm.killed == []
    (state,) = set(states(controller).values())
    if state is State.SUSPENDED:
        assert_suspended(controller, NODES, [JOB])
        return state
    drained = {name: node.reason for name, node in controller.slurm.nodes(NODES).items() if "DRAIN" in node.states}
    assert drained == {"osg2": LOUD}
    controller.slurm.undrain(["osg2"])
    assert_working(controller, NODES, [JOB])
    controller.slurm.drain(["osg2"], LOUD)
    return state


def go_on(controller):
    """A following suspend and resume work, from wherever."""
    if set(states(controller).values()) == {State.READY}:
        suspend_both(controller)
    resume_both(controller)
    assert assert_nothing_is_lost(controller) is State.READY


@pytest.mark.parametrize(("act", "expected"), ACTS.items(), ids=[each.__name__ for each in ACTS], indirect=["act"])
def test_whatever_boundary_it_is_killed_at_nothing_is_lost(act, expected, site):
    number, reached = 0, set()
    while moment := site.run(act, number := number + 1, may_fail=act in IN_VAIN):
        with next_one(site, f"{act.__name__} killed {moment}") as controller:
            recovery.recover_abandoned(controller)
            reached.add(assert_nothing_is_lost(controller))
            if number % 4 == 0:
                go_on(controller)
        site.put_back()
    assert number > 8
    assert reached == expected


@pytest.mark.parametrize(("who", "loss"), LOSSES, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("act", ACTS, ids=[each.__name__ for each in ACTS], indirect=True)
def test_whichever_call_is_lost_because_a_neighbour_is_killed_nothing_is_lost(act, who, loss, site, impatient):
    number = 0
    while moment := site.lose(act, who, loss, number := number + 1):
        with next_one(site, f"{act.__name__}, {moment}") as controller:
            recovery.recover_abandoned(controller)
            standin.remind(controller)
            assert_nothing_is_lost(controller)
        site.put_back()
    assert number > 1 or who == "minions"  # whom nobody asks here


@pytest.mark.parametrize("act", [migrate_both], indirect=True)
@pytest.mark.parametrize("moment", ["save", "restore", "set_clock"])
def test_a_recovery_may_be_killed_as_well(act, moment, site):
    number = 1
    while not site.run(act, number).endswith(f": {moment}"):
        number += 1
        site.put_back()
    site.keep()
    number = 0
    while again := site.run(recovery.recover_abandoned, number := number + 1):
        with next_one(site, f"killed at {moment}, its recovery {again}") as controller:
            recovery.recover_abandoned(controller)
            assert_nothing_is_lost(controller)
        site.put_back()
    assert number > 8
