"""
A pool on demand with a real slurmctld: nodes come for jobs and go when they are idle, whatever fails in between.

slurmctld looks every 30 seconds whether the nodes of a batch job have booted (PERIODIC_TIMEOUT in its source). So most
tests here are content when the nodes of a job have registered.
"""

import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import neighbours
import pytest
from ClusterShell.NodeSet import NodeSet
from conftest import wait_until

from saltmarsh import bell, growing, joining, reconciling, slurm, slurmconf
from saltmarsh.model import State
from saltmarsh.reconciling import reconcile

NAMES = ["vn001", "vn002", "vn003", "vn004"]
IDLE = 4  # seconds


class Machines:
    """What the provider's machines do: their slurmd boots when their states are applied, and ends with them."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.broken = set()

    def register(self, name):
        """As the gate: start slurmd. It says when it booted, as that of a new machine does."""
        if name not in self.broken:
            self.cluster.boot(name, options="-b")


@pytest.fixture
def pillar(pillar):
    """The pool is on demand."""
    pillar["elastic"]["pools"]["virtual"] |= {"on_demand": True, "limits": {"idle": IDLE, "boot_timeout": 30}}
    return pillar


@pytest.fixture
def machines(cluster):
    return Machines(cluster)


@pytest.fixture
def controller(cluster, machines, pillar, tmp_path, monkeypatch):
    """What the engine acts through: the real Slurm, and machines that are nothing but a slurmd."""
    monkeypatch.setattr(joining, "REGISTER_SECONDS", 5)
    made = neighbours.controller(pillar, tmp_path)
    destroy = made.cloud.destroy

    def destroyed(profile, hosts):
        cluster.lose(*hosts)
        return destroy(profile, hosts)

    made.cloud.destroy = destroyed
    made = replace(made, slurm=slurm, minions=neighbours.Minions(made.minions.provider, machines))
    reconcile(made)
    yield made
    wait_until(lambda: not made.ledger.operations(), 60)
    made.ledger.close()


@contextmanager
def engine_of(cluster, controller):
    """What the engine does when slurmctld rings."""
    over = threading.Event()
    reconciler = reconciling.Reconciler(controller)

    def listen():
        while not over.wait(0.1):
            if bell.rung(cluster.bell):
                reconciler.look(everything=False)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield reconciler
    finally:
        over.set()
        thread.join()
        reconciler.close()


@pytest.fixture
def engine(cluster, controller):
    """The engine runs."""
    with engine_of(cluster, controller) as reconciler:
        yield reconciler


def ledger(controller):
    return {node.name: node.state for node in controller.ledger.nodes()}


def startable():
    return {name for name, node in slurm.nodes(NAMES).items() if node.startable}


def wanted():
    return {name for name, node in slurm.nodes(NAMES).items() if node.wanted}


def served(cluster, number, seconds=20):
    """Wait until all nodes of a job have registered, and nobody has taken it from them; returns them."""

    def nodes():
        job = cluster.job(number)
        known = slurm.nodes(job.nodes).values() if job.nodes else ()
        return known and all(node.registered for node in known) and job.nodes

    found = wait_until(nodes, seconds)
    assert "RUNNING" in cluster.job(number).states
    return found


def test_a_job_brings_its_node_which_goes_when_it_has_been_idle(cluster, controller, engine):
    assert startable() == set(NAMES)
    job = cluster.submit(script="sleep 1; echo done")
    served(cluster, job)
    wait_until(lambda: cluster.count(job) == 1, 50)
    (name,) = ledger(controller)
    assert ledger(controller) == {name: State.READY}
    wait_until(lambda: (seen := cluster.job(job)) is None or seen.states == {"COMPLETED"}, 20)
    wait_until(lambda: ledger(controller) == {}, IDLE + 40)
    wait_until(lambda: startable() == set(NAMES), 20)
    assert controller.minions.provider.machines() == {}
    served(cluster, cluster.submit("-w", name))


def test_nodes_that_were_offered_come_after_a_reconfigure_and_a_restart_as_well(cluster, controller, engine):
    cluster.run("scontrol", "reconfigure")
    served(cluster, cluster.submit())
    cluster.stop_slurmctld()
    cluster.start_slurmctld()
    served(cluster, cluster.submit("-N", "2"), 40)


def test_nodes_that_slurm_would_pass_over_are_offered_anew(cluster, controller):
    slurm.park(NAMES)
    cluster.run("scontrol", "update", f"nodename={','.join(NAMES)}", "state=RESUME")
    assert all(node.passed_over for node in slurm.nodes(NAMES).values())
    reconcile(controller)
    assert startable() == set(NAMES)
    assert not any(node.passed_over for node in slurm.nodes(NAMES).values())


def test_all_nodes_of_a_parallel_job_come(cluster, controller, engine):
    assert len(served(cluster, cluster.submit("-N", "3"))) == 3
    assert len(ledger(controller)) == 3
    assert len({node.operation for node in controller.ledger.nodes()}) == 1


def test_if_one_node_of_a_parallel_job_fails_none_stays_and_the_job_waits_in_the_queue(
    cluster, controller, machines, engine
):
    machines.broken.add("vn002")
    job = cluster.submit("-N", "2", "-w", "vn[001-002]")
    wait_until(lambda: wanted() == {"vn001", "vn002"}, 20)
    wait_until(lambda: cluster.job(job).states == {"PENDING"}, 40)
    wait_until(lambda: ledger(controller) == {}, 40)
    wait_until(lambda: {"vn001", "vn002"} <= startable(), 30)
    machines.broken.clear()
    cluster.run("scontrol", "update", f"jobid={job}", "starttime=now")
    assert served(cluster, job) == NodeSet("vn[001-002]")


def test_jobs_that_need_more_nodes_than_there_are_wait_with_a_reason(cluster, controller, engine):
    first, second = cluster.submit("-N", "3"), cluster.submit("-N", "3")
    served(cluster, first)
    wait_until(lambda: cluster.job(second).reason in ("Resources", "Priority"), 20)
    assert cluster.job(second).states == {"PENDING"}
    cluster.run("scancel", first)
    served(cluster, second, 30)


def test_what_slurm_wants_while_the_engine_is_away_is_not_lost(cluster, controller):
    job = cluster.submit()
    (name,) = wait_until(wanted, 20)
    with engine_of(cluster, controller):
        served(cluster, job)
        wait_until(lambda: ledger(controller) == {name: State.READY}, 10)


def test_a_slurmctld_that_is_killed_while_a_node_boots_still_gets_it(cluster, controller):
    job = cluster.submit()
    wait_until(wanted, 20)
    time.sleep(6)  # it writes its state at most every five seconds
    cluster.signal_slurmctld(9)
    wait_until(lambda: not cluster.slurmctld_runs(), 10)
    cluster.start_slurmctld()
    with engine_of(cluster, controller) as engine:
        engine.look(everything=False)
        served(cluster, job)
    assert len(ledger(controller)) == 1


@pytest.fixture
def impatient(pillar, monkeypatch):
    """Slurm waits for a node for three seconds."""
    monkeypatch.setattr(slurmconf, "_AFTER_BOOT", 2)
    pillar["elastic"]["pools"]["virtual"]["limits"]["boot_timeout"] = 1


@pytest.mark.usefixtures("impatient")
def test_a_node_that_slurm_has_lost_patience_with_can_be_started_again(cluster, controller, pillar):
    job = cluster.submit()
    (name,) = wait_until(wanted, 20)
    wait_until(lambda: "DOWN" in slurm.nodes(name)[name].states, 60)
    wait_until((cluster.bell / "failed").exists, 10)
    with engine_of(cluster, controller) as engine:
        wait_until(lambda: engine.look() or name in startable(), 30)
    assert cluster.job(job).states == {"PENDING"}


def test_a_node_that_an_administrator_powers_down_goes(cluster, controller, engine):
    growing.grow(controller, 2, "virtual")
    cluster.run("scontrol", "update", "nodename=vn001", "state=power_down")
    wait_until(lambda: set(ledger(controller)) == {"vn002"}, 40)
    wait_until(lambda: "vn001" in startable(), 20)


def test_a_node_that_is_drained_does_not_go_however_long_it_is_idle(cluster, controller, engine):
    growing.grow(controller, 1, "virtual")
    slurm.drain(["vn001"], "suspended by alice")
    time.sleep(IDLE + 3)
    assert "POWERING_DOWN" not in slurm.nodes("vn001")["vn001"].states
    assert ledger(controller) == {"vn001": State.READY}
    slurm.undrain(["vn001"])
    wait_until(lambda: ledger(controller) == {}, IDLE + 40)


class TestOfAPoolThatIsNotOnDemand:
    @pytest.fixture
    def pillar(self, pillar):
        pillar["elastic"]["pools"]["virtual"]["on_demand"] = False
        return pillar

    def test_a_node_that_somebody_resumes_gives_its_job_back_and_is_not_there_again(self, cluster, controller, engine):
        cluster.run("scontrol", "update", "nodename=vn001", "state=resume")
        job = cluster.submit("-w", "vn001")
        wait_until(lambda: cluster.job(job).reason == "BeginTime", 20)
        wait_until(lambda: slurm.nodes("vn001")["vn001"].absent, 30)
        assert controller.minions.provider.machines() == {}
