"""
The Prolog and the Epilog of leases, with a real slurmctld and a real slurmd.

In place of systemd there is a program that writes down what it is told to start and to stop. It takes as long to stop
something as the test wants: that is a node that is being written to disk.
"""

from types import SimpleNamespace

import pytest
from conftest import wait_until
from jinja2 import Template

from saltmarsh import leasehost, slurm
from saltmarsh.pools import Lease

LEASE = Lease(user="root")
FILES = "salt/lease/files"
SYSTEMCTL = """#!/bin/sh
shared={shared}
for unit; do :; done
number=${{unit#*@}} number=${{number%.service}} note=/run/saltmarsh/lease-$number
case $1,$unit in
    start,*-again@*) echo "again $number" >> $shared/count.told ;;
    start,*) mkdir -p /run/saltmarsh && touch $note && echo "start $number" >> $shared/count.told ;;
    stop,*)
        echo "stop $number" >> $shared/count.told
        while [ -e $shared/count.busy ]; do sleep 0.1; done
        [ ! -e $shared/count.broken ] || exit 1
        [ -e $shared/count.died ] || rm -f $note
        echo "stopped $number" >> $shared/count.told ;;
esac
"""
PROGRAM = """#!/bin/sh
echo "$@" >> {shared}/count.told
[ ! -e {shared}/count.refuses ] && rm /run/saltmarsh/lease-$2
"""


@pytest.fixture
def pillar(pillar):
    """A host for two leases, or for one urgent job and one of them."""
    programs = "/usr/local/libexec/saltmarsh"
    pillar["slurm"]["config"] |= {
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        "Prolog": f"{programs}/slurm-prolog",
        "Epilog": f"{programs}/slurm-epilog",
    }
    pillar["slurm"]["nodes"]["hv1"] |= {"CPUs": 2, "RealMemory": 1000}
    pillar["slurm"]["partitions"] |= {
        "metal": {"Nodes": "hv1", "PriorityTier": 100, "PreemptMode": "OFF", "DefMemPerCPU": 100},
        "lease": {"Nodes": "hv1", "PriorityTier": 1, "PreemptMode": "REQUEUE", "DefMemPerCPU": 100},
    }
    return pillar


@pytest.fixture
def host(cluster, machine, checkout):
    """The machine, with slurmd on hv1 and the programs of the state ``lease``."""
    programs = machine.root / "usr/local/libexec/saltmarsh"
    made = {
        programs / f"slurm-{name}": Template((checkout / FILES / f"slurm-{name}.jinja").read_text()).render(
            partition=LEASE.partition, user=LEASE.user
        )
        for name in ("prolog", "epilog")
    }
    made[programs / "lease"] = PROGRAM.format(shared=machine.shared)
    made[machine.root / "usr/bin/systemctl"] = SYSTEMCTL.format(shared=machine.shared)
    made[machine.root / "usr/bin/systemd-cat"] = '#!/bin/sh\nshift 2\nexec "$@"\n'
    for path, text in made.items():
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    cluster.boot("hv1")
    wait_until(lambda: slurm.nodes("hv1")["hv1"].registered, 20)
    yield cluster
    set_fault(cluster, "busy", False)


def set_fault(host, name, there=True):
    """What stops takes its time (busy), fails (broken), or has died before (died); what then takes over refuses."""
    path = host.shared / f"count.{name}"
    path.touch() if there else path.unlink(missing_ok=True)


def told(host):
    """What was told to systemctl, to the program, and by urgent jobs, in order."""
    path = host.shared / "count.told"
    return path.read_text().splitlines() if path.exists() else []


def lease(host, name="vn001"):
    """A lease that runs; its id."""
    number = slurm.submit_lease(name, LEASE, 1, 256)
    wait_until(lambda: f"start {number}" in told(host), 30)
    wait_until(lambda: host.job(number).states == {"RUNNING"}, 20)
    return number


def urgent(host, *options, seconds=0):
    """An urgent job that says when it begins; its id."""
    script = f"echo urgent $SLURM_JOB_ID >> {host.shared}/count.told; sleep {seconds}"
    return host.submit("-p", "metal", *options, script=script)


def wait_told(host, *lines):
    wait_until(lambda: [line for line in told(host) if line in lines] == list(lines), 40)


def start_again(host, number):
    """What systemd runs when it is told so by the Epilog."""
    wait_told(host, f"again {number}")
    leasehost.again(SimpleNamespace(slurm=slurm), number)


def test_an_urgent_job_begins_when_the_node_is_on_disk_and_the_lease_runs_again_afterwards(host):
    number = lease(host)
    set_fault(host, "busy")
    first = urgent(host, "--exclusive")
    wait_told(host, f"stop {number}")
    wait_until(lambda: "COMPLETING" in slurm.nodes("hv1")["hv1"].states, 10)
    assert host.job(first).states == {"PENDING"}
    set_fault(host, "busy", False)
    start_again(host, number)
    wait_told(host, f"stopped {number}", f"urgent {first}")
    wait_until(lambda: told(host).count(f"start {number}") == 2, 40)


def test_if_the_urgent_job_is_cancelled_while_the_node_is_written_the_lease_starts_again_at_once(host):
    number = lease(host)
    set_fault(host, "busy")
    cancelled = urgent(host, "--exclusive")
    wait_told(host, f"stop {number}")
    slurm.cancel_jobs([cancelled])
    set_fault(host, "busy", False)
    start_again(host, number)
    wait_until(lambda: told(host).count(f"start {number}") == 2, 40)
    assert told(host) == [f"start {number}", f"stop {number}", f"stopped {number}", f"again {number}",
                          f"start {number}"]  # fmt: skip


def test_urgent_jobs_that_wait_in_line_all_come_before_the_lease(host):
    number = lease(host)
    set_fault(host, "busy")
    jobs = [urgent(host, "--exclusive", seconds=1) for _ in range(3)]
    wait_told(host, f"stop {number}")
    set_fault(host, "busy", False)
    start_again(host, number)
    wait_told(host, *(f"urgent {job}" for job in jobs))
    wait_until(lambda: told(host).count(f"start {number}") == 2, 60)
    assert told(host)[-4:] == [*(f"urgent {job}" for job in jobs), f"start {number}"]


def test_an_urgent_job_that_needs_half_a_host_makes_one_of_two_nodes_step_aside(host):
    leases = [lease(host), lease(host, "vn002")]
    job = urgent(host, "--cpus-per-task=1")
    wait_told(host, f"urgent {job}")
    assert sum(line.startswith("stop ") for line in told(host)) == 1
    assert [host.job(number).states for number in leases].count({"RUNNING"}) == 1


def test_an_urgent_job_that_fits_beside_a_node_leaves_it_alone(host):
    number = lease(host)
    job = urgent(host, "--cpus-per-task=1")
    wait_told(host, f"urgent {job}")
    assert told(host) == [f"start {number}", f"urgent {job}"]


def test_what_somebody_else_runs_in_the_partition_of_leases_is_none_of_them(host):
    job = host.submit("-p", "lease", "--uid=65534", "-o", "/dev/null", script="exit 0")
    wait_until(lambda: (seen := host.job(job)) is None or "COMPLETED" in seen.states, 40)
    assert told(host) == []


def test_where_the_program_that_waited_has_died_another_writes_the_node(host):
    number = lease(host)
    set_fault(host, "died")
    job = urgent(host, "--exclusive")
    wait_told(host, f"stopped {number}", f"end {number}", f"urgent {job}")
    assert told(host).count(f"end {number}") == 1


@pytest.mark.parametrize("fault", [["broken"], ["died", "refuses"]])
def test_a_host_whose_node_may_still_be_there_is_given_to_nobody(host, fault):
    number = lease(host)
    for each in fault:
        set_fault(host, each)
    job = urgent(host, "--exclusive")
    wait_told(host, f"stop {number}")
    wait_until(lambda: "DRAIN" in slurm.nodes("hv1")["hv1"].states, 30)
    assert slurm.nodes("hv1")["hv1"].reason == "Epilog error"
    assert host.job(job).states == {"PENDING"}
    assert told(host).count(f"end {number}") == (0 if fault == ["broken"] else 2)
