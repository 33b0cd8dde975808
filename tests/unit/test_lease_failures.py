"""What becomes of a host whose node can't be written to disk, and of the node."""

import contextlib

import pytest
from neighbours.host import Host
from views import assert_working, reasons

from saltmarsh import leasehost, leasing
from saltmarsh.backfilling import Backfill
from saltmarsh.catching_up import catch_up
from saltmarsh.errors import OperationFailed, ProviderError, Unreachable
from saltmarsh.growing import grow
from saltmarsh.leasehost import end, start
from saltmarsh.leasing import bring_back, put_away
from saltmarsh.machine import PowerState
from saltmarsh.model import State
from saltmarsh.pools import parse_nodes
from saltmarsh.shrinking import shrink

LEASE, JOB = 5, 17


@pytest.fixture(autouse=True)
def lease(controller, slurm, tmp_path, monkeypatch):
    """osg1 at work on hv1 under a lease, with a job."""
    monkeypatch.setattr(leasing, "PATIENCE", 0.2)
    monkeypatch.setattr(leasing, "_POLL", 0.01)
    monkeypatch.setattr(leasehost, "RUN", str(tmp_path))
    grow(controller, parse_nodes("osg1"), "osg", host="hv1")
    slurm.queue_lease(LEASE, "osg1", "hv1")
    slurm.start_job(JOB, "osg1")


@pytest.fixture
def ended(controller):
    """A function that lets the lease end on hv1; returns the host."""

    def end_of_lease(policy="keep"):
        host = Host.of(controller, "hv1", on_save_failure=policy, hysteresis=0)
        start(host, LEASE)
        end(host, LEASE)
        return host

    return end_of_lease


def assert_made_anew(controller, slurm):
    """The node's job was requeued, and another machine has its name and its lease."""
    assert slurm.killed == [JOB]
    catch_up(controller)
    [node] = controller.ledger.nodes(["osg1"])
    assert node.state is State.FAILED
    Backfill(controller).look()
    assert_working(controller, ["osg1"])
    assert [state for state, _ in reasons(controller, "osg1")].count(State.READY) == 2


@pytest.mark.parametrize("fault", ["check_room", "save", "half-saved"])
def test_with_keep_node_and_job_go_on_and_the_host_is_kept_from_others(controller, slurm, provider, ended, fault):
    provider.fail(fault, "osg1", "No space left on device")
    host = ended("keep")
    assert slurm.drained_hosts["hv1"].startswith("osg1 can't be suspended and keeps this host: No space left on device")
    assert slurm.held == [LEASE]
    assert host.removed == []
    provider.mend(fault, "osg1")
    assert_working(controller, ["osg1"], [JOB])


@pytest.mark.parametrize("fault", ["check_room", "save", "half-saved"])
def test_with_kill_the_host_is_free_and_the_node_is_made_anew(controller, slurm, provider, ended, fault):
    provider.fail(fault, "osg1", "No space left on device")
    host = ended("kill")
    assert host.removed == ["osg1"]
    assert (slurm.drained_hosts, slurm.held) == ({}, [])
    assert slurm.nodes()["osg1"].reason.startswith("killed, because it could not be suspended: No space left on device")
    provider.mend(fault, "osg1")
    assert_made_anew(controller, slurm)


@pytest.mark.parametrize("policy", ["keep", "kill"])
def test_a_machine_that_dies_while_it_is_written_keeps_no_host(controller, slurm, provider, ended, policy):
    provider.fail("died", "osg1", "hv1: can't write the memory of osg1: QEMU ended")
    host = ended(policy)
    assert host.removed == ["osg1"]
    assert (slurm.drained_hosts, slurm.held) == ({}, [])
    assert_made_anew(controller, slurm)


@pytest.mark.parametrize("policy", ["keep", "kill"])
def test_a_machine_that_was_removed_meanwhile_keeps_no_host(controller, slurm, vmstates, ended, provider, policy):
    """The administrator has shrunk it by force."""
    mark = vmstates.mark

    def remove(name, *args):
        (provider.machine_files / name).unlink()
        mark(name, *args)

    vmstates.mark = remove
    host = ended(policy)
    assert host.removed == []
    assert (slurm.drained_hosts, slurm.held) == ({}, [])


@pytest.mark.parametrize("policy", ["keep", "kill"])
def test_a_machine_whose_memory_was_written_after_all_is_suspended(
    controller, slurm, vmstates, provider, ended, policy
):
    """Its program has failed afterwards, and could not bring it back either."""
    provider.fail("saved", "osg1", "hv1: connection lost")
    provider.fail("restore", "osg1.hv1", "hv1: connection lost")
    host = ended(policy)
    assert (slurm.drained_hosts, slurm.held, slurm.killed, host.removed) == ({}, [], [], [])
    assert vmstates.look("osg1").machine is None
    for fault, name in (("saved", "osg1"), ("restore", "osg1.hv1")):
        provider.mend(fault, name)
    bring_back(host, "osg1")
    catch_up(controller)
    assert_working(controller, ["osg1"], [JOB])


def test_while_slurm_is_away_nothing_is_killed_and_the_program_fails(slurm, vmstates, ended):
    slurm.before["drain"] = slurm.go_down
    with pytest.raises(Unreachable):
        ended("kill")
    assert vmstates.look("osg1").machine.state is PowerState.RUNNING
    assert slurm.killed == []


def test_a_node_that_does_not_come_back_is_given_up_by_force_and_made_anew(controller, slurm, provider):
    host = Host.of(controller, "hv1")
    put_away(host, "osg1", "hv1 is wanted")
    catch_up(controller)
    provider.fail("gate", "osg1", "/home: no answer")
    for _ in range(2):
        with pytest.raises(OperationFailed, match="osg1 not back: osg1: /home: no answer"):
            bring_back(host, "osg1")
        assert catch_up(controller) == []
    shrink(controller, parse_nodes("osg1"), "osg", force=True)
    provider.mend("gate", "osg1")
    bring_back(host, "osg1")
    assert slurm.killed == [JOB]
    Backfill(controller).look()
    assert_working(controller, ["osg1"])


# A host that dies


@pytest.fixture
def dead_while_writing(controller, slurm, vmstates, monkeypatch):
    """hv1 has died while it wrote osg1, and has booted: all that its program left is what the disk has."""

    class PowerCut(BaseException):
        pass

    def cut(name, host, urgent=False):
        provider = controller.minions.provider
        provider.fail("died", name, "power")
        with contextlib.suppress(ProviderError):
            save(name, host, urgent)
        provider.mend("died", name)
        raise PowerCut

    save = vmstates.save
    vmstates.save = cut
    monkeypatch.setattr("saltmarsh.suspending.Leaving.give_up", lambda self, err: None)
    with pytest.raises(PowerCut):
        put_away(Host.of(controller, "hv1"), "osg1", "hv1 is wanted")
    vmstates.save = save
    monkeypatch.undo()
    assert vmstates.look("osg1").machine.state is PowerState.STOPPED
    assert vmstates.look("osg1").state.machine is None
    assert slurm.stood_in("osg1")


def test_the_node_of_a_host_that_died_while_it_was_written_is_made_anew(controller, slurm, dead_while_writing):
    assert catch_up(controller) == ["osg1"]
    assert controller.ledger.nodes(["osg1"])[0].reason == (
        "killed, because it could not be suspended: its machine died while its memory was written"
    )
    assert_made_anew(controller, slurm)


def test_a_lease_that_starts_elsewhere_leaves_a_dead_machine_to_the_controller(controller, slurm, dead_while_writing):
    slurm.queue_lease(LEASE, "osg1", "hv2")
    bring_back(Host.of(controller, "hv2"), "osg1")
    assert catch_up(controller) == ["osg1"]
    assert_made_anew(controller, slurm)
    assert controller.ledger.nodes(["osg1"])[0].host == "hv2"


def test_as_long_as_the_host_does_not_answer_nobody_gives_its_node_up(
    controller, slurm, provider, dead_while_writing, monkeypatch
):
    def silent(name, host=None):
        raise Unreachable("hv1 can't be reached")

    monkeypatch.setattr(controller.vmstates_of("osg1"), "look", silent)
    assert catch_up(controller) == []
    assert slurm.killed == []


def test_a_machine_that_has_just_ended_because_its_memory_is_complete_is_not_given_up(
    controller, slurm, vmstates, provider, monkeypatch
):
    """The first look finds the state file not yet complete, and the machine off already."""
    monkeypatch.setattr(vmstates, "let_go", lambda name, host: None)
    put_away(Host.of(controller, "hv1"), "osg1", "hv1 is wanted")
    looks, look = [], vmstates.look

    def too_early(name, host=None):
        looks.append(found := look(name, host))
        incomplete = found.state.__class__(**vars(found.state) | {"machine": None})
        return found if len(looks) > 1 else found.__class__(found.machine, False, found.suspension, incomplete)

    monkeypatch.setattr(vmstates, "look", too_early)
    assert catch_up(controller) == []
    assert len(looks) == 2
    assert slurm.killed == []
    assert slurm.job_states(JOB) == {"SUSPENDED"}
