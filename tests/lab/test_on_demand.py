"""
A plain sbatch while no node is up: a node comes, the job runs, and the node goes when it has been idle. Whatever dies
meanwhile, the master, slurmctld, a host: no job is lost, and what is not usable says why.

Machines are slow to come: every fixture goes on from where the one before it has led to. The order of the tests is the
order of that story.
"""

from dataclasses import dataclass

import pytest
from elastic import ask_ledger, have, must, powered_off, remains, salt_call, site_pillar, slurm_node, wait_state
from jobs import cancel, job, sbatch, state_of
from saltcloud import wait_for

BOOT = 300  # seconds: software emulation on two busy cores
IDLE = 20
SLURM = "/var/lib/slurm/slurmctld"
MARK = "/run/node-boots"
# Each of its starts is a line: where it ran.
SCRIPT = "#!/bin/sh\nhostname >> /shared/$SLURM_JOB_ID.starts\nsync /shared/$SLURM_JOB_ID.starts\nexec sleep 3600\n"


@dataclass(frozen=True)
class Wanted:
    """A job, the node that boots for it, and the number of the operation that has made the node."""

    job: int
    node: str
    grow: int


@dataclass(frozen=True)
class Lost:
    """What was said while a node's host was off: of the node, and of its job; and what happened to the job."""

    host: str
    status: dict
    slurm: tuple  # state, reason, address
    job: dict
    elsewhere: str  # the node that came in its place
    elsewhere_on: str


@pytest.fixture(scope="module", autouse=True)
def on_demand(lab):
    """No node is there, and pool virtual is on demand until the end of the tests."""
    have(lab)
    with site_pillar(lab, elastic={"pools": {"virtual": {"on_demand": True, "limits": {"idle": IDLE}}}}):
        apply_pillar(lab, "CLOUD+IDLE+POWERED_DOWN")
        yield
    apply_pillar(lab, "CLOUD+DOWN+POWERED_DOWN")


@pytest.fixture(scope="module")
def wanted(lab):
    """A job, and the node that it has brought so far: its machine has just been made."""
    number = sbatch(lab, SCRIPT, "--requeue", "--output=/dev/null")
    wait_for(lambda: [row for row in rows(lab) if row[1] == "booting"], 60, "a machine boots")
    [[name, _, grow, _]] = rows(lab)
    return Wanted(number, name, grow)


@pytest.fixture(scope="module")
def orphaned(lab, wanted):
    """The master is killed while the node boots; what the new one has made of it, once it has looked."""
    [[*_, before]] = rows(lab)
    kill(lab, "salt-master")
    wait_for(lambda: [row for row in rows(lab) if row[3] not in (before, 0)], 120, "somebody looks after the node")
    return rows(lab)


@pytest.fixture(scope="module")
def forgotten(lab, wanted, orphaned):
    """slurmctld is killed as well while the node boots; in which state the node was then."""
    # It keeps what it has written, which it does some seconds after a change.
    lab.exec("ctl", "touch", MARK)
    lab.exec("ctl", "scontrol", "update", f"jobid={wanted.job}", "comment=written")
    lab.exec("ctl", "scontrol", "update", f"nodename={wanted.node}", "comment=written")
    files = ("find", f"{SLURM}/job_state", f"{SLURM}/node_state", "-newer", MARK)
    wait_for(lambda: len(lab.exec("ctl", *files).stdout.split()) == 2, 60, "slurmctld has written its state")
    kill(lab, "slurmctld")
    [[_, state, *_]] = rows(lab)
    lab.exec("ctl", "systemctl", "start", "slurmctld")
    return state


@pytest.fixture(scope="module")
def running(lab, wanted, forgotten):
    """The job runs."""
    wait_for(lambda: state_of(lab, wanted.job) == "RUNNING", BOOT, f"job {wanted.job} runs")
    wait_for(lambda: starts(lab, wanted.job), 60, f"job {wanted.job} has begun")


@pytest.fixture(scope="module")
def lost(lab, wanted, running):
    """The node's host is switched off under it and its job, and comes back after another node has been made."""
    name, number = wanted.node, wanted.job
    host = must(lab, "status", name)[name]["host"]
    with powered_off(lab, host):
        wait_for(lambda: job(lab, number)["restart_cnt"] == 1, 120, "the job is back in the queue")
        in_slurm = slurm_node(lab, name)
        wait_for(lambda: unknown(must(lab, "status", name)[name]), 60, "its machine is unknown")
        status, requeued = must(lab, "status", name)[name], job(lab, number)
        lab.exec("ctl", "scontrol", "update", f"jobid={number}", "starttime=now")  # instead of two minutes from then
        wait_for(lambda: [row for row in rows(lab) if row[1] == "booting"], 180, "another machine boots")
        [(other, *_)] = [row for row in rows(lab) if row[1] == "booting"]
    wait_for(lambda: len(starts(lab, number)) == 2, BOOT, f"job {number} runs again")
    return Lost(host, status, in_slurm, requeued, other, must(lab, "status", other)[other]["host"])


def apply_pillar(lab, state):
    """Slurm's configuration and the engine follow pillar; what is not there is in this state then."""
    salt_call(lab, "ctl", "slurm.push_config")
    lab.exec("ctl", "systemctl", "restart", "salt-master")

    def reached():
        return slurm_node(lab, "vn016")[0].replace("+NOT_RESPONDING", "") == state

    wait_for(reached, 90, f"vn016 is {state}")


def rows(lab):
    """Every node that is not free: name, state, its operation and that one's process (0: nobody's)."""
    query = "SELECT name, state, operation, pid FROM nodes LEFT JOIN operations ON operation = operations.id"
    return ask_ledger(lab, query)[0]


def kill(lab, unit):
    """A whole service dies at once, without a last word."""
    lab.exec("ctl", "systemctl", "kill", "--signal=KILL", unit)


def starts(lab, number):
    """Where a job has begun to run, each time."""
    return lab.exec("ctl", "cat", f"/srv/export/shared/{number}.starts", check=False).stdout.split()


def unknown(status):
    return any(word.startswith("its machine is unknown") for word in status.get("trouble", []))


def test_a_master_that_is_killed_goes_on_to_wait_for_the_node_that_boots(wanted, orphaned):
    [[name, state, grow, _]] = orphaned
    assert (name, state, grow) == (wanted.node, "booting", wanted.grow)


def test_a_node_for_a_job_comes_although_master_and_slurmctld_are_killed_meanwhile(lab, wanted, forgotten, running):
    assert forgotten == "booting"
    assert starts(lab, wanted.job) == [wanted.node]
    assert job(lab, wanted.job)["restart_cnt"] == 0
    passed = [row["to"] for row in must(lab, "history", wanted.node) if row["operation"] == wanted.grow]
    assert (passed[-1], set(passed)) == ("ready", {"claimed", "creating", "booting", "ready"})


def test_a_node_whose_host_is_off_says_so_and_is_left_alone(lost):
    assert lost.status["state"] == "ready"
    assert [word for word in lost.status["trouble"] if word.startswith("its machine is unknown") and lost.host in word]
    assert [word for word in lost.status["trouble"] if word.startswith("its slurmd does not answer (DOWN")]


def test_its_job_is_put_back_into_the_queue(lost):
    assert "DOWN" in lost.slurm[0]
    assert lost.job["job_state"] == ["PENDING"]


def test_its_job_runs_on_another_node_on_another_host(lab, wanted, lost):
    assert starts(lab, wanted.job) == [wanted.node, lost.elsewhere]
    assert lost.elsewhere_on != lost.host
    assert state_of(lab, wanted.job) == "RUNNING"


def test_the_node_can_be_started_again_when_its_host_is_back(lab, wanted, lost):
    def is_free():
        must(lab, "reconcile", "grace=0")  # instead of waiting half an hour, see the how-to
        return must(lab, "status", wanted.node)[wanted.node]["state"] == "free"

    wait_for(is_free, 120, f"{wanted.node} is free")
    assert remains(lab, wanted.node) == []
    wait_for(lambda: slurm_node(lab, wanted.node)[0] == "CLOUD+IDLE+POWERED_DOWN", 60, "Slurm may start it")


def test_a_node_goes_when_it_has_been_idle(lab, wanted, lost):
    cancel(lab, wanted.job)
    wait_state(lab, lost.elsewhere, "free", IDLE + 120)
    assert remains(lab, lost.elsewhere) == []
    assert must(lab, "reconcile", "test=True") == {}
