"""
A host that puts a node away or brings it back, killed at every boundary: before each call to a machine or to Slurm.

Whoever comes next on the host, for the same lease or because it has ended, finds nodes that it can go on with.
"""

import pytest
from neighbours.host import Host
from test_suspension_crashes import JOB, LOUD, NODES, assert_nothing_is_lost, site

from saltmarsh.catching_up import catch_up
from saltmarsh.leasing import bring_back, put_away
from saltmarsh.model import State

__all__ = ["site"]
LEASES = {"osg1": 5, "osg2": 6}


def end(controller):
    """The lease of the first ends."""
    put_away(Host.of(controller, "hv1"), "osg1", "hv1 is wanted")


def start(controller):
    """The lease of the first has started again, as the last."""
    bring_back(Host.of(controller, "hv1"), "osg1")


def settled(controller):
    """The state that all nodes have, when the ledger has caught up."""
    catch_up(controller)
    return assert_nothing_is_lost(controller)


@pytest.fixture
def act(request, site):
    """One of them, and a site where it can be done; the administrator has drained one of the nodes."""
    controller = site.open()
    hosts = {node.name: node.host for node in controller.ledger.nodes()}
    for name, number in LEASES.items():
        controller.slurm.queue_lease(number, name, hosts[name])
    controller.slurm.drain(["osg2"], LOUD)
    if request.param is start:
        end(controller)
    controller.ledger.close()
    site.keep()
    return request.param


@pytest.mark.parametrize("act", [end, start], indirect=True)
@pytest.mark.parametrize(("following", "state"), [(end, State.SUSPENDED), (start, State.READY)])
def test_whatever_boundary_a_host_is_killed_at_it_can_go_on(act, following, state, site):
    number = 0
    while moment := site.run(act, number := number + 1):
        controller = site.open()
        try:
            following(controller)
            assert settled(controller) is state
            start(controller)
            assert settled(controller) is State.READY
            assert controller.slurm.job_states(JOB) == {"RUNNING"}
        except Exception as err:
            raise AssertionError(f"{act.__name__} killed {moment}, then {following.__name__}: {err}") from err
        finally:
            controller.ledger.close()
        site.put_back()
    assert number > 8


def test_all_nodes_are_of_one_host(site):
    """What these tests rest on."""
    controller = site.open()
    assert {node.host for node in controller.ledger.nodes(NODES)} == {"hv1"}
