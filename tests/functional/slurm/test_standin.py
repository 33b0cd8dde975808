"""
A node that is away with its suspended job, while the stand-in answers for it: docs/decisions/0007-stand-in.md.

A node that is cut off from the network stands for a VM that is on disk. How long the stand-in must hold is not a matter
of seconds here: until another node, which is cut off at the same time and for which nobody stands in, is DOWN.
"""

import json
import re
import time
from pathlib import Path

import pytest
from conftest import NODES, wait_until

from saltmarsh import slurm, slurmpush
from saltmarsh.errors import SlurmError

STANDIN = "10.77.0.1"
TIMEOUT = 10  # SlurmdTimeout; in 5 s, a node that hangs can hold up a round of pings for all (seen)
MESSAGE_TIMEOUT = 2
PIDS = "while :; do echo $$; sleep 0.1; done"


@pytest.fixture
def pillar(pillar, machine):
    """Impatient, and with an Epilog that says where it runs."""
    epilog = machine.shared / "epilog"
    epilog.write_text(f"#!/bin/sh\necho $SLURM_JOB_ID $(hostname) >> {machine.shared}/count.epilogs\n")
    epilog.chmod(0o755)
    pillar["slurm"]["config"] |= {"SlurmdTimeout": TIMEOUT, "MessageTimeout": MESSAGE_TIMEOUT, "Epilog": str(epilog)}
    return pillar


@pytest.fixture
def grown(cluster):
    """The cluster with its stand-in, and vn001 and vn002 at work."""
    cluster.start_standin()
    grow(cluster, "vn001", "vn002")
    return cluster


def grow(cluster, *names):
    slurm.expect({name: NODES[name] for name in names})
    cluster.boot(*names)
    wait_until(lambda: all(node.registered for node in slurm.nodes(names).values()), 20)


def run_job(cluster, name="vn001"):
    """A job that runs on a node; returns it."""
    number = cluster.submit("-w", name, "-t", "60", script=PIDS)
    cluster.counts_on(number)
    return cluster.job(number)


def stop(cluster, job, name="vn001"):
    """Drain, suspend the job, and wait until it has stopped."""
    slurm.drain(name, "suspended")
    slurm.suspend_jobs([job.handle])
    wait_until(lambda: processes(cluster, name) == {"T"}, 20)


def suspend(cluster, job, name="vn001"):
    """Stop the job, and let the node be away while the stand-in answers for it."""
    stop(cluster, job, name)
    stand_in(name)
    cluster.cut(name)


def stand_in(*names):
    slurm.set_addresses(dict.fromkeys(names, STANDIN))


def bring_back(cluster, name="vn001"):
    cluster.connect(name)
    slurm.set_addresses({name: NODES[name]})


def processes(cluster, name):
    """In which states (proc(5)) the processes of a node's jobs are."""
    found = set()
    for pid in cluster.run("ip", "netns", "pids", name).split():
        try:
            comm, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        if not comm.startswith("slurmd") and comm != "slurmstepd":
            found.add("T" if rest.split()[0] == "T" else "running")
    return found


def is_down(name):
    return "DOWN" in slurm.nodes(name)[name].states


def assert_held(cluster, job, *names):
    for node in slurm.nodes(names).values():
        # On a busy machine one of its answers may be late; if that lasted, the node would be DOWN.
        assert "DOWN" not in node.states, node.state
        assert "DRAIN" in node.states, node.state
        assert node.address == STANDIN
    assert cluster.job(job.id).states == {"SUSPENDED"}


def assert_held_until(condition, cluster, job, *names, seconds=60):
    """At every look, until a condition comes true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not come true within {seconds} s"
        assert_held(cluster, job, *names)
        time.sleep(0.3)
    wait_until(lambda: all(node.registered for node in slurm.nodes(names).values()), TIMEOUT)
    assert_held(cluster, job, *names)


def info(cluster, job):
    """All that slurmctld knows of a job, also after its end."""
    return json.loads(cluster.run("scontrol", "show", "job", str(job.id), "--json"))["jobs"][0]


def restart_slurmctld(cluster):
    cluster.stop_slurmctld()
    cluster.start_slurmctld()


def reboot_controller(cluster):
    cluster.stop_standin()
    cluster.stop_slurmctld()
    cluster.start_slurmctld()
    cluster.start_standin()


@pytest.mark.parametrize(
    "disturb",
    [lambda cluster: None, lambda cluster: slurm.reconfigure(), restart_slurmctld, reboot_controller],
    ids=["nothing", "reconfigure", "restart-of-slurmctld", "reboot-of-the-controller"],
)
def test_a_node_that_is_away_keeps_its_job_which_goes_on_where_it_stopped(grown, disturb):
    job = run_job(grown)
    end = info(grown, job)["end_time"]["number"]
    began = time.time()
    suspend(grown, job)
    disturb(grown)
    grown.cut("vn002")
    assert_held_until(lambda: is_down("vn002"), grown, job, "vn001")
    bring_back(grown)
    slurm.resume_jobs([job.handle], 20)
    lasted = time.time() - began
    grown.counts_on(job.id)
    slurm.undrain("vn001")
    wait_until(lambda: slurm.nodes("vn001")["vn001"].states == {"ALLOCATED", "CLOUD"}, 20)
    grown.counts_on(job.id)
    assert grown.job(job.id).states == {"RUNNING"}
    assert len(set((grown.shared / f"count.{job.id}").read_text().split())) == 1  # one process
    assert info(grown, job)["end_time"]["number"] - end == pytest.approx(lasted, abs=2)
    slurm.cancel_jobs([job.handle])
    wait_until(lambda: slurm.nodes("vn001")["vn001"].states == {"IDLE", "CLOUD"}, 20)


def test_without_the_stand_in_the_node_goes_down_and_the_job_is_lost(grown):
    job = run_job(grown)
    stop(grown, job)
    grown.cut("vn001")
    wait_until(lambda: is_down("vn001"), 60)
    wait_until(lambda: grown.job(job.id).states == {"PENDING"}, 20)  # to begin again


def test_a_job_that_is_cancelled_while_its_node_is_away_ends_and_its_processes_when_the_node_is_back(grown):
    job = run_job(grown)
    suspend(grown, job)
    slurm.cancel_jobs([job.handle])
    wait_until(lambda: grown.job(job.id) is None, 20)
    assert info(grown, job)["job_state"] == ["CANCELLED"]
    assert processes(grown, "vn001") == {"T"}
    assert not (grown.shared / "count.epilogs").exists()  # it is the node's, and did not run on the controller
    # One that ended a moment ago slurmctld takes for one whose end the node is about to report.
    wait_until(lambda: time.time() > info(grown, job)["end_time"]["number"] + MESSAGE_TIMEOUT, 20)
    bring_back(grown)
    slurm.resume_jobs([job.handle], 20)
    slurm.undrain("vn001")
    wait_until(lambda: slurm.nodes("vn001")["vn001"].states == {"IDLE", "CLOUD"}, 20)
    wait_until(lambda: processes(grown, "vn001") == set(), 20)
    wait_until(lambda: (grown.shared / "count.epilogs").exists(), 20)
    assert (grown.shared / "count.epilogs").read_text().split() == [str(job.id), "vn001"]


def test_a_job_that_was_resumed_before_its_node_was_back_goes_on_when_it_is_suspended_and_resumed_once_more(grown):
    job = run_job(grown)
    suspend(grown, job)
    slurm.resume_jobs([job.handle], 20)
    assert grown.job(job.id).states == {"RUNNING"}
    bring_back(grown)
    slurm.undrain("vn001")
    wait_until(lambda: slurm.nodes("vn001")["vn001"].states == {"ALLOCATED", "CLOUD"}, 20)
    assert processes(grown, "vn001") == {"T"}
    slurm.suspend_jobs([job.handle])
    slurm.resume_jobs([job.handle], 20)
    grown.counts_on(job.id)


def test_slurmds_that_forward_pings_send_them_to_the_stand_in(cluster, pillar):
    """slurmctld gives them the addresses: in their own configuration a node still has its own."""
    pillar["elastic"]["pools"]["virtual"] |= {"nodes": "vn[001-006]", "addresses": "10.77.0.101-106"}
    pillar["slurm"]["config"] |= {"TreeWidth": 2, "SlurmdDebug": "debug3"}
    push(cluster, pillar)
    cluster.start_standin()
    grow(cluster, *(name for name in NODES if name != "hv1"))
    job = run_job(cluster, "vn004")
    slurm.drain("vn[002,006]", "suspended")
    stand_in("vn002", "vn006")
    cluster.cut("vn002", "vn006")
    suspend(cluster, job, "vn004")
    log = cluster.root / "var/log/slurm/slurmd.log"
    before = log.read_text().count("\n")

    def forwarded():
        lines = log.read_text().splitlines()[before:]
        return [line for line in lines if re.search("forward: send to vn00[246]", line)]

    cluster.cut("vn005")
    assert_held_until(lambda: is_down("vn005") and forwarded(), cluster, job, "vn002", "vn004", "vn006")


def push(cluster, pillar, publish=None):
    controller = slurmpush.Controller(
        pillar, publish or cluster.publish, is_active=cluster.slurmctld_runs, restart=cluster.start_slurmctld
    )
    return controller.push()


def test_a_push_leaves_nodes_that_are_away_alone(grown, pillar):
    told = []

    def publish(names, function, *args):
        told.extend(names)
        return grown.publish(names, function, *args)

    job = run_job(grown)
    suspend(grown, job)
    pillar["slurm"]["config"]["SlurmdTimeout"] = TIMEOUT + 1
    assert push(grown, pillar, publish).changed
    assert told == ["vn002"]
    assert_held(grown, job, "vn001")
    # What slurmd had fetched would come before the controller's own files.
    grown.run("test", "!", "-e", slurmpush.FETCHED)


def test_one_job_of_an_array_is_suspended_and_no_other(grown):
    array = grown.submit("--array=0-4")
    wait_until(lambda: sum(job.states == {"RUNNING"} for job in slurm.jobs()) == 2, 20)
    slurm.suspend_jobs([f"{array}_0"])
    states = {job.handle: set(job.states) for job in slurm.jobs()}
    assert states == {f"{array}_0": {"SUSPENDED"}, f"{array}_1": {"RUNNING"}, f"{array}_[2-4]": {"PENDING"}}
    slurm.resume_jobs([f"{array}_0"], 20)
    slurm.cancel_jobs([f"{array}_[2-4]"])
    wait_until(lambda: {job.handle for job in slurm.jobs()} == {f"{array}_0", f"{array}_1"}, 20)
    assert [job.states for job in slurm.jobs()] == [{"RUNNING"}, {"RUNNING"}]


def test_a_heterogeneous_job_is_suspended_as_a_whole_by_the_handle_of_any_part(grown):
    leader = grown.submit("-n1", "-w", "vn001", ":", "-n1", "-w", "vn002")
    wait_until(lambda: [job.states for job in slurm.jobs()] == [{"RUNNING"}, {"RUNNING"}], 20)
    [part] = slurm.jobs("vn002")
    assert part.handle == str(leader) != str(part.id)
    slurm.suspend_jobs([part.handle])
    assert [job.states for job in slurm.jobs()] == [{"SUSPENDED"}, {"SUSPENDED"}]
    slurm.resume_jobs([part.handle], 20)
    assert [job.states for job in slurm.jobs()] == [{"RUNNING"}, {"RUNNING"}]


def test_jobs_that_have_ended_stand_in_nobody_s_way_and_jobs_that_wait_do(grown):
    ended, running = run_job(grown), run_job(grown, "vn002")
    slurm.cancel_jobs([ended.handle])
    waiting = grown.submit("-w", "vn002")
    for again in range(2):
        slurm.suspend_jobs([ended.handle, "999999", running.handle])
        assert grown.job(running.id).states == {"SUSPENDED"}, again
    with pytest.raises(SlurmError, match=rf"^not suspended: job {waiting} \(PENDING\): .*Job is pending execution"):
        slurm.suspend_jobs([running.handle, str(waiting)])
    for again in range(2):
        slurm.resume_jobs([ended.handle, "999999", running.handle], 20)
        assert grown.job(running.id).states == {"RUNNING"}, again


def test_a_job_of_a_node_that_is_away_is_suspended_without_a_word_to_the_node(grown):
    """As for a slurmctld that has forgotten it: an order under way would stop the job again when it has gone on."""
    job = run_job(grown)
    grown.cut("vn001")
    stand_in("vn001")
    slurm.suspend_jobs([job.handle])
    slurm.drain("vn001", "suspended")
    bring_back(grown)
    slurm.resume_jobs([job.handle], 20)
    grown.cut("vn002")
    wait_until(lambda: is_down("vn002"), 60)
    assert processes(grown, "vn001") == {"running"}
    assert grown.job(job.id).states == {"RUNNING"}
    grown.counts_on(job.id)
