"""A pool with several providers in order of preference: which one is tried when, and that nobody mixes them up."""

import pytest
from salt.exceptions import SaltCloudExecutionFailure
from views import assert_untouched, reasons, states

from saltmarsh import reporting
from saltmarsh.errors import BadConfiguration, InvalidInput, NotEnoughFree, OperationFailed, Unreachable
from saltmarsh.growing import grow, plan
from saltmarsh.model import State
from saltmarsh.observing import observe
from saltmarsh.pools import parse_nodes
from saltmarsh.reporting import status
from saltmarsh.resuming import resume
from saltmarsh.shrinking import shrink
from saltmarsh.suspending import by_provider, suspend

FULL = "No valid host was found"


@pytest.fixture
def pillar(pillar):
    """The pool ``virtual`` has a second provider, and a limit that counts suspended nodes except for one."""
    pillar["elastic"]["pools"]["virtual"] |= {
        "fallback": ["virtual-reserve"],
        "limits": {"max_nodes": 2, "overcommit_suspended": 1},
    }
    return pillar


def hosts(controller):
    return {node.name: node.host for node in controller.ledger.nodes()}


def test_the_first_provider_is_taken_while_it_has_room(controller):
    grow(controller, 2, "virtual")
    assert hosts(controller) == {"vn001": "hv1", "vn002": "hv1"}


@pytest.mark.parametrize("kind", ["NoCapacity", "QuotaExceeded"])
def test_what_one_provider_has_no_room_for_is_made_at_the_next_and_the_reason_is_kept(controller, provider, kind):
    provider.fail(kind, "stub", FULL)
    answer = grow(controller, 2, "virtual")
    assert {name: node["host"] for name, node in answer["nodes"].items()} == {"vn001": "reserve", "vn002": "reserve"}
    assert (State.CREATING, FULL) in reasons(controller, "vn001")


def test_another_failure_is_not_tried_elsewhere(controller, provider):
    provider.fail("create", "vn001", "no such image")
    with pytest.raises(OperationFailed, match="vn001: no such image"):
        grow(controller, 1, "virtual")
    assert states(controller) == provider.machines() == {}


def test_when_no_provider_has_room_each_ones_reason_is_told(controller, provider):
    provider.fail("NoCapacity", "stub", FULL)
    provider.fail("QuotaExceeded", "reserve", "Quota exceeded for cores")
    with pytest.raises(OperationFailed, match=f"vn001: {FULL}; Quota exceeded for cores"):
        grow(controller, 1, "virtual")
    assert states(controller) == provider.machines() == {}


def test_a_provider_that_does_not_answer_is_passed_over_while_another_one_does(controller, provider, monkeypatch):
    ask = controller.cloud._ask

    def silent(name, function):
        if name.startswith("stub:"):
            raise Unreachable("provider stub: no route to host")
        return ask(name, function)

    monkeypatch.setattr(controller.cloud, "_ask", silent)
    grow(controller, 1, "virtual")
    assert hosts(controller) == {"vn001": "reserve"}


def test_a_provider_that_refuses_is_not_passed_over(controller, monkeypatch):
    def refuse():
        raise SaltCloudExecutionFailure("no such project") from BadConfiguration("no such project")

    monkeypatch.setattr(controller.cloud, "_function", lambda provider, name: refuse)

    with pytest.raises(BadConfiguration, match=r"^provider stub: no such project$"):
        grow(controller, 1, "virtual")
    assert_untouched(controller)


def test_a_provider_can_be_asked_for(controller):
    assert list(plan(controller, 1, "virtual", host="reserve")["map"]) == ["virtual-reserve"]
    grow(controller, 1, "virtual", host="reserve")
    assert hosts(controller) == {"vn001": "reserve"}
    with pytest.raises(InvalidInput, match=r"^host 'elsewhere' does not exist"):
        grow(controller, 1, "virtual", host="elsewhere")


def test_a_node_is_removed_where_it_is_and_nobody_else_must_answer(controller, provider):
    grow(controller, 1, "virtual", host="reserve")
    provider.fail("host", "hv1", "no route to host")
    shrink(controller, 1, "virtual")
    assert states(controller) == provider.machines() == {}


def test_reconcile_sees_the_machines_of_all_providers(controller):
    grow(controller, 1, "virtual", host="reserve")
    snapshot = observe(controller)
    assert snapshot.provider_of == {"osg": "stub", "virtual": "stub, reserve"}
    assert [machine.host for machine in snapshot.machines["vn001"]] == ["reserve"]


def test_reconcile_knows_of_which_provider_it_knows_nothing(controller, monkeypatch):
    grow(controller, 1, "virtual", host="reserve")
    ask = controller.cloud._ask

    def silent(name, function):
        if name.startswith("stub:"):
            raise Unreachable("provider stub: no route to host")
        return ask(name, function)

    monkeypatch.setattr(controller.cloud, "_ask", silent)
    snapshot = observe(controller)
    assert (snapshot.doubt("virtual", "reserve"), snapshot.doubt("virtual", "stub")) == (
        "",
        "provider stub: no route to host",
    )
    assert [machine.host for machine in snapshot.machines["vn001"]] == ["reserve"]


def test_nodes_of_two_providers_are_suspended_each_by_its_own(controller):
    grow(controller, parse_nodes("vn001"), "virtual")
    grow(controller, parse_nodes("vn002"), "virtual", host="reserve")
    assert [controller.profile_of(name) for name in ("vn001", "vn002")] == ["virtual", "virtual-reserve"]
    parts = by_provider(controller, controller.ledger.nodes())
    assert [[node.name for node in part] for part in parts] == [["vn001"], ["vn002"]]


# What a suspended node still takes


def put_to_sleep(controller, *names):
    suspend(controller, names, by="root", why="")


def test_suspended_nodes_count_towards_the_limit_as_far_as_their_provider_has_no_room_for_others(controller):
    grow(controller, 2, "virtual")
    put_to_sleep(controller, "vn001")
    assert reporting.pools(controller)["virtual"]["room"] == 1
    grow(controller, parse_nodes("vn003"), "virtual")
    put_to_sleep(controller, "vn002")
    with pytest.raises(NotEnoughFree, match=r"^pool virtual: limit of 2 nodes leaves room for 0, 1 asked for$"):
        grow(controller, parse_nodes("vn004"), "virtual")


def test_a_node_whose_room_another_one_has_is_not_resumed_until_that_is_gone(controller):
    grow(controller, 2, "virtual")
    put_to_sleep(controller, "vn001")
    grow(controller, parse_nodes("vn003"), "virtual")
    with pytest.raises(
        NotEnoughFree, match=r"^pool virtual: 3 nodes would be awake, its limit is 2; suspend or shrink"
    ):
        resume(controller, ["vn001"])
    shrink(controller, parse_nodes("vn003"), "virtual")
    resume(controller, ["vn001"])
    assert states(controller) == dict.fromkeys(["vn001", "vn002"], State.READY)


def test_status_says_where_a_suspended_node_is_still_counted(controller, vmstates):
    grow(controller, 1, "virtual")
    put_to_sleep(controller, "vn001")
    assert "capacity" not in status(controller)["vn001"]
    vmstates.gives_back = False
    assert status(controller)["vn001"]["capacity"] == reporting.TAKEN
