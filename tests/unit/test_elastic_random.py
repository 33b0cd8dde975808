"""
Whatever is done, in whatever order, and wherever it is killed: afterwards all agree on every node.

Hypothesis chooses; what it has chosen is printed where it fails, made as short as it can be.
"""

import tempfile
from pathlib import Path

import neighbours
import pytest
from deadly import Site
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saltmarsh import recovery
from saltmarsh.growing import grow
from saltmarsh.model import State
from saltmarsh.pools import parse_nodes
from saltmarsh.reconciling import answer_slurm, reconcile
from saltmarsh.resuming import resume
from saltmarsh.shrinking import shrink
from saltmarsh.suspending import suspend

JOBS = range(1, 100)


def names(controller, *states):
    return [node.name for node in controller.ledger.nodes(pool="osg", states=states)]


def some(found, count):
    return found[:count]


def grow_some(controller, count):
    grow(controller, count, "osg", minimum=1)


def grow_what_fails(controller, count):
    controller.minions.provider.fail("created", f"osg{count}", "connection lost")
    grow(controller, count, "osg")


def shrink_some(controller, count):
    shrink(controller, count, "osg", timeout=0)


def suspend_some(controller, count):
    if nodes := some(names(controller, State.READY), count):
        suspend(controller, nodes, by="alice", why="a test")


def resume_some(controller, count):
    if nodes := some(names(controller, State.SUSPENDED), count):
        resume(controller, nodes)


def look(controller, count):
    reconcile(controller, grace=0)


def do_what_slurm_wants(controller, count):
    answer_slurm(controller)


ACTS = (grow_some, grow_what_fails, shrink_some, suspend_some, resume_some, look, do_what_slurm_wants)


# What happens by itself, without a process that could be killed.


def start_a_job(controller, count):
    if ready := [name for name in names(controller, State.READY) if controller.slurm.usable(name)]:
        number = next(number for number in JOBS if not controller.slurm.job_states(number))
        controller.slurm.start_job(number, ",".join(some(ready, count)))


def want_nodes(controller, count):
    known = controller.slurm.nodes(controller.site.pool("osg").nodes)
    if startable := [name for name, node in known.items() if node.startable]:
        controller.slurm.want(",".join(some(startable, count)), job=100 + count)


def give_one_up(controller, count):
    busy = {name for job in controller.slurm.jobs() for name in job.nodes}
    idle = [name for name in names(controller, State.READY) if controller.slurm.usable(name) and name not in busy]
    if idle and controller.site.pool("osg").on_demand:
        controller.slurm.give_up(idle[-1])


def leave_a_machine(controller, count):
    name = f"osg{count}"
    if not controller.ledger.nodes([name]) and name not in controller.minions.provider.machines():
        controller.minions.provider.add(name)


EVENTS = (start_a_job, want_nodes, give_one_up, leave_a_machine)

STEPS = st.lists(
    st.tuples(st.sampled_from(ACTS + EVENTS), st.integers(1, 4), st.integers(0, 40)), min_size=1, max_size=8
)


def step(site, what, count, moment):
    """Do something, killed before its call number ``moment`` if it makes so many; then somebody comes next."""
    controller = site.open()
    if what in EVENTS:
        what(controller, count)
    controller.ledger.close()
    if what in ACTS:
        site.run(lambda controller: what(controller, count), moment)
    controller = site.open()
    for number in range(1, 5):
        controller.minions.provider.mend("created", f"osg{number}")
    recovery.recover_abandoned(controller)
    for _ in range(4):
        reconcile(controller, grace=0)
    assert_all_agree(controller)
    controller.ledger.close()


def assert_all_agree(controller):
    assert controller.ledger.operations() == ()
    nodes = {node.name: node.state for node in controller.ledger.nodes()}
    ready = {name for name, state in nodes.items() if state is State.READY}
    asleep = {name for name, state in nodes.items() if state is State.SUSPENDED}
    assert nodes.keys() == ready | asleep
    assert set(controller.minions.provider.machines()) == ready
    assert {state.name for state in controller.vmstates_of("osg1").state_files()} == asleep
    assert controller.dns.names() == nodes.keys()
    in_slurm = controller.slurm.nodes()
    assert {name for name, node in in_slurm.items() if node.registered} == ready | asleep
    assert all(map(controller.slurm.usable, ready))
    assert {name for name in nodes if controller.slurm.stood_in(name)} == asleep
    # A job that ran is lost only with a node that Slurm itself had wanted for it and never got.
    assert [job for job in controller.slurm.killed if job in JOBS] == []


@pytest.mark.parametrize("on_demand", [False, True], ids=["by hand", "on demand"])
@given(steps=STEPS)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_happens_in_whatever_order_all_agree_afterwards(steps, pillar, controller, on_demand):
    pillar["elastic"]["pools"]["osg"]["on_demand"] = on_demand
    with tempfile.TemporaryDirectory() as directory:
        own = neighbours.controller(pillar, Path(directory))
        site = Site(Path(directory), own)
        reconcile(own)
        grow(own, parse_nodes("osg1"), "osg")
        own.ledger.close()
        for what, count, moment in steps:
            step(site, what, count, moment)
