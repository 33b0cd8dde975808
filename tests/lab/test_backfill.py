"""
Nodes soak up idle bare metal and step aside for urgent jobs. What counts is what their own jobs write meanwhile.
"""

import json
from contextlib import contextmanager

import pytest
from elastic import ask_ledger, elastic, have, must, slurm_node
from jobs import (
    assert_unbroken,
    cancel,
    counted,
    job,
    state_of,
    submit_counter,
    submit_ping_pong,
    wait_counts,
)
from saltcloud import wait_for

BOOT = 900  # seconds
NODE, SECOND = "vn001", "vn002"
SOON = 90


@pytest.fixture(scope="module", autouse=True)
def backfill(lab):
    """One lease, with its node at work on hv1."""
    have(lab)
    lab.exec("ctl", "scontrol", "update", "nodename=hv2", "state=drain", "reason=a test")
    must(lab, "backfill", "start", "pool=virtual", "target=1")
    wait_for(lambda: node_state(lab) == "ready", BOOT, f"{NODE} is ready")
    lab.exec("ctl", "scontrol", "update", "nodename=hv2", "state=resume")
    yield
    lab.exec("ctl", "scancel", "--user=alice")
    elastic(lab, "backfill", "stop", "force=True", timeout=300)
    lab.exec("ctl", "scancel", "--partition=lease")
    wait_for(lambda: "hv" not in lab.exec("ctl", "squeue", "-h", "-o", "%N").stdout, SOON, "hosts are free")
    have(lab)


@pytest.fixture
def counter(lab, backfill):
    """A job that counts on the node."""
    number = submit_counter(lab, NODE)
    yield number
    cancel(lab, number)


def node_state(lab, name=NODE):
    return must(lab, "status", name)[name]["state"]


def node_host(lab, name=NODE):
    """The host on which the node's machine is, or None."""
    for host in ("hv1", "hv2"):
        if name in lab.exec(host, "virsh", "list", "--name").stdout.split():
            return host
    return None


def lease(lab):
    return must(lab, "backfill", "status")["virtual"]["nodes"].get(NODE)


def urgent(lab, *options, seconds=3):
    """Submit an urgent job as an ordinary user; returns its id at once."""
    said = lab.exec(
        "ctl", "runuser", "-u", "alice", "--", "sbatch", "--parsable", "--partition=metal", "--chdir=/shared",
        "--output=/dev/null", *options, "--wrap", f"sleep {seconds}",
    )  # fmt: skip
    return int(said.stdout)


def wait_job(lab, number, state, seconds=SOON):
    wait_for(lambda: state_of(lab, number) == state, seconds, f"job {number} {state}")


def saved_at(lab, name=NODE):
    """When the node's memory was complete, by the hosts' clock."""
    found = lab.exec("hv1", "find", "/srv/states", "-name", f"{name}.*.state", "-printf", "%T@\\n").stdout.split()
    return float(found[-1]) if found else None


def goes_on(lab, counter):
    """The job counts again, and nothing was missed."""
    wait_for(lambda: node_host(lab) is not None, SOON, f"{NODE} is back")
    wait_counts(lab, counter, 3, SOON)
    assert_unbroken(counted(lab, counter))
    assert job(lab, counter)["restart_cnt"] == 0
    wait_for(lambda: node_state(lab) == "ready", SOON, "the ledger has caught up")


@contextmanager
def without(lab, host):
    """No job starts on a host until the end of the block."""
    lab.exec("ctl", "scontrol", "update", f"nodename={host}", "state=drain", "reason=a test")
    try:
        yield
    finally:
        lab.exec("ctl", "scontrol", "update", f"nodename={host}", "state=resume")


def other(host):
    return "hv2" if host == "hv1" else "hv1"


def test_an_urgent_job_gets_the_host_and_the_nodes_job_goes_on_afterwards(lab, counter):
    host = node_host(lab)
    with without(lab, other(host)):
        number = urgent(lab, f"--nodelist={host}", "--exclusive")
        wait_job(lab, number, "RUNNING")
        assert node_host(lab) is None
        assert state_of(lab, counter) == "SUSPENDED"
        started = job(lab, number)["start_time"]["number"]
        assert int(saved_at(lab)) <= started <= saved_at(lab) + 3
        wait_job(lab, number, "COMPLETED")
        goes_on(lab, counter)
        assert node_host(lab) == host


def test_a_node_goes_on_where_another_host_is_idle_while_the_urgent_job_runs(lab, counter):
    host = node_host(lab)
    number = urgent(lab, f"--nodelist={host}", "--exclusive", seconds=300)
    wait_job(lab, number, "RUNNING")
    goes_on(lab, counter)
    assert node_host(lab) == other(host)
    assert state_of(lab, number) == "RUNNING"
    cancel(lab, number)


def test_an_urgent_job_that_fits_beside_the_node_leaves_it_alone(lab, counter):
    before = lease(lab)
    number = urgent(lab, f"--nodelist={node_host(lab)}", "--cpus-per-task=1", "--mem=500")
    wait_job(lab, number, "COMPLETED")
    assert lease(lab) == before
    assert_unbroken(counted(lab, counter))


def test_urgent_jobs_that_follow_each_other_find_the_node_on_disk(lab, counter):
    """The second comes when the lease has started again, but not yet for as long as its hysteresis."""
    host = node_host(lab)
    with without(lab, other(host)):
        number = urgent(lab, f"--nodelist={host}", "--exclusive", seconds=1)
        wait_job(lab, number, "RUNNING")
        written = saved_at(lab)
        until_lease_runs = "until squeue -h -p lease -t running -o %i | grep -q .; do sleep 0.1; done"
        lab.exec("ctl", "sh", "-c", until_lease_runs)
        second = urgent(lab, f"--nodelist={host}", "--exclusive", seconds=1)
        wait_job(lab, second, "COMPLETED")
        assert saved_at(lab) == written
        goes_on(lab, counter)


def test_if_the_urgent_job_is_cancelled_while_the_node_steps_aside_it_comes_back(lab, counter):
    host, before = node_host(lab), lease(lab)["lease"]
    with without(lab, other(host)):
        number = urgent(lab, f"--nodelist={host}", "--exclusive")
        wait_for(lambda: "COMPLETING" in slurm_node(lab, host)[0], SOON, f"{NODE} steps aside")
        cancel(lab, number)
        wait_for(lambda: node_host(lab) is None, SOON, f"{NODE} is on disk")
        goes_on(lab, counter)
        assert node_host(lab) == host
    assert (state_of(lab, number), job(lab, number)["nodes"]) == ("CANCELLED", "")
    assert (lease(lab)["lease"], lease(lab)["state"]) == (before, "running")


def test_a_lease_that_somebody_cancels_has_another_one_in_its_place_and_the_nodes_job_goes_on(lab, counter):
    before = lease(lab)["lease"]
    lab.exec("ctl", "scancel", before)
    wait_for(lambda: (now := lease(lab)) and now["lease"] != before, SOON, "another lease is there")
    assert must(lab, "backfill", "status")["virtual"]["target"] == 1
    wait_for(lambda: lease(lab)["state"] == "running", SOON, "it runs")
    goes_on(lab, counter)


def test_the_host_is_freed_and_taken_again_while_the_master_is_away_and_the_ledger_catches_up(lab, counter):
    host = node_host(lab)
    with without(lab, other(host)):
        lab.exec("ctl", "systemctl", "stop", "salt-master")
        try:
            number = urgent(lab, f"--nodelist={host}", "--exclusive", seconds=1)
            wait_job(lab, number, "COMPLETED")
            goes_on(lab, counter)
            second = urgent(lab, f"--nodelist={host}", "--exclusive", seconds=300)
            wait_job(lab, second, "RUNNING")
        finally:
            lab.exec("ctl", "systemctl", "start", "salt-master")
        wait_for(lambda: node_state(lab) == "suspended", SOON, "the ledger has caught up")
        cancel(lab, second)
        goes_on(lab, counter)


def test_a_node_that_cant_be_written_keeps_its_host_and_both_are_told(lab, counter):
    host = node_host(lab)
    lab.exec(host, "mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", "/srv/states")
    try:
        number = urgent(lab, f"--nodelist={host}", "--exclusive")
        wait_for(lambda: "DRAIN" in slurm_node(lab, host)[0], SOON, f"{host} is drained")
    finally:
        lab.exec(host, "umount", "/srv/states")
    assert slurm_node(lab, host)[1].startswith(f"{NODE} can't be suspended and keeps this host: ")
    assert_unbroken(counted(lab, counter))
    assert state_of(lab, counter) == "RUNNING"
    assert state_of(lab, number) == "PENDING"
    assert lease(lab)["waits for"] == "JobHeldAdmin"
    # As the manual says.
    must(lab, "suspend", NODE)
    lab.exec("ctl", "scontrol", "update", f"nodename={host}", "state=resume")
    lab.exec("ctl", "scontrol", "release", lease(lab)["lease"])
    wait_job(lab, number, "COMPLETED")
    goes_on(lab, counter)


@contextmanager
def policy(lab, host, word):
    """What a host does with a node that can't be written."""
    file = "/etc/saltmarsh/lease.json"
    before = lab.exec(host, "cat", file).stdout
    values = json.loads(before)
    values["elastic"]["lease"] = {"on_save_failure": word}
    lab.exec(host, "sh", "-c", f'printf %s "$1" > {file}', "sh", json.dumps(values))
    try:
        yield
    finally:
        lab.exec(host, "sh", "-c", f'printf %s "$1" > {file}', "sh", before)


def test_with_kill_a_node_that_cant_be_written_is_made_anew_and_its_job_starts_again(lab, counter):
    host = node_host(lab)
    with policy(lab, host, "kill"), without(lab, other(host)):
        lab.exec(host, "mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", "/srv/states")
        try:
            number = urgent(lab, f"--nodelist={host}", "--exclusive", seconds=1)
            wait_for(lambda: state_of(lab, number) in ("RUNNING", "COMPLETED"), SOON, f"job {number} runs")
        finally:
            lab.exec(host, "umount", "/srv/states")
        wait_for(lambda: killed(lab), SOON, "the ledger has caught up")
        assert (state_of(lab, counter), job(lab, counter)["restart_cnt"]) == ("PENDING", 1)
        wait_for(lambda: node_state(lab) == "ready", BOOT, f"{NODE} is ready")
        assert node_host(lab) == host


def killed(lab):
    """Why the node was killed; empty if it was not."""
    killed = "killed, because it could not be suspended: %"
    return ask_ledger(lab, f"SELECT reason FROM history WHERE name = '{NODE}' AND reason LIKE '{killed}'")[0]


# A parallel job, whose nodes are on both hosts.


@pytest.fixture(scope="module")
def parallel(lab, backfill):
    """A job of two ranks that talk to each other, one on each host."""
    with without(lab, node_host(lab)):
        must(lab, "backfill", "start", "pool=virtual", "target=2")
        wait_for(lambda: node_state(lab, SECOND) == "ready", BOOT, f"{SECOND} is ready")
    assert node_host(lab) == other(node_host(lab, SECOND))
    return submit_ping_pong(lab, [NODE, SECOND])


def both_go_on(lab, number):
    """The ranks talk again, and nothing was missed."""
    wait_for(lambda: node_host(lab) and node_host(lab, SECOND), SOON, "both are back")
    for rank in (0, 1):
        wait_counts(lab, f"{number}.{rank}", 3, SOON)
        assert_unbroken(counted(lab, f"{number}.{rank}"))
    assert job(lab, number)["restart_cnt"] == 0
    wait_for(lambda: node_state(lab) == node_state(lab, SECOND) == "ready", SOON, "the ledger has caught up")


def test_an_urgent_job_that_needs_all_hosts_gets_them_and_a_parallel_job_goes_on_afterwards(lab, parallel):
    number = urgent(lab, "--nodes=2", "--exclusive")
    wait_job(lab, number, "RUNNING")
    assert node_host(lab) is node_host(lab, SECOND) is None
    assert state_of(lab, parallel) == "SUSPENDED"
    written = max(saved_at(lab), saved_at(lab, SECOND))
    assert int(written) <= job(lab, number)["start_time"]["number"] <= written + 3
    wait_job(lab, number, "COMPLETED")
    both_go_on(lab, parallel)


def test_the_nodes_of_a_parallel_job_step_aside_together_and_come_back_together(lab, parallel):
    host = node_host(lab)
    number = urgent(lab, f"--nodelist={host}", "--exclusive", seconds=300)
    wait_job(lab, number, "RUNNING")
    both_go_on(lab, parallel)
    assert node_host(lab) == node_host(lab, SECOND) == other(host)
    assert state_of(lab, number) == "RUNNING"
    cancel(lab, number)
