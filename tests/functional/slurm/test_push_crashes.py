"""A push that is killed before any of its steps: jobs go on, and the next push brings the configuration everywhere."""

import copy
import multiprocessing
import os
import signal

import pytest
from conftest import wait_until

from saltmarsh import slurm, slurmconf, slurmpush

FORK = multiprocessing.get_context("fork")
# What a push changes anything by.
STEPS = ((slurmpush, "write"), (slurm, "park"), (slurm, "reconfigure"), (slurm, "set_addresses"))


@pytest.fixture
def at_work(cluster):
    """The cluster with vn001 at work, and its job."""
    slurm.expect({"vn001": "10.77.0.101"})
    cluster.boot("vn001")
    wait_until(lambda: slurm.nodes("vn001")["vn001"].registered, 20)
    job = cluster.submit()
    cluster.counts_on(job)
    return cluster, job


def push(cluster, pillar):
    return slurmpush.Controller(pillar, cluster.publish, cluster.slurmctld_runs, cluster.start_slurmctld).push()


def push_killed(cluster, pillar, number, place):
    """Push in a process that is killed before its step of this number; which one, or None if there are fewer."""
    process = FORK.Process(target=_push, args=(cluster, pillar, number, place))
    process.start()
    process.join()
    if process.exitcode == 0:
        return None
    assert process.exitcode == -signal.SIGKILL
    return place.read_text()


def _push(cluster, pillar, number, place):
    steps = []

    def deadly(function):
        def call(*args, **kwargs):
            steps.append(function.__name__)
            if len(steps) == number:
                place.write_text(f"before step {number}: {function.__name__}")
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for module, name in STEPS:
        setattr(module, name, deadly(getattr(module, name)))
    push(cluster, pillar)


@pytest.mark.slow
def test_a_push_that_is_killed_before_any_step_is_made_good_by_the_next(at_work, pillar, tmp_path):
    cluster, job = at_work
    larger = copy.deepcopy(pillar)  # with new nodes: the push goes the long way
    larger["elastic"]["pools"]["virtual"] |= {"nodes": "vn[001-006]", "addresses": "10.77.0.101-106"}
    larger["slurm"]["config"]["SlurmdTimeout"] = 44
    number, killed = 0, []
    while moment := push_killed(cluster, larger, number := number + 1, tmp_path / "step"):
        killed.append(moment)
        cluster.counts_on(job)
        push(cluster, larger)
        assert slurm.is_config_current(), moment
        assert slurmpush.digest_here() == slurmconf.digest(slurmconf.render(larger)), moment
        known = slurm.nodes()
        assert {"vn005", "vn006"} <= known.keys(), moment
        assert all(known[name].absent for name in ("vn002", "vn005", "vn006")), moment
        assert "State=UP" in cluster.run("scontrol", "show", "partition", "virtual"), moment
        cluster.counts_on(job)
        push(cluster, pillar)
    assert [each.partition(": ")[2] for each in killed].count("reconfigure") == 2
    assert len(killed) >= 6
    assert cluster.job(job).states == {"RUNNING"}
