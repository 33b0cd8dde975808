"""
What goes wrong while a node is on its way to disk and back: its job is alive afterwards, or Slurm knows that it is not.
"""

from contextlib import contextmanager

import pytest
from elastic import (
    assert_refused,
    begin,
    elastic,
    have,
    must,
    powered_off,
    said,
    salt_call,
    signal_owner,
    slurm_node,
    wait_state,
)
from jobs import assert_unbroken, cancel, counted, job, state_of, submit_counter, wait_counts
from saltcloud import wait_for

NODE = "vn001"
SLURM = "/var/lib/slurm/slurmctld"
# zstd as a host has it, which waits before it writes as long as there is a certain file.
HOLD = "/run/hold"
SLOW_ZSTD = f"""#!/bin/sh
case $1 in -d*) ;; *) while [ -e {HOLD} ]; do touch {HOLD}ing; sleep 0.1; done ;; esac
exec /usr/bin/zstd.real "$@"
"""


@pytest.fixture(scope="module", autouse=True)
def node(lab):
    """One node, ready, and hosts whose zstd can be held."""
    have(lab, NODE)
    for host in ("hv1", "hv2"):
        script = 'mv /usr/bin/zstd /usr/bin/zstd.real && printf %s "$1" > /usr/bin/zstd && chmod 755 /usr/bin/zstd'
        lab.exec(host, "sh", "-c", script, "sh", SLOW_ZSTD)
    yield
    for host in ("hv1", "hv2"):
        lab.exec(host, "mv", "/usr/bin/zstd.real", "/usr/bin/zstd")


@pytest.fixture
def counter(lab):
    """A job that counts on the node."""
    number = submit_counter(lab, NODE, "--requeue")
    yield number
    cancel(lab, number)


@pytest.fixture
def away(lab, counter):
    """The counter's node is suspended; the value is the job."""
    must(lab, "suspend", NODE)
    yield counter
    if must(lab, "status", NODE)[NODE]["state"] == "suspended":
        must(lab, "resume", NODE)


@contextmanager
def writing(lab):
    """A suspend whose memory is being written, and stands still there until the end of the block; as a process."""
    host = host_of(lab)
    lab.exec(host, "sh", "-c", f"rm -f {HOLD}ing; touch {HOLD}")
    try:
        suspending = begin(lab, "suspend", NODE)
        wait_for(lambda: lab.exec(host, "test", "-e", f"{HOLD}ing", check=False).returncode == 0, 60, "zstd is held")
        yield suspending
    finally:
        lab.exec(host, "rm", "-f", HOLD)


def host_of(lab):
    return must(lab, "status", NODE)[NODE]["host"]


def state_files(lab):
    return lab.exec("hv1", "find", "/srv/states", "-name", f"{NODE}.*").stdout.split()


def assert_goes_on(lab, number):
    """The job counts, and has never stopped to be what it was."""
    wait_counts(lab, str(number), 2)
    assert_unbroken(counted(lab, str(number)))
    assert state_of(lab, number) == "RUNNING"
    assert job(lab, number)["restart_cnt"] == 0
    assert "DRAIN" not in slurm_node(lab, NODE)[0]
    assert must(lab, "status", NODE)[NODE]["state"] == "ready"


def test_no_room_for_the_memory_is_told_before_anything_is_done(lab, counter):
    host = host_of(lab)
    lab.exec(host, "mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", "/srv/states")
    try:
        assert_refused(elastic(lab, "suspend", NODE), 1, f"{host}: /srv/states has ", f"the memory of {NODE} may need ")
    finally:
        lab.exec(host, "umount", "/srv/states")
    assert_goes_on(lab, counter)


def test_a_storage_that_fills_up_meanwhile_leaves_the_job_running(lab, counter):
    host = host_of(lab)
    lab.exec(host, "mount", "-t", "tmpfs", "-o", "size=600m", "tmpfs", "/srv/states")
    try:
        with writing(lab) as suspending:
            lab.exec(host, "sh", "-c", "dd if=/dev/zero of=/srv/states/filler bs=1M; true")
        done = said(suspending)
    finally:
        lab.exec(host, "umount", "/srv/states")
    assert_refused(done, 1, f"can't write the memory of {NODE}", f"{NODE} and all jobs go on")
    assert_goes_on(lab, counter)


def test_a_libvirtd_that_restarts_meanwhile_leaves_the_job_running(lab, counter):
    with writing(lab) as suspending:
        lab.exec(host_of(lab), "systemctl", "restart", "libvirtd")
    assert said(suspending).code == 1
    wait_state(lab, NODE, "ready", 180)
    assert_goes_on(lab, counter)


def test_the_engine_finishes_a_suspend_whose_process_was_killed(lab, counter):
    with writing(lab) as suspending:
        signal_owner(lab, NODE, "KILL")
        assert said(suspending).code != 0
    wait_state(lab, NODE, "suspended", 120)
    must(lab, "resume", NODE)
    assert_goes_on(lab, counter)


def test_a_job_survives_a_reboot_of_the_host_it_was_suspended_on(lab, away):
    with powered_off(lab, host_of(lab)):
        pass
    must(lab, "resume", NODE)
    assert_goes_on(lab, away)


def test_another_host_takes_a_node_whose_host_is_gone(lab, away):
    first = host_of(lab)
    with powered_off(lab, first):
        other = "hv2" if first == "hv1" else "hv1"
        assert must(lab, "resume", NODE)[NODE]["host"] == other
        assert_goes_on(lab, away)


def test_a_job_survives_a_reboot_of_the_controller(lab, away):
    with powered_off(lab, "ctl"):
        pass
    wait_for(lambda: state_of(lab, away) == "SUSPENDED", 60, "slurmctld has its state again")
    must(lab, "resume", NODE)
    assert_goes_on(lab, away)


def test_a_slurmctld_that_was_killed_is_told_what_it_has_forgotten(lab, counter):
    """Its disk is as it was before the suspend: what it knew later it had not written yet."""
    begun = job(lab, counter)["start_time"]["number"]
    # Changed once more: what is written in the second of the beginning may have been written before it.
    lab.exec("ctl", "scontrol", "update", f"jobid={counter}", "comment=begun")
    written = ("stat", "-c", "%Y", f"{SLURM}/job_state")
    wait_for(lambda: int(lab.exec("ctl", *written).stdout) > begun, 60, "slurmctld has written that the job runs")
    lab.exec("ctl", "cp", "-a", SLURM, "/root/before")
    must(lab, "suspend", NODE)
    lab.exec("ctl", "systemctl", "kill", "--signal=KILL", "slurmctld")
    lab.exec("ctl", "sh", "-c", f"systemctl stop slurmctld; rm -r {SLURM}; mv /root/before {SLURM}")
    lab.exec("ctl", "systemctl", "start", "slurmctld")
    wait_for(lambda: slurm_node(lab, NODE)[2] == "10.77.0.1", 60, "slurmctld asks the stand-in")
    assert state_of(lab, counter) == "SUSPENDED"
    assert "DRAIN" in slurm_node(lab, NODE)[0]
    must(lab, "resume", NODE)
    assert_goes_on(lab, counter)


def test_a_node_that_fails_the_gate_stays_drained_with_its_job_until_it_is_mended(lab, away):
    name = f"/var/lib/saltmarsh/dns/{NODE}"
    # dnsmasq takes notice of a file that is deleted, and of one that is written.
    lab.exec("ctl", "sh", "-c", f"cp {name} /root/aside && rm {name}")
    try:
        wait_for(lambda: lab.exec("ctl", "getent", "hosts", NODE, check=False).returncode != 0, 30, "no name in DNS")
        assert_refused(elastic(lab, "resume", NODE), 1, f"{NODE}: DNS does not say that {NODE} is 10.77.0.101")
        status = must(lab, "status", NODE)[NODE]
        assert (status["state"], "DNS" in status["reason"]) == ("failed", True)
        assert state_of(lab, away) == "SUSPENDED"
        states, reason, _ = slurm_node(lab, NODE)
        assert "DRAIN" in states
        assert reason.startswith("not back: DNS")
    finally:
        lab.exec("ctl", "cp", "/root/aside", name)
    wait_for(lambda: lab.exec("ctl", "getent", "hosts", NODE, check=False).returncode == 0, 30, "a name in DNS")
    must(lab, "resume", NODE)
    assert_goes_on(lab, away)


def test_a_lost_state_file_is_told_and_nothing_boots_in_its_place(lab, away):
    [path] = state_files(lab)
    lab.exec("hv1", "mv", path, "/srv/states/aside")
    try:
        assert_refused(elastic(lab, "resume", NODE), 1, NODE, "its state file is lost", "force=True")
        assert must(lab, "status", NODE)[NODE]["memory"] == "lost"
        for host in ("hv1", "hv2"):
            assert lab.exec(host, "virsh", "start", NODE, check=False).returncode != 0
        assert state_of(lab, away) == "SUSPENDED"
    finally:
        lab.exec("hv1", "mv", "/srv/states/aside", path)
    must(lab, "resume", NODE)
    assert_goes_on(lab, away)


def test_a_damaged_state_file_is_told(lab, away):
    [path] = state_files(lab)
    lab.exec("hv1", "sh", "-c", f"cp {path} /srv/states/aside && dd if=/dev/zero of={path} bs=64 count=1 conv=notrunc")
    try:
        assert_refused(elastic(lab, "resume", NODE), 1, f"{NODE} can't come back", f"{path} can't be restored from")
    finally:
        lab.exec("hv1", "mv", "/srv/states/aside", path)
    must(lab, "resume", NODE)
    assert_goes_on(lab, away)


def test_a_node_with_a_job_in_its_memory_is_shrunk_only_by_force(lab, away):
    assert_refused(elastic(lab, "shrink", NODE), 1, f"{NODE}: has job {away} in its memory", "force=True")
    must(lab, "resume", NODE)
    assert_goes_on(lab, away)


def test_an_administrator_can_suspend_and_resume_a_machine_by_hand(lab):
    host = host_of(lab)
    made = salt_call(lab, host, "vmstate.suspend", NODE, "reason=by hand")
    assert state_files(lab) == [made["file"]]
    assert salt_call(lab, host, "vmstate.list")[NODE]["state"] == "suspended"
    assert salt_call(lab, host, "vmstate.info", NODE)["suspended"]["why"] == "by hand"
    assert abs(salt_call(lab, host, "vmstate.resume", NODE)["clock"]) < 1
    assert state_files(lab) == []
    assert salt_call(lab, host, "vmstate.pause", NODE) is True
    assert salt_call(lab, host, "vmstate.info", NODE)["state"] == "paused"
    assert abs(salt_call(lab, host, "vmstate.unpause", NODE)["clock"]) < 1
    salt_call(lab, host, "vmstate.save", NODE, "/var/tmp/memory")
    assert salt_call(lab, host, "vmstate.restore", "/var/tmp/memory")["machine"] == NODE
    assert salt_call(lab, host, "vmstate.list")[NODE]["state"] == "running"


def test_grow_resumes_an_idle_node_before_it_makes_one(lab):
    must(lab, "suspend", NODE)
    assert must(lab, "grow", "1", "test=True") == {"would grow": {"resume": [NODE]}}
    assert list(must(lab, "grow", "1")["nodes"]) == [NODE]
    assert slurm_node(lab, NODE)[0] == "CLOUD+IDLE"


def test_a_job_whose_machine_dies_meanwhile_is_requeued_and_everybody_is_told(lab, counter):
    with writing(lab) as suspending:
        host = host_of(lab)
        lab.exec(host, "sh", "-c", f"kill -9 $(cat /run/libvirt/qemu/{NODE}.pid)")
    assert_refused(said(suspending), 1, NODE, "its machine died")
    assert must(lab, "status", NODE)[NODE]["state"] == "failed"
    assert "DOWN" in slurm_node(lab, NODE)[0]
    wait_for(lambda: job(lab, counter)["restart_cnt"] == 1, 60, "the job is requeued")
