"""A pool on demand: Slurm starts its nodes for jobs and gives idle ones up; the engine does what Slurm wants."""

import time
from contextlib import closing

import neighbours
import pytest
from views import states, traces

from saltmarsh import bell, reconciling, recovery
from saltmarsh.growing import grow
from saltmarsh.model import State
from saltmarsh.reconciling import answer_slurm, reconcile
from saltmarsh.shrinking import shrink
from saltmarsh.suspending import suspend

NODES = ["osg1", "osg2", "osg3", "osg4"]


@pytest.fixture
def pillar(pillar):
    """Pool osg is on demand, with at most three nodes."""
    pillar["elastic"]["pools"]["osg"] |= {"on_demand": True, "limits": {"max_nodes": 3}}
    return pillar


@pytest.fixture
def controller(controller):
    """Slurm has been offered what it may start."""
    reconcile(controller)
    return controller


def startable(controller):
    return {name for name, node in controller.slurm.nodes().items() if node.startable}


def rest(controller):
    """Look until there is nothing to do."""
    for _ in range(5):
        if not any(each.finding.repair for each, _ in reconcile(controller, grace=0)):
            return
    raise AssertionError(reconcile(controller, test=True))


def test_slurm_may_start_as_many_as_the_pool_may_have_and_none_of_other_pools(controller):
    assert startable(controller) == {"osg1", "osg2", "osg3"}
    assert reconcile(controller) == []


def test_a_node_that_slurm_wants_grows_and_its_job_runs(controller, slurm):
    slurm.want("osg2", job=17)
    answer_slurm(controller)
    assert states(controller) == {"osg2": State.READY}
    assert slurm.job_states(17) == {"RUNNING"}
    assert slurm.killed == []
    rest(controller)
    assert startable(controller) == {"osg1", "osg3"}


def test_only_slurm_is_asked_what_it_wants(controller, slurm, monkeypatch):
    slurm.want("osg2", job=17)
    monkeypatch.setattr(controller.cloud, "inventory", None)
    answer_slurm(controller, begin=lambda task: None)


def test_a_node_that_slurm_has_given_up_goes_and_may_be_started_again(controller, slurm):
    grow(controller, 2, "osg")
    slurm.give_up("osg1")
    answer_slurm(controller)
    assert states(controller) == {"osg2": State.READY}
    assert "osg1" not in traces(controller) - startable(controller)
    rest(controller)
    assert startable(controller) == {"osg1", "osg3"}
    assert slurm.killed == []


def test_nodes_are_grown_for_all_jobs_at_once(controller, slurm):
    for number in (1, 2, 3):
        slurm.want(f"osg{number}", job=number)
    answer_slurm(controller)
    assert len(controller.ledger.operations(unfinished=False)[-1].nodes) == 3
    assert all(slurm.job_states(number) == {"RUNNING"} for number in (1, 2, 3))


def test_of_nodes_for_different_jobs_those_that_fail_keep_no_other_from_its_job(controller, slurm, provider):
    provider.fail("create", "osg2", "no room")
    for number in (1, 2, 3):
        slurm.want(f"osg{number}", job=number)
    answer_slurm(controller)
    assert states(controller) == {"osg1": State.READY, "osg3": State.READY}
    assert (slurm.job_states(1), slurm.job_states(3)) == ({"RUNNING"}, {"RUNNING"})
    assert slurm.killed == [2]  # back in the queue


def test_of_the_nodes_of_one_job_all_come_or_none(controller, slurm, provider):
    provider.fail("create", "osg2", "no room")
    slurm.want("osg[1-2]", job=17)
    slurm.want("osg3", job=18)
    answer_slurm(controller)
    assert states(controller) == {"osg3": State.READY}
    assert slurm.job_states(18) == {"RUNNING"}
    assert 17 in slurm.killed
    assert set(provider.machines()) == {"osg3"}


def test_a_node_that_failed_can_be_started_again_without_anybody(controller, slurm, provider):
    provider.fail("create", "osg1", "no room")
    slurm.want("osg1", job=17)
    answer_slurm(controller)
    rest(controller)
    assert "osg1" in startable(controller)
    provider.mend("create", "osg1")
    slurm.want("osg1", job=18)
    answer_slurm(controller)
    assert slurm.job_states(18) == {"RUNNING"}


def test_what_was_wanted_while_the_engine_was_away_is_not_lost(controller, slurm, pillar, tmp_path):
    slurm.want("osg1", job=17)
    slurm.keep_in(tmp_path / "slurm")
    next_one = neighbours.controller(pillar, tmp_path)
    next_one.slurm.keep_in(tmp_path / "slurm")
    answer_slurm(next_one)
    assert next_one.slurm.job_states(17) == {"RUNNING"}
    next_one.ledger.close()


@pytest.fixture
def half_grown(controller, slurm, minions, pillar, tmp_path):
    """Slurm wants osg1 for a job and osg2 for another; they boot, and the process that grew them is dead."""
    minions.silent.update(["osg1", "osg2"])
    slurm.want("osg1", job=17)
    operation, _ = controller.ledger.claim("grow", controller.site.pool("osg"), names=["osg1", "osg3"])
    controller.ledger.move(operation, ["osg1", "osg3"], State.CREATING, host="hv1")
    for name in ("osg1", "osg3"):
        minions.provider.add(name)
        controller.ledger.move(operation, [name], State.BOOTING, host="hv1")
    controller.ledger.abandon(operation)
    return operation


def test_a_node_that_boots_for_a_job_is_waited_for_when_the_master_has_restarted(
    controller, slurm, minions, provider, half_grown
):
    begun = []
    assert recovery.recover_abandoned(controller, lambda *task: begun.append(task)) == 1
    assert recovery.recover_abandoned(controller, lambda *task: begun.append(task)) == 0
    ((carry_on, *arguments),) = begun
    minions.silent.clear()
    carry_on(*arguments)
    assert states(controller) == {"osg1": State.READY}
    assert slurm.job_states(17) == {"RUNNING"}
    assert slurm.killed == []
    assert set(provider.machines()) == {"osg1"}  # nobody waited for osg3
    assert controller.ledger.operations() == ()


def test_it_is_not_waited_for_longer_than_it_may_boot(controller, slurm, provider, half_grown, caplog):
    object.__setattr__(controller.site.pools["osg"].limits, "boot_timeout", 0)
    recovery.recover_abandoned(controller, lambda function, *arguments: function(*arguments))
    assert states(controller) == {}
    assert slurm.killed == [17]
    assert provider.machines() == {}
    assert "osg1: not ready within 0 s" in caplog.text


def test_a_runner_waits_for_nobody_elses_nodes(controller, slurm, half_grown):
    recovery.recover_abandoned(controller)
    assert states(controller) == {}
    assert slurm.killed == [17]


def test_a_grow_of_an_administrator_and_a_job_want_the_same_node_and_both_get_it(controller, slurm):
    operation, _ = controller.ledger.claim("grow", controller.site.pool("osg"), names=["osg1"])
    slurm.want("osg1", job=17)
    answer_slurm(controller)
    assert states(controller) == {"osg1": State.CLAIMED}
    controller.ledger.abandon(operation)
    recovery.recover_abandoned(controller)
    assert slurm.killed == [17]  # back in the queue: nobody grows it any more
    assert "osg1" in startable(controller)


def test_an_image_that_is_not_there_gives_the_job_back_at_once(controller, slurm, monkeypatch, caplog):
    object.__setattr__(controller.site.pools["osg"], "image", "lost.qcow2")
    slurm.want("osg1", job=17)
    answer_slurm(controller)
    assert slurm.killed == [17]
    assert "osg1: can't be grown: pool osg: image lost.qcow2 is not there" in caplog.text


def test_a_provider_that_does_not_answer_gives_the_job_back(controller, slurm, provider):
    provider.fail("list", "all", "no route")
    slurm.want("osg1", job=17)
    answer_slurm(controller)
    assert slurm.killed == [17]
    assert "osg1" in startable(controller)
    assert states(controller) == {}


def test_what_an_administrator_grows_and_shrinks_is_offered_again(controller):
    grow(controller, 3, "osg")
    rest(controller)
    assert startable(controller) == set()
    shrink(controller, 3, "osg")
    rest(controller)
    assert startable(controller) == {"osg1", "osg2", "osg3"}


def test_nodes_that_are_suspended_count_and_are_not_taken_away(controller, slurm):
    grow(controller, 2, "osg")
    suspend(controller, ["osg1"], by="alice", why="a test")
    rest(controller)
    assert states(controller) == {"osg1": State.SUSPENDED, "osg2": State.READY}
    assert len(startable(controller)) == 1


def test_a_node_that_an_administrator_has_set_down_is_not_offered(controller, slurm):
    slurm.down(["osg1"], "bad cable")
    assert [each.finding.repair for each, _ in reconcile(controller) if each.finding.subject == "osg1"] == [None]
    assert startable(controller) == {"osg2", "osg3", "osg4"}


def test_slurm_starts_no_node_whose_machine_can_not_be_made(controller, slurm, provider):
    (provider.others / "osg1").touch()
    slurm.want("osg1", job=17)
    reconcile(controller)
    assert slurm.killed == [17]  # back in the queue
    rest(controller)
    assert startable(controller) == {"osg2", "osg3", "osg4"}
    (provider.others / "osg1").unlink()
    shrink(controller, grow(controller, 1, "osg")["nodes"], "osg")
    rest(controller)
    assert "osg1" in startable(controller)


def test_a_pool_that_is_no_longer_on_demand_is_parked(controller, pillar, tmp_path):
    object.__setattr__(controller.site.pools["osg"], "on_demand", False)
    reconcile(controller)
    assert startable(controller) == set()


def test_the_engine_grows_in_the_background_and_begins_nothing_twice(controller, slurm, minions, monkeypatch):
    minions.silent.add("osg1")
    slurm.want("osg1", job=17)
    with closing(reconciling.Reconciler(controller)) as reconciler:
        reconciler.look(everything=False)
        _wait_until(lambda: states(controller) == {"osg1": State.BOOTING})
        for _ in range(3):
            reconciler.look()
            time.sleep(0.02)
        slurm.want("osg2", job=18)
        reconciler.look(everything=False)
        _wait_until(lambda: slurm.job_states(18) == {"RUNNING"})
        minions.silent.clear()
        _wait_until(lambda: slurm.job_states(17) == {"RUNNING"})
        _wait_until(lambda: not controller.ledger.operations())
    assert slurm.killed == []


def _wait_until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["up", "down", "failed"])
def test_the_bell_is_heard_once(tmp_path, name):
    assert not bell.rung(tmp_path)
    (tmp_path / name).touch()
    assert bell.rung(tmp_path)
    assert not bell.rung(tmp_path)


def test_whoever_may_ring_can_do_nothing_else(tmp_path):
    """SlurmUser owns the directory: links, directories and other names are neither followed nor in the way."""
    secret = tmp_path.with_name("secret")
    secret.write_text("kept")
    (tmp_path / "up").symlink_to(secret)
    (tmp_path / "down").mkdir()
    (tmp_path / "other").touch()
    assert bell.rung(tmp_path)
    assert secret.read_text() == "kept"
    assert not bell.rung(tmp_path)
    assert not bell.rung(tmp_path / "not there")
