"""backfill: so many leases as are wanted, a node for each that runs, and none is ended over a job."""

import pytest
from neighbours.host import Host
from views import assert_undone, assert_working, error_of, reasons, states

from saltmarsh.backfilling import Backfill, start, status, stop
from saltmarsh.catching_up import catch_up
from saltmarsh.errors import InvalidInput, OperationFailed, SlurmError
from saltmarsh.growing import grow
from saltmarsh.leasing import give_up, leases
from saltmarsh.model import State
from saltmarsh.pools import parse_nodes
from saltmarsh.suspending import suspend


def queued(controller):
    """The nodes that have leases."""
    return sorted(leases(controller, controller.site.pool("osg")))


def run_on(slurm, controller, **hosts):
    """Slurm starts the leases of nodes on hosts."""
    there = leases(controller, controller.site.pool("osg"))
    for name, host in hosts.items():
        slurm.queue_lease(there[name].id, name, host)


# Start


def test_as_many_leases_are_submitted_as_are_missing(controller):
    assert start(controller, 2, "osg").keys() == {"osg1", "osg2"}
    assert start(controller, 3, "osg").keys() == {"osg3"}
    assert start(controller, 3, "osg") == start(controller, 1, "osg") == {}
    assert queued(controller) == ["osg1", "osg2", "osg3"]


def test_a_lease_has_the_cpus_of_the_machine_and_its_memory_with_what_qemu_needs(controller, slurm, monkeypatch):
    asked = []
    monkeypatch.setattr(slurm, "submit_lease", lambda *args: asked.append(args))
    start(controller, 1, "osg")
    assert asked == [("osg1", controller.site.lease, 2, 2048 + 256)]


def test_nodes_that_are_suspended_without_a_lease_come_first(controller, slurm):
    grow(controller, parse_nodes("osg[1-3]"), "osg")
    suspend(controller, ["osg3"], by="alice", why="")
    assert start(controller, 1, "osg").keys() == {"osg3"}
    assert start(controller, 2, "osg").keys() == {"osg4"}


def test_more_than_the_pool_has_is_refused_before_anything_is_submitted(controller):
    with pytest.raises(InvalidInput) as raised:
        start(controller, 5, "osg")
    assert error_of(raised) == "pool osg: 0 leases are there, 4 more are possible, not 5"
    assert queued(controller) == []


def test_the_pools_limit_counts_nodes_and_leases(controller):
    start(controller, 12, "virtual")
    with pytest.raises(InvalidInput, match="12 leases are there, 0 more are possible"):
        start(controller, 13, "virtual")


# The nodes of leases


def test_a_lease_that_runs_gets_its_node_on_its_host(controller, slurm):
    start(controller, 3, "osg")
    run_on(slurm, controller, osg1="hv2", osg2="hv1")
    Backfill(controller).look()
    assert_working(controller, ["osg1", "osg2"])
    assert {node.name: node.host for node in controller.ledger.nodes()} == {"osg1": "hv2", "osg2": "hv1"}


def test_a_node_that_is_there_or_suspended_is_left_alone(controller, slurm):
    grow(controller, parse_nodes("osg[1-2]"), "osg", host="hv1")
    suspend(controller, ["osg2"], by="a lease", why="")
    start(controller, 1, "osg")
    slurm.queue_lease(77, "osg1", "hv1")
    run_on(slurm, controller, osg2="hv1")
    before = controller.ledger.nodes(), controller.ledger.operations(unfinished=False)
    Backfill(controller).look()
    assert (controller.ledger.nodes(), controller.ledger.operations(unfinished=False)) == before


def test_a_node_that_cant_be_made_is_not_tried_again_at_once_and_holds_nobody_up(controller, slurm, provider):
    start(controller, 2, "osg")
    run_on(slurm, controller, osg1="hv1", osg2="hv2")
    provider.fail("create", "osg1", "no disk")
    backfill = Backfill(controller)
    backfill.look()
    assert states(controller) == {"osg2": State.READY}
    provider.mend("create", "osg1")
    backfill.look()
    assert states(controller) == {"osg2": State.READY}
    Backfill(controller).look()
    assert_working(controller, ["osg1", "osg2"])


def test_a_lease_that_waits_for_its_time_need_not(controller, slurm):
    start(controller, 1, "osg")
    [job] = leases(controller, controller.site.pool("osg")).values()
    slurm.delay(job.id)
    Backfill(controller).look()
    assert leases(controller, controller.site.pool("osg"))["osg1"].reason == "None"


def test_a_node_that_its_host_has_killed_is_made_anew(controller, slurm):
    start(controller, 1, "osg")
    run_on(slurm, controller, osg1="hv1")
    backfill = Backfill(controller)
    backfill.look()
    give_up(Host.of(controller, "hv1", on_save_failure="kill"), "osg1", 1, OperationFailed("No space"))
    catch_up(controller)
    backfill.look()
    assert_working(controller, ["osg1"])
    assert [state for state, _ in reasons(controller, "osg1")].count(State.READY) == 2


# Stop


def test_stop_takes_nodes_away_and_then_their_leases(controller, slurm):
    start(controller, 2, "osg")
    run_on(slurm, controller, osg1="hv1")
    Backfill(controller).look()
    assert sorted(stop(controller, pool="osg")) == ["osg1", "osg2"]
    assert queued(controller) == []
    assert_undone(controller)


def test_leases_without_a_node_end_first(controller, slurm):
    start(controller, 3, "osg")
    run_on(slurm, controller, osg2="hv1")
    Backfill(controller).look()
    stop(controller, 1, "osg")
    assert queued(controller) == ["osg2"]
    assert_working(controller, ["osg2"])


def test_a_node_with_a_job_keeps_its_lease_and_is_named(controller, slurm):
    start(controller, 2, "osg")
    run_on(slurm, controller, osg1="hv1", osg2="hv1")
    Backfill(controller).look()
    slurm.start_job(17, "osg1")
    with pytest.raises(OperationFailed) as raised:
        stop(controller, pool="osg", timeout=0.05)
    assert "osg1: still runs 17" in error_of(raised)
    assert error_of(raised).endswith("; ended: osg2")
    assert queued(controller) == ["osg1"]
    assert_working(controller, ["osg1"], [17])


def test_a_suspended_node_with_a_job_keeps_its_lease_unless_its_job_is_given_up(controller, slurm):
    start(controller, 1, "osg")
    run_on(slurm, controller, osg1="hv1")
    Backfill(controller).look()
    slurm.start_job(17, "osg1")
    suspend(controller, ["osg1"], by="a lease", why="")
    with pytest.raises(OperationFailed, match="has job 17 in its memory"):
        stop(controller, pool="osg")
    assert queued(controller) == ["osg1"]
    assert stop(controller, pool="osg", force=True) == ["osg1"]
    assert queued(controller) == []


def test_status_tells_every_lease_and_what_its_node_does(controller, slurm):
    start(controller, 2, "osg")
    run_on(slurm, controller, osg1="hv1")
    Backfill(controller).look()
    there = leases(controller, controller.site.pool("osg"))
    assert status(controller) == {
        "osg1": {"lease": there["osg1"].id, "state": "running", "waits for": None, "host": "hv1", "node": "ready"},
        "osg2": {"lease": there["osg2"].id, "state": "pending", "waits for": "None", "host": None, "node": "free"},
    }


def test_a_lease_that_slurm_refuses_is_told(controller, slurm):
    def refuse():
        raise SlurmError("sbatch failed: invalid account")

    slurm.before["submit_lease"] = refuse
    with pytest.raises(SlurmError, match="invalid account"):
        start(controller, 1, "osg")
