"""
Grow, shrink and reconcile, killed at every boundary: before each call to the ledger, Slurm, salt-cloud, DNS, a minion.

Whoever comes next ends what was under way, and reconciles. Then all agree on every node, nothing is left over, no job
that ran is lost, and everything can be grown again. The boundaries are the calls themselves: a new step is covered by
itself.
"""

from contextlib import contextmanager

import neighbours
import pytest
from deadly import LOSSES, Site
from views import assert_undone, states, traces

from saltmarsh import recovery
from saltmarsh.growing import grow
from saltmarsh.model import State
from saltmarsh.pools import parse_nodes
from saltmarsh.reconciling import answer_slurm, reconcile
from saltmarsh.shrinking import shrink

JOB, OTHER = 17, 18  # OTHER runs on osg4 all the time


def nothing(controller):
    pass


def grow_two(controller):
    grow(controller, 2, "osg")


def grow_in_vain(controller):
    controller.minions.provider.fail("created", "osg2", "connection lost")
    grow(controller, 2, "osg")


def grow_what_does_not_boot(controller):
    controller.minions.provider.fail("host", "hv2", "no route")
    controller.minions.answers["osg2"] = {"a": {"__id__": "gate", "result": False, "comment": "no /home"}}
    grow(controller, 2, "osg")


def shrink_two(controller):
    shrink(controller, 2, "osg")


def want_a_node(controller):
    controller.slurm.want("osg1", job=JOB)


def want_two_nodes_of_which_one_fails(controller):
    controller.minions.provider.fail("create", "osg2", "no room")
    controller.slurm.want("osg[1-2]", job=JOB)


def grow_and_give_up(controller):
    grow_two(controller)
    controller.slurm.give_up("osg1")


def lose_a_machine(controller):
    grow_two(controller)
    (controller.minions.provider.machine_files / "osg1").unlink()
    controller.slurm.lose("osg1")


def leave_traces(controller):
    controller.minions.provider.add("osg2")
    controller.dns.add({"osg1": "10.77.0.51"})


def look(controller):
    for _ in range(4):
        reconcile(controller, grace=0)


# What is so before, what is then done until it is killed, and whether the pool is on demand.
ACTS = {
    "grow": (nothing, grow_two, False),
    "grow in vain": (nothing, grow_in_vain, False),
    "grow what does not boot": (nothing, grow_what_does_not_boot, False),
    "shrink": (grow_two, shrink_two, False),
    "grow and shrink on demand": (grow_two, shrink_two, True),
    "a job's node": (want_a_node, answer_slurm, True),
    "a parallel job's nodes": (want_two_nodes_of_which_one_fails, answer_slurm, True),
    "a node that is given up": (grow_and_give_up, answer_slurm, True),
    "a machine that is lost": (lose_a_machine, look, False),
    "traces of nobody": (leave_traces, look, False),
}


@pytest.fixture
def site(pillar, tmp_path, request):
    """A site with a job on osg4, and what is so before."""
    before, _, on_demand = request.param
    # A node whose minion can't be asked is waited for so long.
    pillar["elastic"]["pools"]["osg"] |= {"on_demand": on_demand, "limits": {"boot_timeout": 2}}
    directory = tmp_path / "site"
    directory.mkdir()
    controller = neighbours.controller(pillar, directory)
    made = Site(directory, controller)
    reconcile(controller)
    grow(controller, parse_nodes("osg4"), "osg")
    controller.slurm.start_job(OTHER, "osg4")
    before(controller)
    controller.ledger.close()
    made.keep()
    return made


@contextmanager
def next_one(site, what):
    """The controller of whoever comes next; everything is put back afterwards."""
    controller = site.open()
    for fault, name in (("created", "osg2"), ("create", "osg2"), ("host", "hv2")):
        controller.minions.provider.mend(fault, name)
    try:
        yield controller
    except Exception as err:
        raise AssertionError(f"killed {what}: {err}") from err
    finally:
        controller.ledger.close()


def assert_all_agree(controller):
    """Nothing is under way or left over; ledger, provider, DNS and Slurm have the same nodes."""
    assert controller.ledger.operations() == ()
    nodes = states(controller)
    assert set(nodes.values()) == {State.READY}
    assert set(controller.minions.provider.machines()) == controller.dns.names() == nodes.keys()
    assert {name for name, node in controller.slurm.nodes().items() if node.registered} == nodes.keys()
    assert all(map(controller.slurm.usable, nodes))
    assert controller.slurm.job_states(OTHER) == {"RUNNING"}
    assert OTHER not in controller.slurm.killed
    assert {each.finding.repair for each, _ in reconcile(controller, test=True)} <= {None}


def go_on(controller):
    """Every node can be grown, and shrunk until nothing is left."""
    controller.slurm.end_job(OTHER)
    if left := set(controller.site.pool("osg").nodes) - states(controller).keys():
        grow(controller, parse_nodes(",".join(left)), "osg")
    shrink(controller, 4, "osg", force=True)
    if not controller.site.pool("osg").on_demand:
        assert_undone(controller)
    assert states(controller) == {}
    assert controller.minions.provider.machines() == {}
    assert not {name for name, node in controller.slurm.nodes().items() if not node.given_up}
    assert not traces(controller) - {name for name, node in controller.slurm.nodes().items() if node.startable}


@pytest.mark.parametrize(("site", "act"), [(row, row[1]) for row in ACTS.values()], ids=ACTS, indirect=["site"])
def test_whatever_boundary_it_is_killed_at_all_agree_afterwards(site, act):
    number = 0
    while moment := site.run(act, number := number + 1):
        with next_one(site, moment) as controller:
            recovery.recover_abandoned(controller)
            look(controller)
            assert_all_agree(controller)
            if number % 5 == 0:
                go_on(controller)
        site.put_back()
    assert number > 8


@pytest.mark.parametrize(("who", "loss"), LOSSES, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize(("site", "act"), [(row, row[1]) for row in ACTS.values()], ids=ACTS, indirect=["site"])
def test_whichever_call_is_lost_because_a_neighbour_is_killed_all_agree_afterwards(site, act, who, loss):
    number = 0
    while moment := site.lose(act, who, loss, number := number + 1):
        with next_one(site, moment) as controller:
            recovery.recover_abandoned(controller)
            look(controller)
            assert_all_agree(controller)
        site.put_back()
    assert number > 1 or who == "minions"  # which not every act calls
