"""Leases, seen from a host: a node goes to disk when its lease ends, and comes back when it starts again."""

import pytest
from neighbours.host import Host
from views import assert_suspended, assert_working, error_of, states

from saltmarsh import leasing, standin
from saltmarsh.catching_up import catch_up
from saltmarsh.errors import OperationFailed, Unreachable
from saltmarsh.growing import grow
from saltmarsh.leasing import bring_back, give_up, node_of, put_away
from saltmarsh.machine import PowerState
from saltmarsh.migrating import migrate
from saltmarsh.model import State
from saltmarsh.pools import parse_nodes
from saltmarsh.suspending import suspend

LEASE, OTHER, JOB = 5, 6, 17
BOTH = ["osg1", "osg2"]


@pytest.fixture(autouse=True)
def nodes(controller, slurm, monkeypatch):
    """osg1 and osg2 on hv1, ready; osg1 has a lease there that runs, and a job."""
    monkeypatch.setattr(leasing, "PATIENCE", 0.2)
    monkeypatch.setattr(leasing, "_POLL", 0.01)
    grow(controller, parse_nodes("osg[1-2]"), "osg", host="hv1")
    slurm.queue_lease(LEASE, "osg1", "hv1")
    slurm.start_job(JOB, "osg1")


@pytest.fixture
def host(controller):
    """hv1."""
    return Host.of(controller, "hv1")


def away(controller, *names):
    """Nodes are on disk, whatever the ledger has; the stand-in answers for them."""
    vmstates = controller.vmstates_of("osg1")
    return all(
        vmstates.look(name).machine is None
        and vmstates.look(name).state.machine
        and controller.slurm.stood_in(name)
        and "DRAIN" in controller.slurm.nodes()[name].states
        for name in names
    )


def here(controller, name, host):
    """A node is at work on a host, whatever the ledger has."""
    look = controller.vmstates_of(name).look(name)
    return (
        look.machine is not None
        and (look.machine.state, look.suspension, look.machine.host) == (PowerState.RUNNING, None, host)
        and controller.slurm.usable(name)
        and not controller.slurm.stood_in(name)
    )


# The end of a lease


def test_the_node_of_a_lease_that_ends_goes_to_disk_with_its_job(controller, slurm, host):
    assert put_away(host, "osg1", "hv1 is wanted")
    assert away(controller, "osg1")
    assert slurm.job_states(JOB) == {"SUSPENDED"}
    assert slurm.nodes()["osg1"].reason.startswith("suspended by a lease at ")
    assert slurm.nodes()["osg1"].reason.endswith(": hv1 is wanted")
    assert here(controller, "osg2", "hv1")


def test_nothing_is_written_into_the_ledger_by_a_host(controller, host):
    before = controller.ledger.nodes(), controller.ledger.operations(unfinished=False)
    put_away(host, "osg1", "hv1 is wanted")
    assert (controller.ledger.nodes(), controller.ledger.operations(unfinished=False)) == before


def test_the_nodes_of_a_parallel_job_step_aside_together(controller, slurm, host):
    slurm.end_job(JOB)
    slurm.start_job(JOB, "osg[1-2]")
    put_away(host, "osg1", "hv1 is wanted")
    assert away(controller, *BOTH)
    assert slurm.job_states(JOB) == {"SUSPENDED"}


@pytest.mark.parametrize("by", ["nobody", "another host", "hands"])
def test_a_node_that_is_not_there_is_no_trouble(controller, host, by):
    if by == "nobody":
        assert not put_away(host, "osg3", "hv1 is wanted")
        return
    if by == "hands":
        suspend(controller, ["osg1"], by="alice", why="")
        assert not put_away(host, "osg1", "hv1 is wanted")
        assert_suspended(controller, ["osg1"], [JOB])
        return
    host.before_lock = lambda names: put_away(Host.of(controller, "hv1"), "osg1", "hv1 is wanted")
    assert not put_away(host, "osg1", "hv1 is wanted")
    assert away(controller, "osg1")


def test_a_node_that_is_still_being_made_is_removed(controller, slurm, host, provider):
    slurm.end_job(JOB)
    slurm._set(["osg1"], states=frozenset({"DOWN", "CLOUD", "POWERED_DOWN"}), reason="elastic.grow")
    assert put_away(host, "osg1", "hv1 is wanted")
    assert host.removed == ["osg1"]
    assert "osg1" not in provider.machines()


def test_a_set_that_grows_while_it_is_locked_is_locked_anew(controller, slurm, host):
    locked = []

    def lock(names):
        locked.append(names)
        if len(locked) == 1:
            slurm.start_job(18, "osg[1-2]")

    host.before_lock = lock
    put_away(host, "osg1", "hv1 is wanted")
    assert locked == [["osg1"], BOTH]
    assert away(controller, *BOTH)


def test_no_other_host_is_asked_for_a_node_that_is_here(controller, host, vmstates, monkeypatch):
    look = vmstates.look

    def alone(name, host=None):
        if host != "hv1":
            raise Unreachable("hv2 can't be reached")
        return look(name, host)

    monkeypatch.setattr(vmstates, "look", alone)
    assert put_away(host, "osg1", "hv1 is wanted")
    monkeypatch.undo()
    assert away(controller, "osg1")


def test_if_it_cant_be_written_everything_goes_on(controller, slurm, host, provider):
    provider.fail("save", "osg1", "No space left on device")
    with pytest.raises(OperationFailed) as raised:
        put_away(host, "osg1", "hv1 is wanted")
    assert "No space left on device; osg1 and all jobs go on" in error_of(raised)
    assert_working(controller, BOTH, [JOB])


def test_slurmctld_may_be_away_for_a_moment(controller, slurm, host, monkeypatch):
    monkeypatch.setattr(leasing, "PATIENCE", 10)
    slurm.reachable, polls = False, []

    def sleep(seconds):
        polls.append(seconds)
        slurm.reachable = True

    monkeypatch.setattr(leasing.time, "sleep", sleep)
    assert put_away(host, "osg1", "hv1 is wanted")
    assert polls
    assert away(controller, "osg1")


# What if it can't be suspended


def test_with_keep_the_host_stays_the_nodes_and_both_are_told(controller, slurm, host):
    give_up(host, "osg1", LEASE, OperationFailed("No space left on device"))
    assert slurm.drained_hosts == {"hv1": "osg1 can't be suspended and keeps this host: No space left on device"}
    assert slurm.held == [LEASE]
    assert here(controller, "osg1", "hv1")


def test_with_kill_the_host_is_free_and_slurm_requeues_the_jobs(controller, slurm):
    host = Host.of(controller, "hv1", on_save_failure="kill")
    give_up(host, "osg1", LEASE, OperationFailed("No space left on device"))
    assert host.removed == ["osg1"]
    assert slurm.killed == [JOB]
    assert slurm.nodes()["osg1"].reason == "killed, because it could not be suspended: No space left on device"
    assert slurm.drained_hosts == {}


# The start of a lease


def test_the_node_of_a_lease_that_starts_comes_back_with_its_job(controller, slurm, host):
    put_away(host, "osg1", "hv1 is wanted")
    bring_back(host, "osg1")
    assert_working(controller, BOTH, [JOB])


def test_it_comes_back_on_the_host_that_slurm_has_chosen(controller, slurm, host):
    put_away(host, "osg1", "hv1 is wanted")
    slurm.end_job(LEASE)
    slurm.queue_lease(LEASE, "osg1", "hv2")
    bring_back(Host.of(controller, "hv2"), "osg1")
    assert here(controller, "osg1", "hv2")
    assert slurm.job_states(JOB) == {"RUNNING"}


def test_a_node_that_is_not_there_is_left_to_the_controller(controller, slurm, host):
    slurm.queue_lease(OTHER, "osg3", "hv1")
    bring_back(host, "osg3")
    assert controller.vmstates_of("osg1").look("osg3").machine is None


def test_a_node_that_is_there_is_left_alone(controller, host, vmstates):
    del vmstates.calls[:]
    bring_back(host, "osg1")
    assert vmstates.calls == []


def test_the_nodes_of_a_parallel_job_wait_for_each_others_leases_and_come_back_together(controller, slurm, host):
    slurm.end_job(JOB)
    slurm.start_job(JOB, "osg[1-2]")
    slurm.queue_lease(OTHER, "osg2")
    put_away(host, "osg1", "hv1 is wanted")
    waited = []

    def wait(seconds):
        waited.append(away(controller, *BOTH))
        slurm.queue_lease(OTHER, "osg2", "hv2")

    bring_back(host, "osg1", wait)
    assert waited == [True]
    assert here(controller, "osg1", "hv1")
    assert here(controller, "osg2", "hv2")
    assert slurm.job_states(JOB) == {"RUNNING"}


def test_an_urgent_job_on_all_hosts_gets_them_and_a_parallel_job_goes_on_when_the_last_lease_starts(
    controller, slurm, host
):
    slurm.end_job(JOB)
    migrate(controller, ["osg2"], "hv2", by="alice")
    slurm.start_job(JOB, "osg[1-2]")
    slurm.queue_lease(OTHER, "osg2", "hv2")
    other = Host.of(controller, "hv2")
    assert [put_away(each, name, "it is wanted") for each, name in ((host, "osg1"), (other, "osg2"))] == [True, False]
    assert away(controller, *BOTH)
    assert slurm.job_states(JOB) == {"SUSPENDED"}
    slurm.queue_lease(LEASE, "osg1")
    waited = []

    def wait(seconds):
        waited.append(away(controller, *BOTH))
        slurm.queue_lease(LEASE, "osg1", "hv1")

    bring_back(other, "osg2", wait)
    bring_back(host, "osg1")
    assert waited == [True]
    assert here(controller, "osg1", "hv1")
    assert here(controller, "osg2", "hv2")
    assert slurm.job_states(JOB) == {"RUNNING"}


def test_a_node_without_a_lease_that_went_along_is_not_waited_for(controller, slurm, host):
    slurm.end_job(JOB)
    slurm.start_job(JOB, "osg[1-2]")
    put_away(host, "osg1", "hv1 is wanted")
    bring_back(host, "osg1")
    assert_working(controller, BOTH, [JOB])


def test_a_node_that_failed_on_its_way_back_can_leave_again_and_loses_nothing(controller, slurm, host, provider):
    put_away(host, "osg1", "hv1 is wanted")
    provider.fail("gate", "osg1", "DNS does not say that osg1 is 10.77.0.51")
    with pytest.raises(OperationFailed, match=r"osg1 not back: .*DNS"):
        bring_back(host, "osg1")
    assert put_away(host, "osg1", "hv1 is wanted again")
    assert away(controller, "osg1")
    assert slurm.job_states(JOB) == {"SUSPENDED"}
    provider.mend("gate", "osg1")
    bring_back(host, "osg1")
    assert_working(controller, BOTH, [JOB])


def test_the_node_of_a_lease_is_its_name(slurm, host):
    assert node_of(host, LEASE) == "osg1"
    assert node_of(host, JOB) is None
    assert node_of(host, 99) is None


def test_what_somebody_else_submits_to_the_partition_of_leases_is_none(slurm, host):
    slurm.queue_lease(7, "osg2", "hv1", user="alice")
    slurm.queue_lease(8, "no-node", "hv1")
    assert node_of(host, 7) is node_of(host, 8) is None
    assert leasing.leases(host).keys() == {"osg1"}


# The ledger catches up


def test_the_ledger_learns_that_a_host_has_suspended_a_node(controller, slurm, host):
    put_away(host, "osg1", "hv1 is wanted")
    assert catch_up(controller) == ["osg1"]
    assert_suspended(controller, ["osg1"], [JOB])
    assert controller.ledger.nodes(["osg1"])[0].reason == slurm.nodes()["osg1"].reason
    assert controller.ledger.operations() == ()


def test_the_ledger_learns_that_a_node_is_suspended_which_its_host_could_not_bring_back(controller, host, vmstates):
    put_away(host, "osg1", "hv1 is wanted")
    [saved] = vmstates.state_files(["osg1"])
    vmstates.restore(saved, "hv1")
    vmstates.put_back("osg1", "hv1")
    assert catch_up(controller) == ["osg1"]
    assert_suspended(controller, ["osg1"], [JOB])


def test_the_ledger_learns_that_a_host_has_brought_a_node_back(controller, slurm, host):
    put_away(host, "osg1", "hv1 is wanted")
    catch_up(controller)
    bring_back(host, "osg1")
    assert catch_up(controller) == ["osg1"]
    assert_working(controller, BOTH, [JOB])


def test_the_ledger_learns_that_a_node_is_on_another_host_although_it_never_learned_that_it_was_away(
    controller, slurm, host
):
    put_away(host, "osg1", "hv1 is wanted")
    slurm.queue_lease(LEASE, "osg1", "hv2")
    bring_back(Host.of(controller, "hv2"), "osg1")
    assert catch_up(controller) == ["osg1"]
    assert_working(controller, BOTH, [JOB])
    assert controller.ledger.nodes(["osg1"])[0].host == "hv2"


def test_the_ledger_learns_that_a_host_has_killed_a_node(controller, slurm):
    give_up(Host.of(controller, "hv1", on_save_failure="kill"), "osg1", LEASE, OperationFailed("No space"))
    assert catch_up(controller) == ["osg1"]
    [node] = controller.ledger.nodes(["osg1"])
    assert (node.state, node.reason) == (State.FAILED, "killed, because it could not be suspended: No space")


def test_where_nothing_has_happened_nothing_is_learned(controller, host):
    assert catch_up(controller) == []


@pytest.mark.parametrize("call", ["set_addresses", "pause", "save", "let_go", "restore", "unpause"])
def test_a_node_at_which_a_host_is_at_work_is_left_alone_by_ledger_and_reminder(
    controller, slurm, host, vmstates, call
):
    seen = []

    def look():
        before = controller.ledger.nodes(), slurm.nodes()["osg1"], slurm.job_states(JOB)
        seen.append((catch_up(controller), list(standin.remind(controller))))
        assert (controller.ledger.nodes(), slurm.nodes()["osg1"], slurm.job_states(JOB)) == before

    if call in ("restore", "unpause"):
        put_away(host, "osg1", "hv1 is wanted")
        catch_up(controller)
    if call == "set_addresses":
        slurm.before[call] = lambda: (slurm.before.clear(), look())
    else:
        act = getattr(vmstates, call)
        setattr(vmstates, call, lambda *args, **kwargs: (look(), act(*args, **kwargs))[1])
    if call in ("restore", "unpause"):
        bring_back(host, "osg1")
    else:
        put_away(host, "osg1", "hv1 is wanted")
    assert seen == [([], [])]
    assert states(controller)["osg1"] in (State.READY, State.SUSPENDED)
