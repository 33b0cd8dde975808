"""Slurm as the states set it up: one configuration on the controller, bare metal and VMs, and jobs that outlive it."""

import json
import re
import time

import pytest
from elastic import have

MACHINES = {"ctl": "munge,slurm.controller,slurm.standin", "hv1": "munge,slurm.host", "hv2": "munge,slurm.host"}
SITE_PILLAR = "/srv/pillar-site/secret.sls"
COUNT = "i=0; while :; do i=$((i + 1)); echo $i; sleep 0.5; done"


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"did not come true within {seconds} s")
        time.sleep(0.5)


class Cluster:
    """Slurm's and Salt's commands on the controller."""

    def __init__(self, lab):
        self.lab = lab

    def sh(self, script, name="ctl", **kwargs):
        return self.lab.exec(name, "sh", "-c", script, **kwargs).stdout.strip()

    def call(self, name, *argv, timeout=120):
        """What salt-call on a machine returns."""
        done = self.lab.exec(name, "salt-call", "--out=json", "--log-level=quiet", *argv, check=False, timeout=timeout)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)["local"]

    def digests(self, *names):
        """The digest of the configuration in use on each machine."""
        return {name: self.call(name, "slurm.config_hash") for name in names}

    def set_pillar(self, slurm):
        """Add to the site's pillar, below the key slurm."""
        program = (
            "import json, pathlib, sys; path = pathlib.Path(sys.argv[1]); pillar = json.loads(path.read_text());"
            "pillar['slurm'] = json.loads(sys.argv[2]); path.write_text(json.dumps(pillar))"
        )
        self.lab.exec("ctl", "python3", "-c", program, SITE_PILLAR, json.dumps(slurm))

    def push(self, **config):
        self.set_pillar({"config": config})
        return self.call("ctl", "slurm.push_config")

    def submit(self, *options):
        """Submit a job that counts into /shared as a user would; returns its id."""
        output = "/shared/slurm-test.%j"
        argv = ["sbatch", "--parsable", "-D", "/", "-o", output, *options, f"--wrap={COUNT}"]
        return int(self.lab.exec("ctl", *argv).stdout)

    def count(self, job):
        """How far a job has counted, by its own standard output, wherever it runs."""
        lines = self.sh(f"cat /shared/slurm-test.{job} 2>/dev/null || true").split()
        assert list(map(int, lines)) == list(range(1, len(lines) + 1))  # one process, that never began again
        return len(lines)

    def counts_on(self, job):
        before = self.count(job)
        wait_until(lambda: self.count(job) > before, 60)

    def state(self, job):
        return self.sh(f"squeue -h -j {job} -o %T 2>/dev/null || true")

    def node(self, name):
        return self.sh(f"scontrol show node {name}")


@pytest.fixture(scope="module")
def cluster(lab):
    return Cluster(lab)


@pytest.fixture
def site_pillar(cluster):
    """The cluster, whose pillar a test may change."""
    before = cluster.sh(f"cat {SITE_PILLAR}")
    yield cluster
    cluster.lab.exec("ctl", "python3", "-c", "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])",
                     SITE_PILLAR, before)  # fmt: skip
    assert cluster.call("ctl", "slurm.push_config")["slurmctld_runs"]


@pytest.fixture(scope="module")
def node(cluster):
    """A VM that has grown."""
    have(cluster.lab, "vn001")
    return "vn001"


@pytest.fixture
def jobs(cluster):
    """Ids of jobs; they are cancelled in the end."""
    ids = []
    yield ids
    for job in ids:
        cluster.sh(f"scancel {job}; rm -f /shared/slurm-test.{job}")


@pytest.mark.parametrize(("name", "states"), MACHINES.items(), ids=MACHINES)
def test_the_states_applied_again_change_nothing(cluster, name, states):
    returned = cluster.call(name, "state.apply", states)
    assert [(key, each["comment"]) for key, each in returned.items() if each["changes"] or not each["result"]] == []


@pytest.mark.parametrize("name", MACHINES)
def test_only_munge_can_read_the_key_that_all_share(cluster, name):
    assert cluster.sh("stat -c '%a %U:%G' /etc/munge/munge.key", name) == "400 munge:munge"
    assert cluster.sh("stat -c '%a %U:%G' /etc/munge", name) == "700 munge:munge"
    key = "sha256sum < /etc/munge/munge.key"
    assert cluster.sh(key, name) == cluster.sh(key)


def test_the_controllers_minion_may_ask_nodes_for_nothing_else(cluster):
    assert set(cluster.call("ctl", "publish.publish", "hv*", "slurm.config_hash")) == {"hv1", "hv2"}
    for function in ("test.ping", "slurm.render_config", "cmd.run", "slurm.config_hash2"):
        assert cluster.call("ctl", "publish.publish", "hv*", function, "id") == {}


def test_a_host_may_not_push(cluster):
    assert cluster.call("hv1", "publish.publish", "hv2", "slurm.fetch_config") == {}
    assert cluster.call("hv1", "publish.publish", "ctl", "slurm.push_config") == {}


def test_a_push_reaches_controller_and_copies(site_pillar):
    pushed = site_pillar.push(SlurmdTimeout=44)
    assert pushed["changed"]
    assert "+SlurmdTimeout=44" in pushed["diff"]
    assert set(site_pillar.digests(*MACHINES).values()) == {pushed["digest"]}
    for name in MACHINES:
        assert "HASH_VAL                = Match" in site_pillar.sh("scontrol show config", name)
    assert site_pillar.call("ctl", "slurm.push_config")["changed"] is False


def test_a_state_in_test_mode_says_what_would_change_and_changes_nothing(site_pillar):
    before = site_pillar.digests(*MACHINES)
    site_pillar.set_pillar({"config": {"SlurmdTimeout": 44}})
    for name, state in (("ctl", "slurm.controller"), ("hv1", "slurm.host")):
        returned = site_pillar.call(name, "state.apply", state, "test=True")
        (config,) = [each for key, each in returned.items() if key.startswith("slurm_|-/etc/slurm")]
        assert config["result"] is None
        assert "+SlurmdTimeout=44" in config["changes"]["diff"]
    assert site_pillar.digests(*MACHINES) == before


def test_a_host_that_was_away_takes_the_configuration_when_its_states_are_applied(site_pillar):
    site_pillar.sh("systemctl stop slurmd", "hv2")
    # Before that, an answer of its slurmd could still be under way, and make the node one that is there.
    wait_until(lambda: "NOT_RESPONDING" in site_pillar.node("hv2"), 90)
    site_pillar.sh("scontrol update nodename=hv2 state=down reason=test")
    try:
        pushed = site_pillar.push(SlurmdTimeout=44)
        assert site_pillar.digests("hv2")["hv2"] != pushed["digest"]
    finally:
        returned = site_pillar.call("hv2", "state.apply", "slurm.host")
    assert all(each["result"] for each in returned.values())
    assert site_pillar.digests("hv2")["hv2"] == pushed["digest"]
    wait_until(lambda: "State=IDLE " in site_pillar.node("hv2"), 60)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"SelectType": "select/nosuch"}}, "Can't find plugin for select/nosuch"),
        ({"config": {"TaskPlugin": "task/nosuch"}}, "there is no .*/task_nosuch.so"),
        ({"partitions": {"metal": {"Nodes": "hv[1-9]"}}}, r"slurm:partitions:metal:Nodes: hv\[3-9\] is neither in"),
        ({"nodes": {"hv3": {"NodeAddr": "10.77.0.101"}}}, "address 10.77.0.101 stands more than once"),
    ],
)
def test_a_push_that_can_t_be_is_one_clear_error_and_changes_nothing(site_pillar, change, message):
    before = site_pillar.digests(*MACHINES)
    site_pillar.set_pillar(change)
    done = site_pillar.lab.exec("ctl", "salt-call", "--retcode-passthrough", "slurm.push_config", check=False)
    assert done.returncode != 0
    assert re.search(message, done.stdout + done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    assert site_pillar.digests(*MACHINES) == before


def test_jobs_that_run_or_wait_survive_push_reconfigure_and_restart(site_pillar, node, jobs):
    in_vm, on_metal = site_pillar.submit("-w", node), site_pillar.submit("-p", "metal", "-w", "hv1")
    waits = site_pillar.submit("-w", node)
    jobs += [in_vm, on_metal, waits]
    for job in (in_vm, on_metal):
        site_pillar.counts_on(job)

    def push():
        pushed = site_pillar.push(SlurmdTimeout=44)
        assert pushed["changed"]
        assert set(site_pillar.digests(*MACHINES, node).values()) == {pushed["digest"]}

    def restart():
        site_pillar.sh("systemctl restart slurmctld")
        wait_until(lambda: site_pillar.lab.exec("ctl", "scontrol", "ping", check=False).returncode == 0, 60)

    for disturb in (push, lambda: site_pillar.call("ctl", "slurm.reconfigure"), restart):
        disturb()
        for job in (in_vm, on_metal):
            site_pillar.counts_on(job)
            assert site_pillar.state(job) == "RUNNING"
        assert site_pillar.state(waits) == "PENDING"
    site_pillar.sh(f"scancel {in_vm}")
    site_pillar.counts_on(waits)


def test_a_vm_reports_at_least_the_memory_that_slurm_counts_on(cluster, node):
    reported = int(re.search(r"RealMemory=(\d+)", cluster.sh("slurmd -C", node))[1])
    configured = int(re.search(r"RealMemory=(\d+)", cluster.node(node))[1])
    assert 0.8 * reported < configured <= reported


def test_a_vms_slurmd_runs_but_does_not_start_at_boot(cluster, node):
    assert cluster.sh("systemctl is-active slurmd; systemctl is-enabled slurmd || true", node) == "active\ndisabled"
    assert cluster.sh("stat -c '%a %U:%G' /etc/munge/munge.key", node) == "400 munge:munge"


def test_the_states_of_a_vm_applied_again_change_nothing_and_leave_its_job_alone(cluster, node, jobs):
    jobs.append(cluster.submit("-w", node))
    cluster.counts_on(jobs[0])
    returned = cluster.call(node, "state.apply", "munge,slurm.node", timeout=300)
    assert [(key, each["comment"]) for key, each in returned.items() if each["changes"] or not each["result"]] == []
    cluster.counts_on(jobs[0])
