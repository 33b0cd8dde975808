"""
A host that dies at every boundary of what it does for a lease, and comes back: all its machines are off then.

The job goes on where its memory was complete and it had not gone on from there yet; else Slurm starts it again, and the
nodes are made anew. Nothing is stuck, whichever host the leases start on next.
"""

import pytest
from neighbours.host import Host
from test_lease_crashes import LEASES, end, start
from test_suspension_crashes import JOB, NODES, site
from views import assert_working, states

from saltmarsh.backfilling import Backfill
from saltmarsh.catching_up import catch_up
from saltmarsh.leasing import bring_back
from saltmarsh.machine import Phase, PowerState
from saltmarsh.model import State
from saltmarsh.reconciling import reconcile

__all__ = ["site"]


@pytest.fixture
def act(request, site, impatient):
    """What a host does for the leases of two nodes that share a job; they are at work, or on disk."""
    controller = site.open()
    lease_on(controller, "hv1")
    if request.param is start:
        end(controller)
        catch_up(controller)
    controller.ledger.close()
    site.keep()
    return request.param


def lease_on(controller, host):
    for name, number in LEASES.items():
        controller.slurm.queue_lease(number, name, host)


def off(controller):
    """Nodes whose machine is there, and off."""
    looks = {name: controller.vmstates_of(name).look(name) for name in NODES}
    return [name for name, look in looks.items() if look.machine and look.machine.state is PowerState.STOPPED]


def lose_power(controller):
    """For a moment, all that is on hv1."""
    for name in controller.minions.provider.machines():
        controller.vmstates_of(name).die(name)


def live_on(controller, host):
    """Slurm starts the leases, and everybody does his work, for as long as it takes."""
    lease_on(controller, host)
    for _ in range(5):
        for name in NODES:
            bring_back(Host.of(controller, host), name)
        catch_up(controller)
        for name in off(controller):
            controller.slurm.lose(name)
        reconcile(controller, grace=0)
        Backfill(controller).look()


def is_kept(controller):
    """Whether the memory of both is complete, and the job has not gone on from there yet."""
    kept = [controller.vmstates_of(name).look(name).state for name in NODES]
    return all(state and state.machine and state.suspension.phase is not Phase.OVER for state in kept)


@pytest.mark.parametrize("host", ["hv1", "hv2"])
@pytest.mark.parametrize("act", [end, start], indirect=True)
def test_wherever_a_host_dies_the_job_goes_on_or_starts_again(act, host, site):
    number, outcomes = 1, set()
    while moment := site.run(act, number):
        number += 1
        controller = site.open()
        try:
            kept = is_kept(controller)
            lose_power(controller)
            live_on(controller, host)
            assert set(states(controller).values()) == {State.READY}
            outcomes.add(kept)
            assert (JOB in controller.slurm.killed) is not kept
            assert_working(controller, NODES, [JOB] if kept else [])
            assert {node.host for node in controller.ledger.nodes()} == {host}
        except Exception as err:
            raise AssertionError(f"{act.__name__}, died {moment}: {err}") from err
        finally:
            controller.ledger.close()
        site.put_back()
    assert outcomes == {True, False}
