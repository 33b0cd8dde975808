"""
A real guest in a real cloud becomes a node of the lab's Slurm, by what its config drive tells it.

The first of these files, because what the lab is made of may have to be downloaded: once the clouds are up, the session
is in their network, which leads nowhere else.
"""

import subprocess
import time

import pytest
from elastic import have, must, remains, salt_call, site_pillar, slurm_node
from jobs import assert_unbroken, cancel, counted, job, longest_gap, state_of, submit_counter, wait_counts
from saltcloud import ask, wait_for

NODE, ADDRESS = "cn101", "10.77.0.201"
POOL = {
    "nodes": "cn[101-102]",
    "addresses": "10.77.0.201-202",
    "profile": "guest-engage1",
    "image": "golden",
    "cpus": 1,
    "memory": 512,
    "partition": "virtual",
    "features": ["vm", "cloud"],
    "limits": {"boot_timeout": 300},
}
AWAY = 15  # seconds
EXACT = 1  # seconds


@pytest.fixture(scope="module")
def cloud(lab, clouds, checkout):
    """A cloud that boots real guests, and a pool of the lab in it, the only one with nodes."""
    have(lab)
    for verb in ("up", "guests"):  # the first also tells the controller how to log in
        subprocess.run([checkout / "lab/openstack", verb], check=True, capture_output=True, timeout=300)
    with site_pillar(lab, elastic={"pools": {"guest": POOL}}):
        apply_pillar(lab)
        wait_for(lambda: slurm_node(lab, NODE)[0].startswith("CLOUD+DOWN"), 90, f"Slurm has {NODE}")
        yield clouds["engage1"]
    apply_pillar(lab)


@pytest.fixture(scope="module")
def node(lab, cloud):
    """A node in that cloud."""
    must(lab, "grow", NODE, "pool=guest")
    yield NODE
    if must(lab, "status", NODE)[NODE]["state"] != "free":
        must(lab, "shrink", NODE, "force=True")


@pytest.fixture
def counter(lab, node):
    """A job that counts on the node."""
    number = submit_counter(lab, node)
    yield number
    cancel(lab, number)


def apply_pillar(lab):
    """Slurm's configuration and the engine follow pillar."""
    salt_call(lab, "ctl", "slurm.push_config")
    lab.exec("ctl", "systemctl", "restart", "salt-master")


def test_a_guest_joins_by_its_config_drive_and_runs_a_job(lab, cloud, counter):
    status = must(lab, "status", NODE)[NODE]
    assert (status["state"], status["host"]) == ("ready", "engage1")
    assert slurm_node(lab, NODE)[2] == ADDRESS
    assert cloud.servers()[NODE].compute_host == "real"
    assert state_of(lab, counter) == "RUNNING"


def test_a_job_goes_on_after_nova_suspend_in_the_same_boot_with_the_clock_right(lab, cloud, counter):
    must(lab, "suspend", NODE, "reason=a test")
    assert cloud.servers()[NODE].status == "SUSPENDED"
    assert state_of(lab, counter) == "SUSPENDED"
    before = counted(lab, str(counter))
    wait_for(lambda: time.time() > before[-1].at + AWAY, 2 * AWAY, "the node has been away for a while")
    must(lab, "resume", NODE)
    wait_counts(lab, str(counter), 3)
    counts = counted(lab, str(counter))
    assert longest_gap(counts) >= AWAY  # by its own clock, which stood still meanwhile
    asked = time.time()
    assert asked - EXACT < float(ask(lab, NODE, "date +%s.%N")) < time.time() + EXACT
    assert_unbroken(counts)
    assert (state_of(lab, counter), job(lab, counter)["restart_cnt"]) == ("RUNNING", 0)


def test_shrink_leaves_nothing_of_a_guest(lab, cloud, node):
    must(lab, "shrink", node)
    assert must(lab, "status", node)[node]["state"] == "free"
    assert remains(lab, node) == []
    assert cloud.left() == (0, 0)
    assert must(lab, "reconcile", "test=True") == {}
