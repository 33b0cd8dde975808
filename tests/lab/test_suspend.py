"""
Nodes go to disk with their running jobs and come back, here or on another host. What counts is what the jobs write.
"""

import time

import pytest
from elastic import assert_refused, elastic, have, must, slurm_node
from jobs import (
    assert_unbroken,
    cancel,
    counted,
    job,
    longest_gap,
    state_of,
    submit_counter,
    submit_ping_pong,
    wait_counts,
)
from saltcloud import wait_for

STAND_IN = "10.77.0.1"
SLURMD_TIMEOUT = 30  # seconds, in the lab's pillar
ADDRESSES = {"vn001": "10.77.0.101", "vn002": "10.77.0.102"}
FIRST, SECOND = ADDRESSES


@pytest.fixture(scope="module", autouse=True)
def nodes(lab):
    """Two nodes, ready."""
    have(lab, FIRST, SECOND)


@pytest.fixture
def counter(lab):
    """A job that counts on the first node."""
    number = submit_counter(lab, FIRST)
    yield number
    cancel(lab, number)


@pytest.fixture
def ping_pong(lab):
    """A job whose two ranks talk to each other, one on each node."""
    number = submit_ping_pong(lab, [FIRST, SECOND])
    yield number
    cancel(lab, number)


@pytest.fixture
def away(lab, counter):
    """The counter's node is suspended; the value is the job."""
    must(lab, "suspend", FIRST, "reason=a test")
    yield counter
    if must(lab, "status", FIRST)[FIRST]["state"] == "suspended":
        must(lab, "resume", FIRST)


def host_of(lab, name):
    return must(lab, "status", name)[name]["host"]


def other_host(lab, name):
    return "hv2" if host_of(lab, name) == "hv1" else "hv1"


def domains(lab, name):
    """The hosts that know a domain of this name."""
    return [host for host in ("hv1", "hv2") if name in lab.exec(host, "virsh", "list", "--all", "--name").stdout]


def state_files(lab, name):
    return lab.exec("hv1", "find", "/srv/states", "-name", f"{name}.*").stdout.split()


def assert_calm(lab, number):
    """Slurm takes the first node for there and drained, and its job for suspended."""
    states, reason, address = slurm_node(lab, FIRST)
    assert "DRAIN" in states
    assert not {"DOWN", "NOT_RESPONDING", "UNKNOWN"} & set(states.split("+")), states
    assert reason.startswith("suspended by root at ")
    assert address == STAND_IN
    assert state_of(lab, number) == "SUSPENDED"


def assert_goes_on(lab, number):
    """The job counts, and has never stopped to be what it was."""
    wait_counts(lab, str(number), 2)
    assert_unbroken(counted(lab, str(number)))
    assert state_of(lab, number) == "RUNNING"
    assert job(lab, number)["restart_cnt"] == 0


def test_suspend_with_test_true_says_what_suspend_then_does(lab, counter):
    plan = must(lab, "suspend", FIRST, "test=True")
    assert plan == {"would suspend": {FIRST: {"host": host_of(lab, FIRST), "jobs": [str(counter)]}}}
    assert state_of(lab, counter) == "RUNNING"
    assert domains(lab, FIRST) == [host_of(lab, FIRST)]


def test_a_suspended_node_is_a_file_and_no_machine(lab, away):
    assert domains(lab, FIRST) == []
    status = must(lab, "status", FIRST)[FIRST]
    assert (status["state"], status["jobs"]) == ("suspended", [away])
    assert status["memory"]["file"] in state_files(lab, FIRST)
    assert status["memory"]["size"] > 10 * 1024**2
    assert status["memory"]["age"] < 60
    assert_calm(lab, away)


def test_who_suspended_a_node_when_and_why_stands_in_slurm_and_in_status(lab, away):
    _, reason, _ = slurm_node(lab, FIRST)
    assert reason.endswith(": a test")
    assert must(lab, "status", FIRST)[FIRST]["reason"] == reason


def test_a_job_goes_on_where_it_stopped(lab, away):
    before = counted(lab, str(away))
    must(lab, "resume", FIRST)
    assert counted(lab, str(away))[: len(before)] == before
    assert_goes_on(lab, away)
    assert slurm_node(lab, FIRST)[2] == ADDRESSES[FIRST]
    assert state_files(lab, FIRST) == []


def test_a_node_that_is_away_longer_than_slurmd_timeout_keeps_its_job(lab, away):
    end = time.monotonic() + 3 * SLURMD_TIMEOUT
    while time.monotonic() < end:
        assert_calm(lab, away)
        time.sleep(5)
    must(lab, "resume", FIRST)
    assert_goes_on(lab, away)


def test_a_reconfigure_a_push_and_a_restart_of_slurmctld_change_nothing(lab, away):
    lab.exec("ctl", "scontrol", "reconfigure")
    assert_calm(lab, away)
    lab.exec("ctl", "salt-call", "slurm.push_config", timeout=120)
    assert_calm(lab, away)
    lab.exec("ctl", "systemctl", "restart", "slurmctld")
    wait_for(lambda: lab.exec("ctl", "scontrol", "ping", check=False).returncode == 0, 60, "slurmctld answers")
    wait_for(lambda: "NOT_RESPONDING" not in slurm_node(lab, FIRST)[0], 60, "the stand-in answers")
    assert_calm(lab, away)
    must(lab, "resume", FIRST)
    assert_goes_on(lab, away)


def test_a_job_that_is_cancelled_while_away_ends_and_nothing_of_it_comes_back(lab, away):
    cancel(lab, away)
    assert state_of(lab, away) == "CANCELLED"
    must(lab, "resume", FIRST)
    assert lab.exec(FIRST, "/usr/local/libexec/saltmarsh/job-processes").stdout == ""
    assert slurm_node(lab, FIRST)[0] == "CLOUD+IDLE"


def test_the_clock_of_a_time_limit_stands_still_meanwhile(lab, counter):
    lab.exec("ctl", "scontrol", "update", f"jobid={counter}", "timelimit=10")
    before = job(lab, counter)
    must(lab, "suspend", FIRST)
    time.sleep(5)
    must(lab, "resume", FIRST)
    wait_counts(lab, str(counter), 2)
    after = job(lab, counter)
    gone = after["end_time"]["number"] - before["end_time"]["number"]
    assert gone == pytest.approx(longest_gap(counted(lab, str(counter))), abs=5)
    assert gone >= 5


def test_the_ranks_of_a_parallel_job_are_suspended_together_and_never_notice(lab, ping_pong):
    done = elastic(lab, "suspend", SECOND)
    assert done.code == 0, done
    assert sorted(done.answer) == [FIRST, SECOND]
    assert f"{FIRST}: goes with {SECOND}, as job {ping_pong} runs on both" in done.progress
    assert domains(lab, FIRST) == domains(lab, SECOND) == []
    assert sorted(must(lab, "resume", FIRST)) == [FIRST, SECOND]
    for rank in (0, 1):
        wait_counts(lab, f"{ping_pong}.{rank}", 4)
        assert_unbroken(counted(lab, f"{ping_pong}.{rank}"))
    assert state_of(lab, ping_pong) == "RUNNING"


def test_a_node_comes_back_on_the_host_that_is_named(lab, away):
    target = other_host(lab, FIRST)
    assert must(lab, "resume", FIRST, f"host={target}")[FIRST]["host"] == target
    assert domains(lab, FIRST) == [target]
    assert_goes_on(lab, away)


def test_migrate_moves_a_node_with_its_job(lab, counter):
    target = other_host(lab, FIRST)
    must(lab, "migrate", FIRST, f"host={target}")
    assert domains(lab, FIRST) == [target]
    assert host_of(lab, FIRST) == target
    assert_goes_on(lab, counter)


def test_live_migration_leaves_no_gap(lab, counter):
    target = other_host(lab, FIRST)
    must(lab, "migrate", FIRST, f"host={target}", "live=True")
    assert domains(lab, FIRST) == [target]
    assert host_of(lab, FIRST) == target
    assert_goes_on(lab, counter)
    assert longest_gap(counted(lab, str(counter))) <= 5


def test_the_clock_is_right_before_anything_else_after_a_long_time_away(lab, counter):
    """A clock that was set back before looks afterwards as if the node had been away so long."""
    lab.exec("ctl", "scontrol", "suspend", counter)
    processes = ("/usr/local/libexec/saltmarsh/job-processes", counter)
    wait_for(lambda: lab.exec(FIRST, *processes, check=False).returncode == 0, 60, "the job is stopped")
    lab.exec(FIRST, "sh", "-c", "systemctl stop chrony; date --set='10 minutes ago'")
    must(lab, "suspend", FIRST)
    must(lab, "resume", FIRST)
    offset = float(lab.exec(FIRST, "date", "+%s.%N").stdout) - time.time()
    assert abs(offset) < 2  # ssh takes its time
    assert state_of(lab, counter) == "SUSPENDED"  # who stopped it lets it go on
    lab.exec("ctl", "scontrol", "resume", counter)
    lab.exec(FIRST, "systemctl", "start", "chrony")
    assert_goes_on(lab, counter)


def test_idle_nodes_can_be_suspended_as_well(lab):
    must(lab, "suspend", f"{FIRST},{SECOND}")
    assert must(lab, "resume", f"{FIRST},{SECOND}").keys() == {FIRST, SECOND}
    assert [slurm_node(lab, name)[0] for name in (FIRST, SECOND)] == ["CLOUD+IDLE"] * 2


def test_a_checkpoint_puts_memory_disk_and_job_back(lab, counter):
    number = must(lab, "checkpoint", FIRST, "reason=a test")["checkpoint"]
    assert_goes_on(lab, counter)
    kept = must(lab, "checkpoints", FIRST)[str(number)]
    assert (kept["why"], kept["jobs"]) == ("a test", [str(counter)])
    lab.exec(FIRST, "sh", "-c", "touch /root/since; sync")
    before = counted(lab, str(counter))
    assert must(lab, "restore", FIRST, f"checkpoint={number}")["jobs"] == [str(counter)]
    assert lab.exec(FIRST, "test", "-e", "/root/since", check=False).returncode == 1
    # It writes over NFS what it had written, and goes on.
    wait_for(lambda: counted(lab, str(counter))[-1].number > before[-1].number, 60, "the job has caught up with itself")
    assert {(each.pid, each.boot) for each in counted(lab, str(counter))} == {(before[0].pid, before[0].boot)}
    assert (state_of(lab, counter), job(lab, counter)["restart_cnt"]) == ("RUNNING", 0)
    assert "DRAIN" not in slurm_node(lab, FIRST)[0]
    must(lab, "discard", FIRST, f"checkpoint={number}")
    assert (must(lab, "checkpoints", FIRST), state_files(lab, FIRST)) == ({}, [])


@pytest.mark.parametrize(
    ("verb", "arguments", "code", "message"),
    [
        ("suspend", ["vn009"], 2, "vn009: not there, nothing to suspend"),
        ("suspend", ["hv1"], 2, "node 'hv1' belongs to no pool"),
        ("suspend", [FIRST, "urgent=maybe"], 2, "urgent='maybe': expected True or False"),
        ("resume", [FIRST], 2, f"not suspended: {FIRST}"),
        ("resume", ["vn009"], 2, "vn009: not there, nothing to resume"),
        ("migrate", [FIRST], 2, "missing a required argument: 'host'"),
        ("migrate", [FIRST, "host=hv9"], 2, "host 'hv9' does not exist; hosts: hv1, hv2"),
        ("checkpoint", [f"{FIRST},{SECOND}"], 2, "expected the name of one node"),
        ("restore", [SECOND, "checkpoint=1"], 2, f"{SECOND} has no checkpoint 1; checkpoints: none"),
        ("discard", [SECOND, "checkpoint=1"], 2, f"{SECOND} has no checkpoint 1; checkpoints: none"),
    ],
)
def test_what_is_not_acceptable_is_named_and_changes_nothing(lab, verb, arguments, code, message):
    assert_refused(elastic(lab, verb, *arguments), code, message)
    assert must(lab, "status", FIRST)[FIRST]["state"] == "ready"
