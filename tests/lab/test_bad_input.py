"""
What can't be done is one clear line and an exit status, and leaves nothing half-made.

The exit status is 2 where an argument or pillar is not acceptable, and 1 where the world does not play along.
"""

from contextlib import contextmanager

import pytest
from elastic import (
    assert_free,
    assert_refused,
    begin,
    elastic,
    have,
    must,
    remains,
    said,
    salt_call,
    signal_owner,
    site_pillar,
    wait_state,
    whole_ledger,
)
from saltcloud import wait_for

LIBVIRTD = ("libvirtd.service", "libvirtd-tls.socket", "libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket")
FIRST = "vn001"  # the name that a number takes first

# verb, arguments, exit status, and what the line says
ARGUMENTS = [
    ("grow", [], 2, "missing a required argument: 'what'"),
    ("grow", ["0"], 2, "expected a number of nodes above 0"),
    ("grow", ["what=-1"], 2, "got -1"),
    ("grow", ["1.5"], 2, "got 1.5"),
    ("grow", ["1e3"], 2, "got '1e3'"),
    ("grow", ["True"], 2, "got True"),
    ("grow", ["two"], 2, "node 'two' belongs to no pool; pools: virtual (vn[001-016])"),
    ("grow", ["vn[001"], 2, "'vn[001' is not a hostlist"),
    ("grow", ["vn[016-017]"], 2, "node 'vn017' belongs to no pool"),
    ("grow", ["hv1"], 2, "node 'hv1' belongs to no pool"),
    ("grow", ["17"], 1, "pool virtual: 16 of 16 names free, 17 asked for"),
    ("grow", ["1", "pool=nosuch"], 2, "pool 'nosuch' does not exist; pools: virtual"),
    ("grow", ["1", "host=hv9"], 2, "host 'hv9' does not exist; hosts: hv1, hv2"),
    ("grow", ["2", "min=3"], 2, "min=3: expected a number from 1 to 2"),
    ("grow", ["2", "min=0"], 2, "min=0: expected a number from 1 to 2"),
    ("grow", ["2", "min=one"], 2, "min=one: expected a number from 1 to 2"),
    ("grow", ["1", "timeout=0"], 2, "timeout=0: expected a number of seconds above 0"),
    ("grow", ["1", "timeout=soon"], 2, "timeout='soon': expected a number of seconds above 0"),
    ("grow", ["1", "test=maybe"], 2, "test='maybe': expected True or False"),
    ("grow", ["1", "hosts=hv1"], 2, "unexpected keyword argument 'hosts'"),
    ("shrink", ["0"], 2, "expected a number of nodes above 0"),
    ("shrink", ["1"], 2, "pool virtual: 0 nodes can be shrunk, 1 asked for"),
    ("shrink", ["vn009"], 2, "pool virtual: vn009: not there, nothing to shrink"),
    ("shrink", ["hv1"], 2, "node 'hv1' belongs to no pool"),
    ("shrink", ["1", "pool=nosuch"], 2, "pool 'nosuch' does not exist"),
    ("shrink", ["1", "force=maybe"], 2, "force='maybe': expected True or False"),
    ("shrink", ["1", "timeout=-1"], 2, "timeout=-1: expected a number of seconds above 0"),
    ("status", ["hv1"], 2, "node 'hv1' belongs to no pool"),
    ("history", ["vn[001-002]"], 2, "expected the name of one node"),
    ("history", ["nosuch"], 2, "node 'nosuch' belongs to no pool"),
]

ODD_POOLS = {
    "imageless": {"nodes": "im[001-002]", "addresses": "10.77.0.201-202", "image": "nosuch.qcow2"},
    "unprofiled": {"nodes": "up001", "addresses": "10.77.0.203", "profile": "nosuch"},
    "mute": {"nodes": "mu[001-003]", "addresses": "10.77.0.204-206", "image": "blank.img"},
    "huge": {"nodes": "hu001", "addresses": "10.77.0.207", "memory": 10**6},
}
LIKE_VIRTUAL = {"profile": "virtual", "image": "node.qcow2", "cpus": 1, "memory": 256, "partition": "virtual"}
ODD_ARGUMENTS = [
    ("grow", ["1"], 2, "which pool? name one with pool=; pools: virtual, imageless, unprofiled, mute, huge"),
    ("grow", ["mu001", "pool=virtual"], 2, "mu001 is not of pool virtual, whose nodes are vn[001-016]"),
    ("shrink", ["vn001,mu001"], 2, "are of several pools (mute, virtual)"),
    ("shrink", ["mu001", "pool=virtual"], 2, "pool virtual has no node mu001"),
    ("grow", ["1", "pool=imageless"], 2, "pool imageless: image nosuch.qcow2 is not there; images of lab: "),
    ("grow", ["1", "pool=unprofiled"], 2, "salt-cloud has no profile 'nosuch' (cloud.profiles.d); profiles: "),
]


@pytest.fixture(scope="module", autouse=True)
def no_nodes(lab):
    have(lab)


@pytest.fixture
def unchanged(lab):
    """The ledger is the same after the test."""
    before = whole_ledger(lab)
    yield
    assert whole_ledger(lab) == before


@pytest.fixture(scope="module")
def odd_pools(lab, checkout):
    """Pools that nothing good can come of, in pillar and in Slurm's configuration."""
    blank = checkout / ".lab/images/blank.img"
    with blank.open("wb") as file:
        file.truncate(1024**2)
    pools = {name: LIKE_VIRTUAL | odd for name, odd in ODD_POOLS.items()}
    with site_pillar(lab, elastic={"pools": pools}):
        salt_call(lab, "ctl", "slurm.push_config")
        yield
    salt_call(lab, "ctl", "slurm.push_config")
    blank.unlink()


@pytest.fixture(scope="module")
def race(lab, odd_pools):
    """What two grows of the same names said that began at once: the loser, the winner, and two that came later."""
    contenders = [begin(lab, "grow", "mu[001-002]", "pool=mute", "timeout=20") for _ in range(2)]
    wait_for(lambda: any(each.poll() is not None for each in contenders), 60, "one gives up")
    contenders.sort(key=lambda each: each.poll() is None)
    late = [elastic(lab, "grow", what, "pool=mute") for what in ("2", "mu001")]
    return [said(contenders[0]), said(contenders[1], timeout=300), *late]


def ids(table):
    """What an administrator would type."""
    return [" ".join([verb, *arguments]) for verb, arguments, *_ in table]


@contextmanager
def stopped(lab, machine, *units):
    """Units are stopped until the end of the block."""
    lab.exec(machine, "systemctl", "stop", *units)
    try:
        yield
    finally:
        lab.exec(machine, "systemctl", "start", *reversed(units))


def interrupted(lab, signal):
    """Grow a node and interrupt that once its machine boots: what status told of it then, and what the grow said."""
    grow = begin(lab, "grow", "1", "pool=virtual")
    wait_state(lab, FIRST, "booting", 60)
    booting = must(lab, "status", FIRST)[FIRST]
    signal_owner(lab, FIRST, signal)
    return booting, said(grow)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("verb", "arguments", "code", "message"), ARGUMENTS, ids=ids(ARGUMENTS))
def test_an_argument_that_is_not_acceptable_is_named(lab, verb, arguments, code, message):
    assert_refused(elastic(lab, verb, *arguments), code, message)


@pytest.mark.usefixtures("unchanged")
def test_a_slurmctld_that_is_down_is_told_before_anything_is_done(lab):
    with stopped(lab, "ctl", "slurmctld"):
        assert_refused(elastic(lab, "grow", "1"), 1, "slurmctld on ctl does not answer")
        free = must(lab, "status", "vn001")["vn001"]
    assert (free["state"], free["jobs"]) == ("free", "unknown")
    assert "does not answer" in free["slurm"]
    wait_for(lambda: lab.exec("ctl", "scontrol", "ping", check=False).returncode == 0, 60, "slurmctld answers")


def test_a_map_that_can_not_be_written_is_named_and_nothing_is_made(lab):
    assert_refused(elastic(lab, "grow", "vn001", "map_out=/nosuch/grown.map"), 2, "map_out=/nosuch/grown.map")
    assert must(lab, "status") == {}
    assert remains(lab, "vn001") == []


@pytest.mark.usefixtures("unchanged")
def test_a_host_that_is_down_is_told_before_anything_is_done(lab):
    with stopped(lab, "hv2", *LIBVIRTD):
        assert_refused(elastic(lab, "grow", "1", "host=hv2"), 1, "host hv2 does not answer", "hv1")


def test_a_host_that_is_down_is_left_out_where_none_is_named(lab):
    with stopped(lab, "hv2", *LIBVIRTD):
        booting, _ = interrupted(lab, "TERM")
    assert booting["host"] == "hv1"


@pytest.mark.parametrize("signal", ["INT", "TERM"])
def test_an_interrupted_grow_is_told_as_such_and_nothing_is_left(lab, signal):
    booting, done = interrupted(lab, signal)
    assert booting["state"] == "booting"
    assert_refused(done, 1, "pool virtual: interrupted; everything made was removed")
    assert_free(lab, FIRST)
    destroying, free = must(lab, "history", FIRST)[-2:]
    assert (destroying["to"], destroying["reason"], free["to"]) == ("destroying", "interrupted", "free")


def test_a_full_disk_is_told_as_such_and_nothing_is_left(lab):
    lab.exec("hv2", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/srv/nodes")
    try:
        done = elastic(lab, "grow", "vn001", "host=hv2")
    finally:
        lab.exec("hv2", "umount", "/srv/nodes")
    assert_refused(done, 1, "vn001: hv2: storage pool nodes is full", "everything made was removed")
    assert must(lab, "status") == {}
    assert remains(lab, "vn001") == []


@pytest.mark.usefixtures("unchanged")
def test_a_mistake_in_pillar_is_told_with_its_key(lab):
    pool = LIKE_VIRTUAL | {"nodes": "ha001", "addresses": "10.77.0.11"}
    with site_pillar(lab, elastic={"pools": {"clash": pool}}):
        assert_refused(elastic(lab, "pools"), 2, "elastic:pools:clash:addresses: 10.77.0.11 belongs to host hv1")


@pytest.mark.usefixtures("odd_pools", "unchanged")
@pytest.mark.parametrize(("verb", "arguments", "code", "message"), ODD_ARGUMENTS, ids=ids(ODD_ARGUMENTS))
def test_what_does_not_fit_the_pools_is_named(lab, verb, arguments, code, message):
    assert_refused(elastic(lab, verb, *arguments), code, message)


@pytest.mark.usefixtures("odd_pools")
def test_more_memory_than_a_host_has_is_told_and_nothing_is_left(lab):
    assert_refused(elastic(lab, "grow", "1", "pool=huge"), 1, "no room for hu001 (1000000 MiB, 1 CPUs): hv1 has ")
    assert must(lab, "status") == {}
    assert remains(lab, "hu001") == []


def test_of_two_grows_of_the_same_names_one_wins(race):
    loser, winner, _, _ = race
    assert_refused(loser, 1, "pool mute: not free: mu[001-002]")
    assert "not free" not in winner.answer["error"]


def test_a_grow_of_more_than_another_one_has_left_takes_nothing(lab, race):
    _, _, count, name = race
    assert_refused(count, 1, "pool mute: 1 of 3 names free, 2 asked for")
    assert_refused(name, 1, "pool mute: not free: mu001 ")
    assert must(lab, "history", "mu003") == []


def test_machines_whose_minions_never_start_are_destroyed_and_the_reason_is_kept(lab, race):
    _, winner, _, _ = race
    assert_refused(winner, 1, "0 of 2 nodes became ready", "not ready within 20 s", "everything made was removed")
    assert must(lab, "status") == {}
    for name in ("mu001", "mu002"):
        assert remains(lab, name) == []
        states = [row["to"] for row in must(lab, "history", name)]
        assert states == ["claimed", "creating", "booting", "destroying", "free"]
        assert "not ready within 20 s" in must(lab, "history", name)[-2]["reason"]
