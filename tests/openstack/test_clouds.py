"""The driver and the verbs on two real OpenStack clouds, whose computes are Nova's fakes."""

import json

import pytest

from saltmarsh.errors import OperationFailed
from saltmarsh.growing import grow
from saltmarsh.model import State
from saltmarsh.observing import observe
from saltmarsh.pools import parse_nodes
from saltmarsh.shrinking import shrink

FULL = "No valid host was found"


def hosts(controller):
    return {node.name: (node.state, node.host) for node in controller.ledger.nodes()}


def test_plain_salt_cloud_does_all_that_a_driver_must(empty, salt_cloud, tmp_path):
    nodes = {"virtual-engage1": ["cn001", "cn002"], "virtual-kaizen": ["cn003"]}
    rendered = {
        profile: [{name: {"address": f"10.77.0.{160 + int(name[2:])}"}} for name in names]
        for profile, names in nodes.items()
    }
    (tmp_path / "example.map").write_text(json.dumps(rendered))
    made = salt_cloud("-m", str(tmp_path / "example.map"))
    assert {name: (each["host"], each["state"], each["address"]) for name, each in made.items()} == {
        "cn001": ("engage1", "running", "10.77.0.161"),
        "cn002": ("engage1", "running", "10.77.0.162"),
        "cn003": ("kaizen", "running", "10.77.0.163"),
    }
    [addresses] = empty["engage1"].servers()["cn001"].addresses.values()
    assert [each["addr"] for each in addresses] == ["10.77.0.161"]
    assert {path.name for path in (tmp_path / "pki/minions").iterdir()} == set(made)

    listed = salt_cloud("-Q")
    assert {on: set(listed[on]["openstack"]) for on in empty} == {"engage1": {"cn001", "cn002"}, "kaizen": {"cn003"}}
    assert salt_cloud("-a", "show_instance", "cn003")["kaizen"]["openstack"]["cn003"] == made["cn003"]
    for action, state in {"suspend": "suspended", "resume": "running", "stop": "stopped", "start": "running"}.items():
        salt_cloud("-a", action, "cn001")
        assert salt_cloud("-F")["engage1"]["openstack"]["cn001"]["state"] == state
    assert salt_cloud("--list-images", "kaizen")["kaizen"]["openstack"]["node"]["status"] == "active"
    assert salt_cloud("--list-sizes", "kaizen")["kaizen"]["openstack"]["m1.ci"]["memory"] == 512
    assert salt_cloud("--list-locations", "kaizen")["kaizen"]["openstack"]["nova"] == {"available": True}

    salt_cloud("-d", *made)
    assert {cloud.left() for cloud in empty.values()} == {(0, 0)}
    assert list((tmp_path / "pki/minions").iterdir()) == []


def test_nodes_grow_in_the_preferred_cloud_and_shrink_without_a_trace(empty, controller):
    grow(controller, 4, "cloud", timeout=120)
    assert hosts(controller) == {f"cn00{number}": (State.READY, "engage1") for number in range(1, 5)}
    assert (empty["engage1"].left(), empty["kaizen"].left()) == ((4, 4), (0, 0))
    assert {machine.host for seen in observe(controller).machines.values() for machine in seen} == {"engage1"}
    shrink(controller, 4, "cloud")
    assert hosts(controller) == {}


def test_a_cloud_without_a_valid_host_hands_over_to_the_next(empty, controller):
    empty["engage1"].close(True)
    grow(controller, 2, "cloud", timeout=120)
    assert set(hosts(controller).values()) == {(State.READY, "kaizen")}
    assert empty["engage1"].left() == (0, 0)
    assert any(FULL in row.reason for row in controller.ledger.history("cn001"))
    shrink(controller, 2, "cloud")


def test_a_cloud_without_quota_hands_over_what_does_not_fit(empty, controller):
    empty["engage1"].allow(1)
    grow(controller, 3, "cloud", timeout=120)
    assert sorted(host for _, host in hosts(controller).values()) == ["engage1", "kaizen", "kaizen"]
    shrink(controller, 3, "cloud")


def test_when_no_cloud_has_room_nothing_is_left_and_each_ones_reason_is_told(empty, controller):
    empty["engage1"].close(True)
    empty["kaizen"].allow(0)
    with pytest.raises(OperationFailed, match=f"engage1: .*{FULL}.*; kaizen: .*Quota exceeded for instances"):
        grow(controller, 2, "cloud", timeout=120)
    assert hosts(controller) == {}


def test_equal_names_and_addresses_in_two_clouds_are_not_confused(empty, controller, salt_cloud, tmp_path):
    (tmp_path / "one.map").write_text(json.dumps({"virtual-engage1": [{"cn001": {"address": "10.77.0.161"}}]}))
    salt_cloud("-m", str(tmp_path / "one.map"))
    grow(controller, parse_nodes("cn001"), "cloud", host="kaizen", timeout=120)
    assert {name: cloud.left() for name, cloud in empty.items()} == {"engage1": (1, 1), "kaizen": (1, 1)}
    shrink(controller, parse_nodes("cn001"), "cloud")
    assert {name: cloud.left() for name, cloud in empty.items()} == {"engage1": (1, 1), "kaizen": (0, 0)}
    salt_cloud("-d", "cn001")


def test_suspended_servers_keep_their_place_in_the_cloud(empty, controller):
    grow(controller, 1, "cloud", timeout=120)
    admin = empty["engage1"].admin
    server = empty["engage1"].servers()["cn001"]

    def taken():
        found = admin.placement.get(f"/allocations/{server.id}").json()["allocations"]
        return [each["resources"]["MEMORY_MB"] for each in found.values()]

    memory = controller.cloud.vmstates("virtual-engage1")
    state = memory.save("cn001", "engage1")
    assert (taken(), memory.look("cn001").machine) == ([512], None)
    memory.restore(state, "engage1")
    memory.unpause("cn001", "engage1")
    assert memory.look("cn001").machine.state == "running"
    shrink(controller, 1, "cloud")
