"""How soon a real slurmctld looks at an urgent job: as long after it last did as batch_sched_delay says."""

from datetime import datetime

import pytest
from conftest import wait_until
from test_leases import host, lease, pillar, told, urgent

__all__ = ["host", "pillar"]
SOON = 4  # seconds; slurmctld looks once a second whether it is time


@pytest.fixture(params=[0, 12])
def delay(request):
    return request.param


@pytest.fixture(name="pillar")
def pillar_with_a_delay(pillar, delay):
    """Nothing else makes slurmctld look at what waits, for half a minute."""
    pillar["slurm"]["config"]["SchedulerParameters"] = [f"batch_sched_delay={delay}"]
    return pillar


def times(host, number):
    """When a job was submitted, and when it started."""
    said = host.run("squeue", "-h", "-j", number, "-o", "%V %S").split()
    return [datetime.fromisoformat(each).timestamp() for each in said]


def test_a_lease_is_preempted_as_soon_as_a_job_on_an_idle_host_would_start(host, delay):
    number = lease(host)
    _, last = times(host, number)
    for _ in ("beside it", "in its place"):
        job = urgent(host, "--cpus-per-task=1", seconds=60)
        wait_until(lambda job=job: f"urgent {job}" in told(host), 60)
        submitted, started = times(host, job)
        assert last + delay - 1 <= started <= max(submitted, last + delay) + SOON
        last = started
    assert f"stop {number}" in told(host)
