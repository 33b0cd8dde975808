"""grow: from free names to nodes that Slurm uses, all of them or none, and nothing half-made."""

import json
import threading

import neighbours
import pytest
from views import assert_undone, assert_untouched, error_of, reasons, states, traces

from saltmarsh import joining, recovery
from saltmarsh.errors import (
    Conflict,
    InvalidInput,
    NotEnoughFree,
    OperationFailed,
    ProviderError,
    SaltmarshError,
    SlurmError,
    Unreachable,
)
from saltmarsh.growing import grow, plan
from saltmarsh.model import State
from saltmarsh.pools import parse_nodes

PATIENCE = 2  # seconds: what a test that waits for a timeout waits, and within which the other nodes must be ready


# The way of a node


def test_grow_returns_nodes_that_slurm_uses_with_their_addresses_and_seconds(controller, provider, slurm):
    answer = grow(controller, 2, "virtual")
    assert {name: (node["address"], node["host"]) for name, node in answer["nodes"].items()} == {
        "vn001": ("10.77.0.101", "hv1"),
        "vn002": ("10.77.0.102", "hv1"),
    }
    assert answer["failed"] == {}
    for node in answer["nodes"].values():
        assert set(node["seconds"]) == {"claim", "create", "boot", "states", "register", "total"}
    assert states(controller) == dict.fromkeys(["vn001", "vn002"], State.READY)
    assert set(provider.machines()) == controller.dns.names() == {"vn001", "vn002"}
    assert all(map(slurm.usable, ["vn001", "vn002"]))
    assert [operation.outcome for operation in controller.ledger.operations(unfinished=False)] == ["done"]


def test_history_tells_the_way_of_a_node(controller):
    grow(controller, 1, "virtual")
    assert reasons(controller, "vn001") == [
        (State.CLAIMED, ""),
        (State.CREATING, ""),
        (State.BOOTING, ""),
        (State.BOOTING, joining.ANSWERS),
        (State.BOOTING, joining.CONFIGURED),
        (State.READY, "Slurm has it"),
    ]


def test_names_are_in_dns_and_expected_by_slurm_before_a_machine_is_made(controller, provider, slurm):
    seen = {}
    slurm.before["expect"] = lambda: seen.update(dns=controller.dns.names(), machines=provider.machines())
    grow(controller, parse_nodes("vn[003-004]"), "virtual")
    assert seen == {"dns": {"vn003", "vn004"}, "machines": {}}


def test_a_host_that_is_asked_for_gets_the_machine(controller, provider):
    grow(controller, 1, "virtual", host="hv2")
    assert provider.machines()["vn001"]["host"] == "hv2"
    assert controller.ledger.nodes()[0].host == "hv2"


def test_the_map_can_be_written_out_and_has_no_secrets(controller, tmp_path):
    grow(controller, 2, "virtual", map_out=tmp_path / "grown.map")
    assert json.loads((tmp_path / "grown.map").read_text()) == {
        "virtual": [
            {"vn001": {"address": "10.77.0.101", "image": "node.qcow2", "cpus": 1, "memory": 256}},
            {"vn002": {"address": "10.77.0.102", "image": "node.qcow2", "cpus": 1, "memory": 256}},
        ]
    }


def test_progress_is_told_in_hostlists(controller):
    said = []
    grow(controller, 12, "virtual", say=said.append)
    assert said[0] == "vn[001-012]: claimed"
    assert said[-1].endswith(": ready: Slurm has it")
    assert all(" " not in line.partition(": ")[0] for line in said)


# All or none

TROUBLES = {
    "a machine can't be made": (
        lambda provider, minions: provider.fail("create", "osg2", "hv1: storage pool nodes is full"),
        "hv1: storage pool nodes is full",
    ),
    "a machine can't be made, and is there nevertheless": (
        lambda provider, minions: provider.fail("created", "osg2", "hv1: connection lost"),
        "hv1: connection lost",
    ),
    "a minion never answers": (
        lambda provider, minions: minions.silent.add("osg2"),
        "not ready within 2 s: its minion has not answered",
    ),
    "a minion does not come back from its highstate": (
        lambda provider, minions: minions.hanging.add("osg2"),
        "its minion did not answer, while it applied its states, for 300 s",
    ),
    "a highstate fails": (
        lambda provider, minions: minions.answers.update(
            osg2={"a": {"__id__": "munge", "result": False, "comment": "no key"}}
        ),
        "highstate failed: munge: no key",
    ),
    "a slurmd does not register": (
        lambda provider, minions: minions.without_slurmd.add("osg2"),
        "slurmd did not register in 0.2 s: Slurm has it DOWN+CLOUD+POWERED_DOWN",
    ),
}


@pytest.fixture(params=TROUBLES.values(), ids=TROUBLES)
def why(request, provider, minions):
    """Something happens to osg2; the reason that must be given."""
    make, reason = request.param
    make(provider, minions)
    return reason


@pytest.fixture
def patience(why):
    """Seconds: short only where the timeout is what ends it."""
    return PATIENCE if why.startswith("not ready within") else 60


def test_if_one_does_not_become_ready_nothing_is_left(controller, why, patience):
    with pytest.raises(OperationFailed) as raised:
        grow(controller, 3, "osg", timeout=patience)
    message = error_of(raised)
    assert message.startswith("pool osg: ")
    assert message.endswith(f" of 3 nodes became ready, 3 needed: osg2: {why}; everything made was removed")
    assert_undone(controller)
    assert (State.DESTROYING, why) in reasons(controller, "osg2")
    assert reasons(controller, "osg2")[-1][0] is State.FREE
    assert (State.DESTROYING, "others failed") in reasons(controller, "osg1")


def test_with_min_the_others_stay(controller, provider, why, patience):
    answer = grow(controller, 3, "osg", minimum=2, timeout=patience)
    assert set(answer["nodes"]) == {"osg1", "osg3"}
    assert answer["failed"] == {"osg2": why}
    assert states(controller) == dict.fromkeys(["osg1", "osg3"], State.READY)
    assert controller.ledger.operations() == ()
    assert traces(controller) == {"osg1", "osg3"}


def test_min_that_is_not_reached_leaves_nothing(controller, provider, minions):
    provider.fail("create", "osg1", "no room")
    minions.silent.add("osg2")
    with pytest.raises(OperationFailed, match=r"^pool osg: 1 of 3 nodes .*: osg1: no room; osg2: not"):
        grow(controller, 3, "osg", minimum=2, timeout=PATIENCE)
    assert_undone(controller)


def test_min_takes_what_is_free(controller):
    grow(controller, 3, "osg")
    assert set(grow(controller, 3, "osg", minimum=1)["nodes"]) == {"osg4"}


def test_nobody_waits_for_nodes_that_can_not_be_enough(controller, provider, minions):
    provider.fail("create", "osg2", "no room")
    with pytest.raises(OperationFailed, match=r"osg2: no room; everything made was removed$"):
        grow(controller, 3, "osg")
    assert minions.calls == []


def test_the_same_reason_is_told_once_for_all_nodes(controller, provider):
    for name in ("osg1", "osg2", "osg3"):
        provider.fail("create", name, f"no room for {name} (2048 MiB)")
    with pytest.raises(OperationFailed, match=r"needed: osg\[1-3\]: no room for osg1 \(2048 MiB\); everything made"):
        grow(controller, 3, "osg")


def test_of_many_reasons_the_first_are_told(controller, provider):
    for name in ("osg1", "osg2", "osg3", "osg4"):
        provider.fail("create", name, f"reason {ord(name[-1])}")
    with pytest.raises(OperationFailed) as raised:
        grow(controller, 4, "osg")
    assert error_of(raised).count("reason ") == 3
    assert "; 1 more reasons; " in error_of(raised)


# What can't be proven gone, what is somebody else's, and jobs


def test_a_machine_that_is_not_proven_gone_stays_failed_and_its_name_is_not_freed(controller, provider):
    provider.fail("created", "osg2", "hv1: connection lost")
    provider.fail("destroy", "osg2", "hv1 can't be reached")
    with pytest.raises(OperationFailed) as raised:
        grow(controller, 3, "osg")
    assert error_of(raised).endswith("; osg2: not proven gone: hv1 can't be reached")
    (node,) = controller.ledger.nodes()
    assert (node.name, node.state, node.reason) == ("osg2", State.FAILED, "not proven gone: hv1 can't be reached")
    assert node.operation is None
    assert set(provider.machines()) == {"osg2"}
    assert set(grow(controller, 3, "osg")["nodes"]) == {"osg1", "osg3", "osg4"}


def test_a_node_that_slurm_does_not_give_back_stays_failed_and_the_others_are_freed(controller, minions, slurm):
    minions.without_slurmd.add("osg1")
    slurm.kept.add("osg3")
    with pytest.raises(OperationFailed, match="; osg3: not proven gone: Slurm did not give nodes back within 120 s"):
        grow(controller, 3, "osg")
    assert states(controller) == {"osg3": State.FAILED}


def test_a_name_whose_key_is_still_accepted_is_not_freed(controller, provider, minions, slurm):
    minions.silent.add("osg1")
    slurm.before["release"] = (provider.keys / "osg1").touch
    with pytest.raises(OperationFailed, match=r"; osg1: not proven gone: its minion key is still accepted$"):
        grow(controller, 1, "osg", timeout=PATIENCE)
    assert states(controller) == {"osg1": State.FAILED}


def test_a_machine_that_somebody_else_made_is_not_touched(controller, provider):
    provider.add("osg2")
    with pytest.raises(ProviderError, match=r"^osg2: exists already at stub, though the ledger"):
        grow(controller, parse_nodes("osg[1-3]"), "osg")
    assert set(provider.machines()) == {"osg2"}
    assert states(controller) == {}
    assert set(grow(controller, parse_nodes("osg[1,3]"), "osg")["nodes"]) == {"osg1", "osg3"}


IN_THE_WAY = {
    "a machine is left over": (lambda provider: provider.add("osg1"), "a machine on hv1"),
    "volumes are left over": (lambda provider: (provider.volumes / "osg1").touch(), "volumes of a machine"),
    "somebody else has a machine of this name": (
        lambda provider: (provider.others / "osg1").touch(), "a machine that is not this cluster's",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("put", "what"), IN_THE_WAY.values(), ids=IN_THE_WAY)
def test_a_number_of_nodes_takes_the_next_names_where_something_is_in_the_way_of_one(controller, provider, put, what):
    put(provider)
    said = []
    assert plan(controller, 2, "osg")["passed over"] == {"osg1": what}
    assert set(grow(controller, 2, "osg", say=said.append)["nodes"]) == {"osg2", "osg3"}
    assert said[0] == f"passed over: osg1: {what}, of which the ledger does not know"
    with pytest.raises(NotEnoughFree, match=rf"^pool osg: 1 of 4 names free, 2 asked for; not counted: osg1: {what}$"):
        grow(controller, 2, "osg")
    assert set(grow(controller, 2, "osg", minimum=1)["nodes"]) == {"osg4"}


def test_a_node_that_slurm_uses_although_the_ledger_has_it_free_keeps_its_job(controller, slurm):
    slurm.register("osg2")
    slurm.start_job(17, "osg2")
    with pytest.raises(SlurmError, match=r"^Slurm has osg2 IDLE\+CLOUD: release it first$"):
        grow(controller, 3, "osg")
    assert slurm.killed == []
    assert slurm.usable("osg2")
    assert states(controller) == {}


def test_a_ready_node_that_has_got_a_job_is_not_undone(controller, minions, slurm):
    minions.without_slurmd.add("osg2")

    def say(line):
        if line == "osg1: ready: Slurm has it":
            slurm.start_job(17, "osg1")

    with pytest.raises(OperationFailed, match=r"^pool osg: 1 of 2 nodes .* DOWN.*; osg1: runs 17 and stays$"):
        grow(controller, 2, "osg", say=say)
    assert slurm.killed == []
    assert slurm.usable("osg1")
    assert states(controller) == {"osg1": State.READY}
    assert controller.ledger.operations() == ()


# Interruptions, and Slurm going away

MOMENTS = {
    "claimed": "osg[1-3]: claimed",
    "made": "created on hv1",
    "configured": joining.CONFIGURED,
    "some ready": "ready: Slurm has it",
}


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_an_interruption_undoes_everything_and_is_one_line(controller, minions, moment, interruption):
    minions.without_slurmd.add("osg3")

    def say(line):
        if moment in line and controller.ledger.operations():
            nonlocal interruption
            thrown, interruption = interruption, None
            if thrown:
                raise thrown

    with pytest.raises(OperationFailed, match=r"^pool osg: interrupted; everything made was removed$"):
        grow(controller, 3, "osg", say=say)
    assert interruption is None
    assert_undone(controller)
    assert (State.DESTROYING, "interrupted") in reasons(controller, "osg1") or moment == MOMENTS["claimed"]


def test_a_second_interruption_leaves_the_rest_to_whoever_comes_next(controller, provider, slurm):
    def say(line):
        if "created" in line or "removing" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grow(controller, 2, "osg", say=say)
    (operation,) = controller.ledger.operations()
    controller.ledger.abandon(operation)  # as the end of the process does
    recovery.recover_abandoned(controller)
    assert_undone(controller)


@pytest.mark.parametrize("step", ["ping", "expect", "nodes", "drain", "jobs", "release"])
def test_when_slurm_goes_away_nothing_is_lost_and_all_is_undone_once_it_is_back(
    step, controller, provider, minions, slurm
):
    minions.without_slurmd.add("osg2")
    slurm.before[step] = slurm.go_down
    with pytest.raises(SaltmarshError) as raised:
        grow(controller, 3, "osg", timeout=1)
    assert "slurmctld on ctl does not answer" in error_of(raised)
    assert provider.machines().keys() <= states(controller).keys()
    slurm.before.clear()
    slurm.reachable = True
    recovery.recover_abandoned(controller)
    assert controller.ledger.operations() == ()
    assert all(state in (State.READY, State.FAILED) for state in states(controller).values())
    assert provider.machines().keys() == {name for name, state in states(controller).items() if state is State.READY}


def test_slurm_that_is_away_while_nodes_register_is_waited_for(controller, slurm, monkeypatch):
    absences = iter([True, True, False])

    def come_and_go():
        slurm.reachable = not next(absences, False)

    slurm.before["nodes"] = come_and_go
    slurm.before["expect"] = lambda: None
    assert set(grow(controller, 2, "osg")["nodes"]) == {"osg1", "osg2"}


# Several at once


def in_thread(function, *args, **kwargs):
    """Run a function in a thread; ``outcome`` has what it returned or raised when ``thread`` has ended."""
    outcome = []

    def run():
        try:
            outcome.append(function(*args, **kwargs))
        except SaltmarshError as err:
            outcome.append(err)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def test_two_grows_at_once_share_the_pool(controller):
    pairs = [in_thread(grow, controller, 2, "osg") for _ in range(2)]
    for thread, _ in pairs:
        thread.join()
    grown = [set(outcome[0]["nodes"]) for _, outcome in pairs]
    assert grown[0].isdisjoint(grown[1])
    assert states(controller) == dict.fromkeys(["osg1", "osg2", "osg3", "osg4"], State.READY)


def test_of_two_grows_that_want_the_same_one_gets_it(controller):
    pairs = [in_thread(grow, controller, parse_nodes("osg[1-3]"), "osg") for _ in range(2)]
    for thread, _ in pairs:
        thread.join()
    outcomes = sorted((outcome[0] for _, outcome in pairs), key=lambda each: isinstance(each, Conflict))
    assert set(outcomes[0]["nodes"]) == {"osg1", "osg2", "osg3"}
    assert isinstance(outcomes[1], Conflict)
    assert states(controller) == dict.fromkeys(["osg1", "osg2", "osg3"], State.READY)


def test_who_waits_for_another_process_to_join_its_nodes_joins_them_when_that_one_ends(controller, minions):
    with joining.joiner(controller):
        thread, outcome = in_thread(grow, controller, 1, "osg")
        while states(controller) != {"osg1": State.BOOTING}:
            thread.join(0.01)
        assert minions.calls == []
    thread.join()
    assert set(outcome[0]["nodes"]) == {"osg1"}


# Bad input

REFUSED = {
    "a pool that does not exist": ((1, "gpu"), {}, InvalidInput, "^pool 'gpu' does not exist; pools: osg, virtual$"),
    "no pool, of several": ((1,), {}, InvalidInput, "^which pool"),
    "no nodes": ((0, "osg"), {}, InvalidInput, "can't be claimed$"),
    "more than the pool has": ((5, "osg"), {}, NotEnoughFree, "^pool osg: 4 of 4 names free, 5 asked for$"),
    "more than the pool's limit": ((13, "virtual"), {}, NotEnoughFree, "^pool virtual: limit of 12 nodes"),
    "a name of another pool": (
        (parse_nodes("vn001,osg1"), "osg"),
        {},
        InvalidInput,
        r"^vn001 is not of pool osg, whose nodes are osg\[1-4\]$",
    ),
    "min=0": ((2, "osg"), {"minimum": 0}, InvalidInput, "^min=0: expected a number from 1 to 2$"),
    "min above the count": ((2, "osg"), {"minimum": 3}, InvalidInput, "^min=3: expected a number from 1 to 2$"),
    "min=True": ((2, "osg"), {"minimum": True}, InvalidInput, "^min=True: expected"),
    "min as text": ((2, "osg"), {"minimum": "1"}, InvalidInput, "^min=1: expected"),
    "a host that does not exist": (
        (2, "osg"),
        {"host": "hv3"},
        InvalidInput,
        "^host 'hv3' does not exist; hosts: hv1, hv2$",
    ),
}


@pytest.mark.parametrize("function", [grow, plan])
@pytest.mark.parametrize(("args", "kwargs", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_can_not_be_is_refused_before_anything_is_done(function, args, kwargs, error, message, controller, slurm):
    with pytest.raises(error, match=message) as raised:
        function(controller, *args, **kwargs)
    error_of(raised)
    assert slurm.calls == []
    assert_untouched(controller)


def lose_profile(controller, provider):
    del controller.cloud._client.opts["profiles"]["osg"]


def lose_image(controller, provider):
    controller.cloud._client.opts["providers"]["stub"]["stub"]["images"] = ["other.qcow2"]


def lose_host(controller, provider):
    provider.fail("host", "hv2", "no route to host")


def lose_list(controller, provider):
    provider.fail("list", "all", "hv1 can't be reached")


def lose_slurm(controller, provider):
    controller.slurm.reachable = False


ABSENT = {
    "profile": (
        lose_profile,
        InvalidInput,
        r"^salt-cloud has no profile 'osg' \(cloud.profiles.d\); profiles: virtual$",
    ),
    "image": (
        lose_image,
        InvalidInput,
        "^pool osg: image node.qcow2 is not there; images of stub: other.qcow2$",
    ),
    "host": (lose_host, Unreachable, "^host hv2 does not answer; hosts of stub that do: hv1$"),
    "list of machines": (lose_list, Unreachable, "^provider stub: hv1 can't be reached$"),
    "slurmctld": (lose_slurm, Unreachable, "^slurmctld on ctl does not answer$"),
}


@pytest.mark.parametrize("function", [grow, plan])
@pytest.mark.parametrize(("lose", "error", "message"), ABSENT.values(), ids=ABSENT)
def test_what_is_missing_is_told_in_one_line_and_nothing_is_left(function, lose, error, message, controller, provider):
    lose(controller, provider)
    with pytest.raises(error, match=message) as raised:
        function(controller, 2, "osg", host="hv2")
    error_of(raised)
    controller.slurm.reachable = True
    assert_undone(controller)


def test_a_map_that_can_not_be_written_is_told_in_one_line_and_nothing_is_left(controller, tmp_path):
    with pytest.raises(InvalidInput, match=r"^map_out=/.*/nowhere/x.map: No such file or directory$"):
        grow(controller, 2, "osg", map_out=tmp_path / "nowhere/x.map")
    assert_undone(controller)


# Only saying what would be done


def test_a_plan_is_what_grow_then_does_and_changes_nothing(controller, provider, tmp_path):
    said = plan(controller, 2, "osg", host="hv2")
    assert_untouched(controller)
    grown = grow(controller, 2, "osg", host="hv2", map_out=tmp_path / "map")
    assert said["nodes"] == {name: node["address"] for name, node in grown["nodes"].items()}
    assert said["map"] == json.loads((tmp_path / "map").read_text())


def test_a_plan_says_that_a_machine_exists(controller, provider):
    provider.add("osg1")
    with pytest.raises(ProviderError, match=r"^osg1: exists already"):
        plan(controller, parse_nodes("osg1"), "osg")


def test_growing_waits_as_long_as_the_pool_says(pillar, tmp_path):
    pillar["elastic"]["pools"]["virtual"]["limits"]["boot_timeout"] = 1
    controller = neighbours.controller(pillar, tmp_path)
    controller.minions.silent.add("vn001")
    with pytest.raises(OperationFailed, match="vn001: not ready within 1 s: its minion has not answered"):
        grow(controller, 1, "virtual")
    controller.ledger.close()
