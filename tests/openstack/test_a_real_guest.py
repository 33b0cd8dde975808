"""
A real guest in a real cloud becomes a node of the lab's Slurm, by what its config drive tells it.

The first of these files, because what the lab is made of may have to be downloaded: once the clouds are up, the session
is in their network, which leads nowhere else.
"""

import subprocess

import pytest
from elastic import must, salt_call, site_pillar, slurm_node
from jobs import cancel, state_of, submit_counter
from saltcloud import wait_for

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


@pytest.fixture(scope="module")
def cloud(lab, clouds, checkout):
    """A cloud that boots real guests, and a pool of the lab in it."""
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
