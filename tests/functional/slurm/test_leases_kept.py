"""As many leases as are wanted, with a real slurmctld that loses some; their machines are nothing but a slurmd."""

from dataclasses import replace

import neighbours
import pytest
from conftest import wait_until
from test_leases import host, pillar, set_fault
from test_on_demand import Machines

from saltmarsh import leasing, slurm
from saltmarsh.backfilling import Backfill, start, status

__all__ = ["host", "pillar"]


@pytest.fixture(name="pillar")
def pillar_with_a_service_account(pillar):
    """The user of the leases is one that exists in the machine."""
    pillar["elastic"]["lease"] = {"user": "root"}
    pillar["slurm"]["nodes"]["hv1"] |= {"RealMemory": 2000}
    return pillar


@pytest.fixture
def controller(host, pillar, tmp_path):
    """What the engine acts through."""
    made = neighbours.controller(pillar, tmp_path)
    made = replace(made, slurm=slurm, minions=neighbours.Minions(made.minions.provider, Machines(host)))
    yield made
    made.ledger.close()


def look(controller):
    """What an engine does that has just started."""
    Backfill(controller).look()


def going(controller):
    """Ids of the leases that are queued or running."""
    return sorted(job.id for job in leasing.submitted(controller) if job.states & {"PENDING", "RUNNING"})


@pytest.fixture
def leases(host, controller):
    """Two leases that run, with their nodes at work; their ids."""
    numbers = list(start(controller, 2)[0].values())
    wait_until(lambda: all(host.job(number).states == {"RUNNING"} for number in numbers), 60)
    look(controller)
    assert {row["node"] for row in status(controller)["virtual"]["nodes"].values()} == {"ready"}
    return numbers


def test_a_cancelled_lease_counts_until_its_epilog_has_ended_and_then_has_another_one_in_its_place(
    host, controller, leases
):
    set_fault(host, "busy")
    slurm.cancel_jobs(leases[:1])
    wait_until(lambda: host.job(leases[0]).states >= {"CANCELLED", "COMPLETING"}, 20)
    look(controller)
    assert going(controller) == leases[1:]
    assert status(controller)["virtual"]["leases"] == 2
    set_fault(host, "busy", False)
    wait_until(lambda: status(controller)["virtual"]["leases"] == 1, 30)
    look(controller)
    [kept, new] = going(controller)
    assert kept == leases[1] < new
    look(controller)
    assert going(controller) == [kept, new]


def test_leases_that_slurm_puts_back_into_the_queue_because_their_host_has_failed_are_the_same(
    host, controller, leases
):
    slurm.down(["hv1"], "a test")
    wait_until(lambda: all("PENDING" in host.job(number).states for number in leases), 30)
    look(controller)
    assert going(controller) == leases


def test_a_lease_that_is_lost_with_its_host_has_another_one_in_its_place(host, controller, leases):
    host.run("scontrol", "update", f"jobid={leases[0]}", "requeue=0")
    slurm.down(["hv1"], "a test")
    wait_until(lambda: leases[0] not in going(controller), 30)
    wait_until(lambda: status(controller)["virtual"]["leases"] == 1, 30)
    look(controller)
    [kept, new] = going(controller)
    assert kept == leases[1] < new


def test_a_second_lease_of_a_node_is_ended_and_that_which_runs_goes_on(host, controller):
    [first] = start(controller, 1)[0].values()
    wait_until(lambda: host.job(first).states == {"RUNNING"}, 60)
    slurm.submit_lease("vn001", controller.site.lease, 1, 512)
    assert len(going(controller)) == 2
    look(controller)
    wait_until(lambda: going(controller) == [first], 20)
