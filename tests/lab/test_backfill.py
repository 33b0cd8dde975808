"""
Nodes soak up idle bare metal and step aside for urgent jobs. What counts is what their own jobs write meanwhile.
"""

from contextlib import contextmanager

import pytest
from elastic import elastic, must, shrink_all, slurm_node
from jobs import assert_unbroken, cancel, counted, job, state_of, submit_counter, submit_ping_pong, wait_counts
from saltcloud import wait_for
from test_suspend_failures import HOLD, SLOW_ZSTD

BOOT = 900  # seconds
NODE, SECOND = "vn001", "vn002"
SOON = 90


@pytest.fixture(scope="module", autouse=True)
def backfill(lab):
    """One lease, with its node at work on hv1."""
    assert must(lab, "status") == {}, "this needs a lab without nodes"
    lab.exec("ctl", "scontrol", "update", "nodename=hv2", "state=drain", "reason=a test")
    must(lab, "backfill", "start", "pool=virtual", "target=1")
    wait_for(lambda: node_state(lab) == "ready", BOOT, f"{NODE} is ready")
    lab.exec("ctl", "scontrol", "update", "nodename=hv2", "state=resume")
    yield
    lab.exec("ctl", "scancel", "--user=alice")
    elastic(lab, "backfill", "stop", "force=True", timeout=300)
    lab.exec("ctl", "scancel", "--partition=lease")
    wait_for(lambda: "hv" not in lab.exec("ctl", "squeue", "-h", "-o", "%N").stdout, SOON, "hosts are free")
    shrink_all(lab)


@pytest.fixture
def counter(lab, backfill):
    """A job that counts on the node."""
    number = submit_counter(lab, NODE)
    yield number
    cancel(lab, number)


def node_state(lab):
    return must(lab, "status", NODE)[NODE]["state"]


def node_host(lab):
    """The host on which the node's machine is, or None."""
    for host in ("hv1", "hv2"):
        if NODE in lab.exec(host, "virsh", "list", "--name").stdout.split():
            return host
    return None


def lease(lab):
    [row] = must(lab, "backfill", "status").values()
    return row


def urgent(lab, *options, seconds=3):
    """Submit an urgent job as an ordinary user; returns its id at once."""
    said = lab.exec(
        "ctl", "runuser", "-u", "alice", "--", "sbatch", "--parsable", "--partition=metal", "--chdir=/shared",
        "--output=/dev/null", *options, "--wrap", f"sleep {seconds}",
    )  # fmt: skip
    return int(said.stdout)


def wait_job(lab, number, state, seconds=SOON):
    wait_for(lambda: state_of(lab, number) == state, seconds, f"job {number} {state}")


def saved_at(lab):
    """When the node's memory was complete, by the hosts' clock."""
    found = lab.exec("hv1", "find", "/srv/states", "-name", f"{NODE}.*.state", "-printf", "%T@\\n").stdout.split()
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


@contextmanager
def slow_zstd(lab, host):
    """A host's zstd can be held."""
    script = 'mv /usr/bin/zstd /usr/bin/zstd.real && printf %s "$1" > /usr/bin/zstd && chmod 755 /usr/bin/zstd'
    lab.exec(host, "sh", "-c", script, "sh", SLOW_ZSTD)
    lab.exec(host, "sh", "-c", f"rm -f {HOLD}ing; touch {HOLD}")
    try:
        yield
    finally:
        lab.exec(host, "rm", "-f", HOLD)
        lab.exec(host, "mv", "/usr/bin/zstd.real", "/usr/bin/zstd")


def test_an_urgent_job_that_is_cancelled_while_the_node_is_written_leaves_everything_as_it_was(lab, counter):
    host = node_host(lab)
    with without(lab, other(host)), slow_zstd(lab, host):
        number = urgent(lab, f"--nodelist={host}", "--exclusive")
        held = lambda: lab.exec(host, "test", "-e", f"{HOLD}ing", check=False).returncode == 0  # noqa: E731
        wait_for(held, SOON, f"{NODE} is being written")
        assert state_of(lab, number) == "PENDING"  # slurmd keeps the host
        cancel(lab, number)
    with without(lab, other(host)):
        goes_on(lab, counter)
    assert node_host(lab) == host


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


def test_the_nodes_of_a_parallel_job_step_aside_for_a_job_on_all_hosts_and_come_back_together(lab):
    """Both leases end at the same time, and each of the two hosts wants to write both nodes."""
    with without(lab, node_host(lab)):
        must(lab, "backfill", "start", "pool=virtual", "target=2")
        wait_for(lambda: must(lab, "status", SECOND)[SECOND]["state"] == "ready", BOOT, f"{SECOND} is ready")
    assert must(lab, "status", SECOND)[SECOND]["host"] == other(node_host(lab))
    number = submit_ping_pong(lab, [NODE, SECOND])
    hosts = urgent(lab, "--nodes=2", "--exclusive")
    wait_job(lab, hosts, "RUNNING")
    assert state_of(lab, number) == "SUSPENDED"
    assert [lab.exec(host, "virsh", "list", "--name").stdout.split() for host in ("hv1", "hv2")] == [[], []]
    wait_job(lab, hosts, "COMPLETED")
    for rank in (0, 1):
        wait_counts(lab, f"{number}.{rank}", 4, SOON)
        assert_unbroken(counted(lab, f"{number}.{rank}"))
    assert job(lab, number)["restart_cnt"] == 0
    cancel(lab, number)
