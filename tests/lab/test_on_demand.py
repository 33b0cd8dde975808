"""A plain sbatch while no node is up: a node comes, the job runs, and the node goes when it has been idle."""

import pytest
from elastic import ask_ledger, have, must, remains, salt_call, site_pillar, slurm_node, wait_state
from saltcloud import wait_for

IDLE = 20
SCRIPT = "#!/bin/sh\nhostname > /shared/$SLURM_JOB_ID.ran\n"


@pytest.fixture
def on_demand(lab):
    """Pool virtual is on demand until the end of the test."""
    with site_pillar(lab, elastic={"pools": {"virtual": {"on_demand": True, "limits": {"idle": IDLE}}}}):
        apply_pillar(lab, "CLOUD+IDLE+POWERED_DOWN")
        yield
    apply_pillar(lab, "CLOUD+DOWN+POWERED_DOWN")


def apply_pillar(lab, state):
    """Slurm's configuration and the engine follow pillar; what is not there is in this state then."""
    salt_call(lab, "ctl", "slurm.push_config")
    lab.exec("ctl", "systemctl", "restart", "salt-master")

    def reached():
        return slurm_node(lab, "vn016")[0].replace("+NOT_RESPONDING", "") == state

    wait_for(reached, 90, f"vn016 is {state}")


@pytest.mark.slow
@pytest.mark.usefixtures("on_demand")
def test_a_job_brings_its_node_and_the_node_goes_when_it_has_been_idle(lab):
    have(lab)
    lab.exec("ctl", "sh", "-c", 'printf %s "$1" > /srv/export/shared/ran.sh', "sh", SCRIPT)
    submit = ("sbatch", "--parsable", "--chdir=/shared", "--output=/dev/null", "/shared/ran.sh")
    job = lab.exec("ctl", "runuser", "-u", "alice", "--", *submit).stdout.strip()
    wait_for(lambda: ask_ledger(lab, "SELECT name FROM nodes")[0], 15, "the engine grows a node")
    [[[name]]] = ask_ledger(lab, "SELECT name FROM nodes")
    wait_for(
        lambda: lab.exec("ctl", "cat", f"/srv/export/shared/{job}.ran", check=False).stdout, 300, f"job {job} has run"
    )
    assert lab.exec("ctl", "cat", f"/srv/export/shared/{job}.ran").stdout.strip() == name
    assert [row["to"] for row in must(lab, "history", name)][-1] == "ready"
    wait_state(lab, name, "free", IDLE + 120)
    assert remains(lab, name) == []
    assert must(lab, "reconcile", "test=True") == {}
