"""Suspend and resume in an OpenStack cloud: the same promises as on libvirt hosts, with what Nova can do."""

import pytest
from neighbours.openstack_api import OpenStack
from views import states

from saltmarsh import servers
from saltmarsh.errors import InvalidInput, OperationFailed, ProviderError
from saltmarsh.growing import grow
from saltmarsh.machine import Suspension
from saltmarsh.minions import Reply
from saltmarsh.model import State
from saltmarsh.pools import parse_nodes
from saltmarsh.reporting import TAKEN, status
from saltmarsh.resuming import resume
from saltmarsh.server import CloudConfig
from saltmarsh.servers import Servers
from saltmarsh.serverstates import ServerStates
from saltmarsh.suspending import suspend

LONG = Suspension(1.5, "root", "why " * 50, tuple(str(number) for number in range(200)), "drained by ärger")


@pytest.fixture
def openstack(monkeypatch):
    """A cloud with the server vn001; nobody waits longer than it takes here."""
    monkeypatch.setattr(servers, "_POLL", 0.01)
    with OpenStack().running() as cloud:
        cloud.add_server("vn001", saltmarsh_cluster="lab", saltmarsh_address="10.77.0.101")
        yield cloud


class Minions:
    """A minion whose answers the test says."""

    def __init__(self):
        self.asked, self.answers = [], []

    def call(self, names, function, argv, given, *, timeout):
        """As Minions.call."""
        self.asked.append((*names, function, argv, given["stdin"]))
        return [Reply("vn001", self.answers.pop(0), True)] if self.answers else []


@pytest.fixture
def minions():
    return Minions()


@pytest.fixture
def memory(openstack, minions):
    """What suspends that server."""
    config = CloudConfig(cluster="lab", auth=openstack.auth, region_name="RegionOne")
    return ServerStates(Servers("hv1", config), minions)


def server(openstack):
    (only,) = openstack.servers.values()
    return only


def test_a_mark_of_any_length_is_kept_with_the_server_and_taken_off_again(memory, openstack):
    memory.mark("vn001", "hv1", LONG)
    assert all(len(value) <= 255 for value in server(openstack)["metadata"].values())
    assert memory.look("vn001").suspension == LONG
    memory.mark("vn001", "hv1", Suspension(2.5, "root", ""))
    assert memory.look("vn001").suspension == Suspension(2.5, "root", "")
    memory.mark("vn001", "hv1", None)
    assert set(server(openstack)["metadata"]) == {"saltmarsh_cluster", "saltmarsh_address"}


def test_a_mark_that_is_too_long_for_nova_is_refused_before_anything_is_written(memory, openstack):
    before = dict(server(openstack)["metadata"])
    with pytest.raises(ProviderError, match="is too long"):
        memory.mark("vn001", "hv1", Suspension(1.5, "root", "why", tuple(map(str, range(2000)))))
    assert server(openstack)["metadata"] == before


def test_a_suspended_server_is_its_memory_until_it_is_to_come_back(memory, openstack):
    memory.mark("vn001", "hv1", Suspension(1.5, "root", "why", ("7",)))
    state = memory.save("vn001", "hv1")
    assert (state.name, state.host, state.suspension.jobs) == ("vn001", "hv1", ("7",))
    assert server(openstack)["status"] == "SUSPENDED"
    look = memory.look("vn001")
    assert (look.machine, look.state) == (None, state)
    assert memory.state_files() == memory.state_files(["vn001"]) == [memory.latest("vn001", "hv1")] == [state]

    memory.restore(state, "hv1")
    assert memory.look("vn001").machine.state == "paused"
    memory.put_back("vn001", "hv1")
    assert memory.look("vn001").machine is None

    memory.restore(state, "hv1")
    memory.unpause("vn001", "hv1")
    look = memory.look("vn001")
    assert (look.machine.state, look.state, look.suspension.jobs) == ("running", None, ("7",))
    assert (server(openstack)["status"], memory.state_files()) == ("ACTIVE", [])


def test_a_server_that_runs_is_not_let_go_restored_or_put_back(memory, openstack):
    memory.save("vn001", "hv1")
    state = memory.latest("vn001", "hv1")
    memory.unpause("vn001", "hv1")
    for act in (
        lambda: memory.let_go("vn001", "hv1"),
        lambda: memory.restore(state, "hv1"),
        lambda: memory.put_back("vn001", "hv1"),
    ):
        with pytest.raises(ProviderError, match="hv1: vn001 is not suspended"):
            act()


def test_a_server_comes_back_in_its_own_cloud_and_moves_nowhere(memory):
    state = memory.save("vn001", "hv1")
    assert memory.choose_host(state) == memory.choose_host(state, "hv1", "elsewhere") == "hv1"
    with pytest.raises(InvalidInput, match="vn001 is suspended in hv1, and can only come back there"):
        memory.choose_host(state, "kaizen")
    with pytest.raises(InvalidInput, match="a cloud places its machines itself"):
        memory.check_target({"vn001": "hv1"}, "kaizen")


def test_the_guest_is_asked_through_its_minion(memory, minions):
    minions.answers = [{"retcode": 3, "stdout": "out", "stderr": "err"}]
    assert memory.run_in_guest("vn001", "hv1", ["/bin/x", "y"], text="z") == (3, "out", "err")
    assert minions.asked == [("vn001", "cmd.run_all", ["/bin/x", "y"], "z")]
    with pytest.raises(ProviderError, match="the minion of vn001 has not answered within 1 s"):
        memory.run_in_guest("vn001", "hv1", ["/bin/x"], timeout=1)
    minions.answers = ["ERROR: no such file"]
    with pytest.raises(ProviderError, match="the minion of vn001 can't run /bin/x: ERROR"):
        memory.run_in_guest("vn001", "hv1", ["/bin/x"])


def test_a_clock_that_can_not_be_set_is_told(memory, minions):
    wrong = {"retcode": 0, "stdout": "12345.0", "stderr": ""}
    minions.answers = [wrong, wrong]
    with pytest.raises(ProviderError, match=r"hv1: the clock of vn001 is -\d+\.\d s off after it was set"):
        memory.set_clock("vn001", "hv1", patience=0)


# The whole way


class InCloud(ServerStates):
    """A provider's machines whose guests are the neighbours'."""

    def __init__(self, memory, guests):
        super().__init__(memory._servers, None)
        self.run_in_guest = guests.run_in_guest
        self.set_clock = guests.set_clock


@pytest.fixture
def node(controller, memory, openstack, vmstates):
    """vn001, ready, with the job 1 on it; its memory is in a cloud."""
    grow(controller, parse_nodes("vn001"), "virtual")
    controller.slurm.start_job(1, "vn001")
    states_ = InCloud(memory, vmstates)
    controller.cloud.vmstates = lambda profile: states_
    return controller


def test_a_node_with_its_job_is_suspended_and_comes_back(node, openstack):
    done = suspend(node, ["vn001"], by="root", why="a test")
    assert (server(openstack)["status"], done["vn001"]["jobs"]) == ("SUSPENDED", ["1"])
    assert states(node) == {"vn001": State.SUSPENDED}
    assert status(node)["vn001"]["capacity"] == TAKEN
    assert "SUSPENDED" in node.slurm.jobs(["vn001"])[0].states

    resume(node, ["vn001"])
    assert (server(openstack)["status"], states(node)) == ("ACTIVE", {"vn001": State.READY})
    assert "RUNNING" in node.slurm.jobs(["vn001"])[0].states
    assert set(server(openstack)["metadata"]) == {"saltmarsh_cluster", "saltmarsh_address"}


def test_a_cloud_that_refuses_to_suspend_leaves_node_and_job_at_work(node, openstack):
    openstack.fail("POST", "/action$", 409, {"conflictingRequest": {"message": "Instance is locked"}}, times=1)
    with pytest.raises(OperationFailed, match="can't suspend vn001: Instance is locked; vn001 and all jobs go on"):
        suspend(node, ["vn001"], by="root", why="a test")
    assert (server(openstack)["status"], states(node)) == ("ACTIVE", {"vn001": State.READY})
    assert "RUNNING" in node.slurm.jobs(["vn001"])[0].states


def test_a_cloud_that_refuses_to_resume_leaves_the_node_as_it_was(node, openstack):
    suspend(node, ["vn001"], by="root", why="a test")
    openstack.fail("PUT", "/metadata$", 503, times=1)
    with pytest.raises(OperationFailed, match="can't mark vn001"):
        resume(node, ["vn001"])
    assert (server(openstack)["status"], states(node)) == ("SUSPENDED", {"vn001": State.SUSPENDED})
    resume(node, ["vn001"])
    assert states(node) == {"vn001": State.READY}
