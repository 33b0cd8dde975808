"""
The main job, from nothing to nothing: VMs join Slurm with elastic.grow, run jobs, and leave with elastic.shrink.

Machines are slow to come: few are grown, and every fixture goes on from where the one before it has led to. The order
of the tests is the order of that story.
"""

import json
from dataclasses import dataclass
from datetime import datetime

import pytest
from elastic import (
    SITE_PILLAR,
    ask_ledger,
    assert_free,
    assert_refused,
    begin,
    elastic,
    have,
    must,
    remains,
    said,
    signal_owner,
    slurm_node,
    wait_state,
)
from saltcloud import salt_cloud, traces, wait_for
from watching import files_with, forge_hints, recorded_events, seen, watch_dns

BOOT = 900  # seconds: software emulation on two busy cores
MAP = "/root/grown.map"
NOT_BOOTING = "vn009"
FOREIGN = "vn010"
ABSENT = ("CLOUD+DOWN+POWERED_DOWN", "not grown")
WITHOUT_ENGINE = "/etc/salt/master.d/zz-without-engine.conf"


@dataclass(frozen=True)
class Growth:
    """Two nodes grown, and what was seen on the way."""

    names: list
    plan: dict
    answer: dict
    events: dict  # by tag, the data of each
    resolved: dict  # by machine and name, when it resolved for the first time
    history: list  # of NOT_BOOTING, before


def at(lab, name, after):
    """When a node last came into a state, in seconds since the epoch."""
    [[[seconds]]] = ask_ledger(lab, f"SELECT max(at) FROM history WHERE name = '{name}' AND after = '{after}'")
    return seconds


def job(lab, number):
    """A job as Slurm has it."""
    [shown] = json.loads(lab.exec("ctl", "scontrol", "show", "job", number, "--json").stdout)["jobs"]
    return shown


def nothing_changed(states):
    """What a highstate changed, or could not do; empty if nothing."""
    return {key: state for key, state in states.items() if state["changes"] or not state["result"]}


@pytest.fixture(scope="module")
def growth(lab):
    """Two nodes, grown while events were recorded and forged, and DNS was watched."""
    have(lab)
    plan = must(lab, "grow", "2", f"map_out={MAP}", "test=True")["would grow"]
    names = sorted(plan["nodes"])
    history = must(lab, "history", NOT_BOOTING)
    with recorded_events(lab) as events:
        # The recorder listens once it has heard them; it may begin to between the two.
        forged = {f"salt/minion/{NOT_BOOTING}/start", "saltmarsh/nudge"}
        wait_for(lambda: forge_hints(lab, NOT_BOOTING) or forged <= events().keys(), 60, "recorded events")
        watches = watch_dns(lab, "there", *names)
        answer = must(lab, "grow", "2", f"map_out={MAP}", timeout=BOOT)
        grown = Growth(names, plan, answer, events(), seen(watches), history)
    yield grown
    have(lab)


@pytest.fixture(scope="module")
def secrets(lab, growth):
    """A line of each node's private key by its name, and one of the key of munge."""
    pillar = json.loads(lab.exec("ctl", "cat", SITE_PILLAR).stdout)
    keys = {name: lab.exec(name, "cat", "/etc/salt/pki/minion/minion.pem").stdout for name in growth.names}
    assert all("PRIVATE KEY" in key for key in keys.values())
    return {name: key.splitlines()[3] for name, key in keys.items()} | {"munge": pillar["munge"]["key"][:64]}


@pytest.fixture(scope="module")
def second_highstates(lab, growth):
    """What another highstate of the controller, of a host and of a node returned."""
    highstate = ("salt-call", "--out=json", "--log-level=quiet", "state.highstate")
    calls = {role: lab.start(machine, *highstate) for role, machine in machines_by_role(growth).items()}
    return {role: json.loads(call.communicate(timeout=300)[0])["local"] for role, call in calls.items()}


def machines_by_role(growth):
    return {"controller": "ctl", "host": "hv1", "node": growth.names[0]}


@pytest.fixture(scope="module")
def sleeper(lab, growth):
    """The number of a job that an ordinary user runs on the first node."""
    options = ("--parsable", "--requeue", "--chdir=/shared", "--output=/dev/null", f"--nodelist={growth.names[0]}")
    number = int(lab.exec("ctl", "runuser", "-u", "alice", "--", "sbatch", *options, "--wrap=sleep 3600").stdout)
    wait_for(lambda: job(lab, number)["job_state"] == ["RUNNING"], 60, f"job {number} runs")
    yield number
    lab.exec("ctl", "scancel", number)


@pytest.fixture(scope="module")
def shrunk(lab, growth, sleeper):
    """What ``shrink 1`` answered while the first node had a job, and when the other one's name no longer resolved."""
    watches = watch_dns(lab, "gone", growth.names[1])
    answer = must(lab, "shrink", "1")
    return answer, seen(watches)


@pytest.fixture(scope="module")
def killed(lab, growth, shrunk):
    """The name of a node whose grow was killed while it booted, once the name is free again."""
    name = growth.names[1]
    growing = begin(lab, "grow", name)
    wait_state(lab, name, "booting", 60)
    assert traces(lab, name)
    signal_owner(lab, name, "KILL")
    assert said(growing).code != 0
    wait_state(lab, name, "free", 180)
    return name


@pytest.fixture(scope="module")
def without_engine(lab, killed):
    """A master without the engine."""
    lab.exec("ctl", "sh", "-c", f"echo 'engines: []' > {WITHOUT_ENGINE}; systemctl restart salt-master")
    lab.exec("ctl", "flock", "--nonblock", "/var/lib/saltmarsh/joining.lock", "true")  # nobody joins nodes now
    yield
    lab.exec("ctl", "sh", "-c", f"rm {WITHOUT_ENGINE}; systemctl restart salt-master")


@pytest.fixture(scope="module")
def foreign_domain(lab):
    """The UUID of a domain on hv1 that has a node's name, but was not made by us."""
    xml = f"<domain type='qemu'><name>{FOREIGN}</name><memory>65536</memory><os><type>hvm</type></os></domain>"
    lab.exec("hv1", "sh", "-c", f'echo "{xml}" > /root/foreign.xml && virsh define /root/foreign.xml')
    yield lab.exec("hv1", "virsh", "domuuid", FOREIGN).stdout
    lab.exec("hv1", "virsh", "undefine", FOREIGN)


@pytest.fixture(scope="module")
def regrown(lab, killed, without_engine, foreign_domain):
    """What growing the same name again, and one that can't be made, answered with ``min=1`` and without the engine."""
    return must(lab, "grow", f"{killed},{FOREIGN}", "min=1", timeout=BOOT)


@pytest.fixture(scope="module")
def emptied(lab, growth, regrown, sleeper):
    """What shrinks answered: of a node whose machine has died, and of one whose job was not waited for."""
    busy, dead = growth.names
    lab.exec(regrown["nodes"][dead]["host"], "virsh", "destroy", dead)
    return must(lab, "shrink", dead), must(lab, "shrink", busy, "force=True")


def test_grow_with_test_true_says_what_grow_then_does(growth):
    assert growth.plan["nodes"] == {name: node["address"] for name, node in growth.answer["nodes"].items()}


def test_grow_answers_where_each_node_is_and_where_its_seconds_went(growth):
    assert growth.answer["failed"] == {}
    for node in growth.answer["nodes"].values():
        assert node["host"] in ("hv1", "hv2")
        phases = dict(node["seconds"])
        total = phases.pop("total")
        assert set(phases) == {"claim", "create", "boot", "states", "register"}
        assert total == pytest.approx(sum(phases.values()), abs=1)
        assert phases["boot"] > 1


def test_machines_are_spread_over_the_hosts(growth):
    assert {node["host"] for node in growth.answer["nodes"].values()} == {"hv1", "hv2"}


def test_slurm_has_grown_nodes_idle_at_their_addresses(lab, growth):
    for name, node in growth.answer["nodes"].items():
        assert slurm_node(lab, name)[::2] == ("CLOUD+IDLE", node["address"])


def test_status_tells_all_about_each_node_that_is_not_free(lab, growth):
    status = must(lab, "status")
    assert list(status) == growth.names
    for name, node in growth.answer["nodes"].items():
        since = datetime.fromisoformat(status[name].pop("since"))
        assert since.timestamp() == pytest.approx(at(lab, name, "ready"), abs=1)
        assert status[name] == {
            "pool": "virtual",
            "state": "ready",
            "host": node["host"],
            "address": node["address"],
            "reason": "Slurm has it",
            "slurm": "IDLE+CLOUD",
            "jobs": [],
        }


def test_status_of_a_free_name_says_so(lab, growth):
    free = must(lab, "status", NOT_BOOTING)[NOT_BOOTING]
    assert (free["state"], free["host"], free["since"], free["address"]) == ("free", None, None, "10.77.0.109")


def test_pools_count_their_nodes_by_state(lab, growth):
    pool = must(lab, "pools")["virtual"]
    assert (pool["size"], pool["free"], pool["ready"]) == (16, 14, 2)


def test_history_tells_the_way_from_free_to_ready(lab, growth):
    for name in growth.names:
        rows = must(lab, "history", name)
        states = [rows[-6]["from"], *(row["to"] for row in rows[-6:])]
        assert states == ["free", "claimed", "creating", "booting", "booting", "booting", "ready"]
        assert {row["operation"] for row in rows[-6:]} == {rows[-1]["operation"]}
        assert rows[-1]["host"] == growth.answer["nodes"][name]["host"]


def test_a_name_resolves_within_a_second_of_being_claimed(lab, growth):
    for place, times in growth.resolved.items():
        delays = {name: times[name] - at(lab, name, "claimed") for name in growth.names}
        assert all(delay < 1 for delay in delays.values()), f"{place}: {delays}"


def test_every_node_resolves_on_controller_host_and_node(lab, growth):
    addresses = [node["address"] for node in growth.answer["nodes"].values()]
    for place in ("ctl", "hv1", "hv2", *growth.names):
        assert lab.exec(place, "getent", "hosts", *growth.names).stdout.split()[::2] == addresses
        for name, address in zip(growth.names, addresses, strict=True):
            assert name in lab.exec(place, "getent", "hosts", address).stdout.replace(".lab", "").split()


def test_only_munge_can_read_its_key_on_a_node(lab, growth):
    for name in growth.names:
        shown = lab.exec(name, "stat", "-c", "%a %U:%G", "/etc/munge", "/etc/munge/munge.key").stdout
        assert shown == "700 munge:munge\n400 munge:munge\n"


def test_the_clock_of_a_node_follows_the_controllers(lab, growth):
    for name in growth.names:
        fields = lab.exec(name, "chronyc", "-n", "-c", "tracking").stdout.strip().split(",")
        assert (fields[1], fields[-1]) == ("10.77.0.1", "Normal")
        assert abs(float(fields[4])) < 0.1


def test_home_and_shared_can_be_written_on_a_node_and_software_can_not(lab, growth):
    for name in growth.names:
        shown = lab.exec(name, "findmnt", "--json", "--types=nfs4", "--output=target,source,options").stdout
        mounts = {mount["target"]: mount for mount in json.loads(shown)["filesystems"]}
        access = {target: mount["options"].split(",")[0] for target, mount in mounts.items()}
        assert access == {"/home": "rw", "/shared": "rw", "/software": "ro"}
        assert {mount["source"].partition(":")[0] for mount in mounts.values()} == {"10.77.0.1"}
    as_alice = ("runuser", "-u", "alice", "--")
    lab.exec(name, *as_alice, "touch", "/home/alice/written", "/shared/written")
    assert lab.exec("ctl", "stat", "-c", "%U", "/home/alice/written", "/shared/written").stdout == "alice\nalice\n"
    lab.exec(name, *as_alice, "rm", "/home/alice/written", "/shared/written")
    refused = lab.exec(name, "touch", "/software/written", check=False)
    assert "Read-only file system" in refused.stderr


def test_the_master_accepts_the_keys_of_what_was_grown_and_no_others(lab, growth):
    keys = json.loads(lab.exec("ctl", "salt-key", "--out=json", "-L").stdout)
    assert sorted(keys.pop("minions")) == ["ctl", "hv1", "hv2", *growth.names]
    assert not any(keys.values())
    for name in growth.names:
        accepted = lab.exec("ctl", "cat", f"/etc/salt/pki/master/minions/{name}").stdout.strip()
        assert lab.exec(name, "cat", "/etc/salt/pki/minion/minion.pub").stdout.strip() == accepted


def test_nodes_have_this_masters_key_pinned(lab, growth):
    master = lab.exec("ctl", "cat", "/etc/salt/pki/master/master.pub").stdout.strip()
    for name in growth.names:
        assert lab.exec(name, "cat", "/etc/salt/pki/minion/minion_master.pub").stdout.strip() == master


def test_no_secret_was_on_the_event_bus(growth, secrets):
    assert f"salt/cloud/{growth.names[0]}/created" in growth.events  # it was listened to
    said_in = [
        tag for tag, data in growth.events.items() if any(word in each for word in secrets.values() for each in data)
    ]
    assert said_in == []
    assert not [tag for tag, data in growth.events.items() if any("PRIVATE KEY" in each for each in data)]


def test_no_secret_is_in_a_domain_or_on_a_command_line(lab, growth, secrets):
    for name, node in growth.answer["nodes"].items():
        shown = lab.exec(node["host"], "virsh", "dumpxml", "--security-info", name).stdout
        shown += lab.exec(node["host"], "ps", "axww", "-o", "args").stdout
        assert f"guest={name}" in shown  # QEMU's command line is there
        assert [whose for whose, word in secrets.items() if word in shown] == []
        assert "PRIVATE KEY" not in shown


def test_no_secret_is_in_a_file_that_others_may_read(lab, growth, secrets):
    for machine in ("ctl", "hv1", "hv2"):
        found = files_with(lab, machine, secrets.values())
        assert {path: oct(mode) for paths in found.values() for path, mode in paths.items() if mode & 0o077} == {}
        assert "/etc/munge/munge.key" in found[secrets["munge"]]  # what is there is found
        private = {path for name in growth.names for path in found.get(secrets[name], {})}
        # The lab's hosts share a directory for their volumes; a node's disk has what the node has written.
        assert private <= {f"/srv/nodes/{name}.lab.{kind}" for name in growth.names for kind in ("minion.pem", "qcow2")}
        assert bool(private) == (machine != "ctl")


def test_the_map_that_was_written_has_no_secret(lab, growth, secrets):
    written = lab.exec("ctl", "cat", MAP).stdout
    assert json.loads(written) == growth.plan["map"]
    assert [whose for whose, word in secrets.items() if word in written] == []


def test_forged_hints_change_nothing(lab, growth):
    """They came before the true ones of the two nodes, which the engine has followed since."""
    assert f"salt/minion/{NOT_BOOTING}/start" in growth.events
    assert any(f'["{NOT_BOOTING}"]' in data for data in growth.events["saltmarsh/nudge"])  # passed on by the reactor
    assert must(lab, "history", NOT_BOOTING) == growth.history
    jobs = [data for tag, events in growth.events.items() if tag.endswith("/new") for data in events]
    assert jobs
    assert not [data for data in jobs if NOT_BOOTING in data and '"fun": "runner.elastic.nudge"' not in data]


def test_an_ordinary_users_job_runs_across_both_nodes_and_writes_over_nfs(lab, growth):
    script = "srun --nodes=2 --ntasks-per-node=1 sh -c 'hostname > /shared/across.$SLURM_PROCID'"
    options = ("--wait", "--nodes=2", "--chdir=/shared", "--output=/shared/across.out", f"--wrap={script}")
    lab.exec("ctl", "runuser", "-u", "alice", "--", "sbatch", *options, timeout=120)
    written = ("/shared/across.0", "/shared/across.1")
    assert lab.exec("ctl", "cat", *written).stdout.split() == growth.names
    assert lab.exec("ctl", "stat", "-c", "%U", *written).stdout.split() == ["alice", "alice"]
    lab.exec("ctl", "rm", *written, "/shared/across.out")


@pytest.mark.parametrize("role", ["controller", "host", "node"])
def test_a_second_highstate_changes_nothing(second_highstates, role):
    assert nothing_changed(second_highstates[role]) == {}


def test_status_tells_the_jobs_of_a_node(lab, growth, sleeper):
    busy = must(lab, "status", growth.names[0])[growth.names[0]]
    assert busy["jobs"] == [sleeper]
    assert busy["slurm"].startswith(("ALLOCATED", "MIXED"))


def test_shrink_gives_back_a_node_whose_job_does_not_end_in_time(lab, growth, sleeper):
    name = growth.names[0]
    assert_refused(elastic(lab, "shrink", name, "timeout=2"), 1, name, str(sleeper), "force=True")
    assert job(lab, sleeper)["job_state"] == ["RUNNING"]
    assert job(lab, sleeper)["restart_cnt"] == 0
    state, _, _ = slurm_node(lab, name)
    assert "DRAIN" not in state
    assert must(lab, "status", name)[name]["state"] == "ready"


def test_shrink_with_test_true_says_which_nodes_would_go_and_their_jobs(lab, growth, sleeper):
    busy, idle = growth.names
    assert must(lab, "shrink", "1", "test=True") == {"would shrink": {idle: {"state": "ready", "jobs": []}}}
    both = must(lab, "shrink", "2", "test=True")["would shrink"]
    assert both[busy] == {"state": "ready", "jobs": [sleeper]}
    assert list(both) == [idle, busy]


def test_shrink_by_number_takes_idle_nodes_first(lab, growth, shrunk, sleeper):
    answer, _ = shrunk
    assert answer == {"gone": [growth.names[1]]}
    assert job(lab, sleeper)["job_state"] == ["RUNNING"]


def test_nothing_is_left_of_a_node_that_was_shrunk(lab, growth, shrunk):
    assert remains(lab, growth.names[1]) == []
    assert remains(lab, growth.names[0]) != []


def test_slurm_has_a_node_that_was_shrunk_as_not_grown(lab, growth, shrunk):
    name = growth.names[1]
    assert slurm_node(lab, name) == (*ABSENT, growth.answer["nodes"][name]["address"])


def test_a_name_no_longer_resolves_a_second_after_it_was_freed(lab, growth, shrunk):
    _, unresolved = shrunk
    freed = at(lab, growth.names[1], "free")
    assert all(times[growth.names[1]] < freed + 1 for times in unresolved.values())


def test_the_engine_removes_what_a_killed_grow_has_left(lab, killed):
    assert remains(lab, killed) == []
    assert slurm_node(lab, killed)[:2] == ABSENT


def test_history_says_that_the_grow_died(lab, killed):
    destroying, free = must(lab, "history", killed)[-2:]
    assert (destroying["to"], free["to"]) == ("destroying", "free")
    assert f"its grow ({free['operation']}) died" in destroying["reason"]


@pytest.mark.usefixtures("without_engine")
def test_all_or_none_removes_what_was_made_when_one_can_not_be(lab, foreign_domain):
    other = "vn011"
    done = elastic(lab, "grow", f"{FOREIGN},{other}")
    assert_refused(done, 1, FOREIGN, "hv1")
    assert_free(lab, other)
    assert must(lab, "status", FOREIGN)[FOREIGN]["state"] == "free"
    assert lab.exec("hv1", "virsh", "domuuid", FOREIGN).stdout == foreign_domain


def test_a_grow_joins_its_nodes_itself_where_no_engine_runs(lab, killed, regrown):
    assert list(regrown["nodes"]) == [killed]
    assert slurm_node(lab, killed)[0] == "CLOUD+IDLE"


def test_min_is_content_with_fewer_and_frees_the_others(lab, regrown, foreign_domain):
    assert list(regrown["failed"]) == [FOREIGN]
    assert f"hv1 already has a domain {FOREIGN}" in regrown["failed"][FOREIGN]
    assert must(lab, "status", FOREIGN)[FOREIGN]["state"] == "free"
    assert lab.exec("hv1", "virsh", "domuuid", FOREIGN).stdout == foreign_domain


def test_a_node_whose_machine_has_died_can_be_shrunk(growth, emptied):
    assert emptied[0] == {"gone": [growth.names[1]]}


def test_a_forced_shrink_has_its_job_requeued(lab, growth, emptied, sleeper):
    assert emptied[1] == {"gone": [growth.names[0]]}
    requeued = job(lab, sleeper)
    assert (requeued["job_state"], requeued["restart_cnt"]) == (["PENDING"], 1)


def test_nothing_at_all_is_left_in_the_end(lab, growth, emptied):
    assert_free(lab, *growth.names)
    assert {slurm_node(lab, name)[:2] for name in growth.names} == {ABSENT}


def test_the_map_that_was_written_works_with_plain_salt_cloud(lab, growth, emptied):
    try:
        made = salt_cloud(lab, "-m", MAP)
        assert {name: node["address"] for name, node in made.items()} == growth.plan["nodes"]
    finally:
        lab.exec("ctl", "salt-cloud", "--assume-yes", "-d", *growth.names, timeout=180)
    assert [trace for name in growth.names for trace in traces(lab, name)] == []
