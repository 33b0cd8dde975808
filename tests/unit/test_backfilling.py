"""backfill: so many leases as are wanted, a node for each that runs, and none is ended over a job."""

import pytest
from neighbours.host import Host
from views import assert_suspended, assert_undone, assert_working, error_of, reasons, states

from saltmarsh import backfilling, leasing, shrinking
from saltmarsh.backfilling import LATE, Backfill, start, status, stop
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
    assert start(controller, 2, "osg")[0].keys() == {"osg1", "osg2"}
    assert start(controller, 3, "osg")[0].keys() == {"osg3"}
    assert start(controller, 3, "osg") == ({}, [])
    assert queued(controller) == ["osg1", "osg2", "osg3"]


def test_a_lease_has_the_cpus_of_the_machine_and_its_memory_with_what_qemu_needs(controller, slurm, monkeypatch):
    asked = []
    monkeypatch.setattr(slurm, "submit_lease", lambda *args: asked.append(args))
    start(controller, 1, "osg")
    assert asked == [("osg1", controller.site.lease, 2, 2048 + 256)]


def test_nodes_that_are_suspended_without_a_lease_come_first(controller, slurm):
    grow(controller, parse_nodes("osg[1-3]"), "osg")
    suspend(controller, ["osg3"], by="alice", why="")
    assert start(controller, 1, "osg")[0].keys() == {"osg3"}
    assert start(controller, 2, "osg")[0].keys() == {"osg4"}


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


def test_a_lease_that_waits_for_its_time_need_not_if_its_host_has_not_come_to_it(controller, slurm, monkeypatch):
    start(controller, 1, "osg")
    [job] = leases(controller, controller.site.pool("osg")).values()
    slurm.delay(job.id)
    backfill, now = Backfill(controller), [100.0]
    monkeypatch.setattr(backfilling.time, "monotonic", lambda: now[0])
    for seconds, reason in ((0, "BeginTime"), (LATE - 1, "BeginTime"), (1, "None")):
        now[0] += seconds
        backfill.look()
        assert leases(controller, controller.site.pool("osg"))["osg1"].reason == reason


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


def test_the_lease_of_a_suspended_node_has_ended_before_the_node_is_removed(controller, slurm, monkeypatch):
    """Its host could be about to bring it back."""
    start(controller, 1, "osg")
    run_on(slurm, controller, osg1="hv1")
    Backfill(controller).look()
    suspend(controller, ["osg1"], by="a lease", why="")
    [lease] = leases(controller, controller.site.pool("osg")).values()
    seen, shrink = [], shrinking.shrink

    def ending(handles):
        if slurm.job_states(lease.id):
            slurm.change_job(lease.id, "CANCELLED", "COMPLETING")
            slurm.before["jobs"] = lambda: seen.append("asked") if len(seen) < 3 else slurm._jobs.pop(lease.id, None)

    monkeypatch.setattr(backfilling, "_POLL", 0)
    monkeypatch.setattr(slurm, "cancel_jobs", ending)
    monkeypatch.setattr(shrinking, "shrink", lambda *args, **kw: (seen.append(queued(controller)), shrink(*args, **kw)))
    stop(controller, pool="osg")
    assert seen[-1] == []
    assert_undone(controller)


def test_if_its_lease_does_not_end_the_node_stays(controller, slurm, monkeypatch):
    start(controller, 1, "osg")
    run_on(slurm, controller, osg1="hv1")
    Backfill(controller).look()
    suspend(controller, ["osg1"], by="a lease", why="")
    [lease] = leases(controller, controller.site.pool("osg")).values()
    monkeypatch.setattr(backfilling, "END_SECONDS", 0)
    monkeypatch.setattr(slurm, "cancel_jobs", lambda handles: None)
    with pytest.raises(OperationFailed, match=rf"osg1: its lease {lease.id} does not end, see its host"):
        stop(controller, pool="osg")
    assert_suspended(controller, ["osg1"])


# Stop, and an urgent job meanwhile


@pytest.fixture
def stopping(controller, slurm, monkeypatch):
    """
    A function that stops while osg1 runs job 17 under a lease on hv1.

    The acts it is given are done one by one, whenever the stop looks for jobs that still run.
    """
    start(controller, 1, "osg")
    run_on(slurm, controller, osg1="hv1")
    Backfill(controller).look()
    slurm.start_job(17, "osg1")
    monkeypatch.setattr(shrinking, "_POLL", 0.01)

    def stop_while(*acts, timeout=0.1):
        waiting = iter(acts)

        def say(line):
            if line.startswith("waiting for jobs"):
                monkeypatch.setattr(shrinking.time, "sleep", lambda seconds: next(waiting, lambda: None)())

        try:
            return stop(controller, pool="osg", timeout=timeout, say=say)
        finally:
            monkeypatch.undo()

    return stop_while


def put_away(controller):
    """An urgent job has come."""
    leasing.put_away(Host.of(controller, "hv1"), "osg1", "hv1 is wanted")


def bring_back(controller, slurm, host):
    """The lease has started again."""
    run_on(slurm, controller, osg1=host)
    leasing.bring_back(Host.of(controller, host), "osg1")


def test_a_node_that_goes_to_disk_while_a_stop_waits_for_its_job_is_suspended_and_takes_no_other_job(
    controller, slurm, stopping
):
    with pytest.raises(OperationFailed, match="osg1: still runs 17"):
        stopping(lambda: put_away(controller))
    assert not slurm.usable("osg1")
    assert catch_up(controller) == ["osg1"]
    assert_suspended(controller, ["osg1"], [17])
    assert queued(controller) == ["osg1"]


def test_when_it_is_back_after_the_stop_it_takes_jobs_again(controller, slurm, stopping):
    with pytest.raises(OperationFailed):
        stopping(lambda: put_away(controller))
    backfill = Backfill(controller)
    backfill.look()
    bring_back(controller, slurm, "hv1")
    assert not slurm.usable("osg1")
    backfill.look()
    assert_working(controller, ["osg1"], [17])


def test_a_drain_of_the_administrators_stays(controller, slurm, stopping):
    slurm.drain(["osg1"], "a fan is loud")
    put_away(controller)
    bring_back(controller, slurm, "hv1")
    Backfill(controller).look()
    assert slurm.nodes()["osg1"].reason == "a fan is loud"
    assert not slurm.usable("osg1")


def test_a_node_that_came_back_elsewhere_while_a_stop_waited_is_removed_there(controller, slurm, stopping):
    ended = stopping(
        lambda: put_away(controller),
        lambda: bring_back(controller, slurm, "hv2"),
        lambda: slurm.end_job(17),
        timeout=10,
    )
    assert ended == ["osg1"]
    assert_undone(controller)
    assert queued(controller) == []


def test_status_tells_every_lease_and_what_its_node_does(controller, slurm):
    start(controller, 2, "osg")
    run_on(slurm, controller, osg1="hv1")
    Backfill(controller).look()
    there = leases(controller, controller.site.pool("osg"))
    assert status(controller)["osg"]["nodes"] == {
        "osg1": {"lease": there["osg1"].id, "state": "running", "waits for": None, "host": "hv1", "node": "ready"},
        "osg2": {"lease": there["osg2"].id, "state": "pending", "waits for": "None", "host": None, "node": "free"},
    }


def test_a_lease_that_slurm_refuses_is_told(controller, slurm):
    def refuse():
        raise SlurmError("sbatch failed: invalid account")

    slurm.before["submit_lease"] = refuse
    with pytest.raises(SlurmError, match="invalid account"):
        start(controller, 1, "osg")
