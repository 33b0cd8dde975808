"""What there is, in words and numbers: the ledger's and Slurm's view side by side, and that Slurm can't be asked."""

from datetime import datetime

import pytest

from saltmarsh import reporting
from saltmarsh.errors import InvalidInput, SlurmError
from saltmarsh.growing import grow
from saltmarsh.model import State
from saltmarsh.pools import Site
from saltmarsh.shrinking import shrink


@pytest.fixture
def grown(controller):
    """osg1 to osg3, ready."""
    grow(controller, 3, "osg")


def without_pool(controller, pillar, name):
    """The same controller after a pool has been taken out of pillar."""
    del pillar["elastic"]["pools"][name]
    object.__setattr__(controller, "site", Site.from_pillar(pillar))
    return controller


def test_status_is_empty_while_nothing_is_grown(controller, slurm):
    assert reporting.status(controller) == {}
    assert slurm.calls == []


def test_status_tells_what_ledger_and_slurm_say(controller, slurm, grown):
    slurm.start_job(17, "osg[1-2]")
    slurm.start_job(18, "osg1")
    report = reporting.status(controller)
    assert set(report) == {"osg1", "osg2", "osg3"}
    since = report["osg1"].pop("since")
    assert datetime.fromisoformat(since).timestamp() == int(controller.ledger.nodes(["osg1"])[0].since)
    assert report["osg1"] == {
        "pool": "osg",
        "state": "ready",
        "host": "hv1",
        "address": "10.77.0.51",
        "reason": "Slurm has it",
        "slurm": "IDLE+CLOUD",
        "jobs": [17, 18],
    }
    assert (report["osg2"]["jobs"], report["osg3"]["jobs"]) == ([17], [])


def test_every_node_that_is_not_ready_has_a_reason_in_status(controller):
    operation, _ = controller.ledger.claim("grow", controller.site.pool("osg"), count=1)
    for state in (State.CLAIMED, State.CREATING, State.BOOTING):
        if state is not State.CLAIMED:
            controller.ledger.move(operation, ["osg1"], state)
        row = reporting.status(controller)["osg1"]
        assert (row["state"], row["reason"]) == (str(state), f"grow {operation.id} is under way")
    controller.ledger.finish(operation, "its process died")
    assert reporting.status(controller)["osg1"]["reason"].endswith("its process died")


def test_status_of_names_has_exactly_these_free_ones_too(controller, grown):
    report = reporting.status(controller, ["osg4", "osg1", "vn001"])
    assert list(report) == ["osg4", "osg1", "vn001"]
    assert report["vn001"] == {
        "pool": "virtual",
        "state": "free",
        "since": None,
        "host": None,
        "address": "10.77.0.101",
        "reason": "",
        "slurm": "DOWN+CLOUD+POWERED_DOWN",
        "jobs": [],
    }


def test_status_says_why_a_node_failed(controller, grown):
    operation, _ = controller.ledger.begin(
        "test", "osg", ["osg1"], expect={State.READY}, to=State.FAILED, reason="burnt"
    )
    controller.ledger.finish(operation)
    assert (reporting.status(controller)["osg1"]["state"], reporting.status(controller)["osg1"]["reason"]) == (
        "failed",
        "burnt",
    )


def test_status_says_that_slurm_does_not_answer(controller, slurm, grown):
    slurm.reachable = False
    report = reporting.status(controller)
    assert {(node["state"], node["slurm"], node["jobs"]) for node in report.values()} == {
        ("ready", "unknown: slurmctld on ctl does not answer", "unknown")
    }


def test_status_says_that_slurm_refuses(controller, slurm, grown):
    def refuse():
        raise SlurmError("squeue --json failed: no plugin")

    slurm.before["jobs"] = refuse
    assert reporting.status(controller)["osg1"]["slurm"] == "unknown: squeue --json failed: no plugin"


def test_status_says_that_slurm_does_not_know_a_node(controller, slurm, grown):
    slurm.forget("osg1")
    assert reporting.status(controller)["osg1"]["slurm"] == "not in Slurm's configuration"


@pytest.mark.parametrize(
    "ask", [lambda name: {"names": [name]}, lambda name: {"name": name}], ids=["status", "history"]
)
def test_a_name_of_no_pool_is_refused(controller, ask):
    function = reporting.status if "names" in ask("x") else reporting.history
    with pytest.raises(InvalidInput, match=r"^node 'vn099' belongs to no pool; pools: osg \(osg\[1-4\]\), virtual "):
        function(controller, **ask("vn099"))


def test_nodes_of_a_pool_that_is_no_longer_in_pillar_are_told(controller, pillar, grown):
    controller = without_pool(controller, pillar, "osg")
    assert reporting.status(controller)["osg1"]["address"] == "10.77.0.51"
    assert reporting.status(controller, ["osg1"])["osg1"]["state"] == "ready"
    assert reporting.history(controller, "osg1")[-1]["to"] == "ready"


def test_pools_tells_what_a_pool_is_and_how_many_nodes_are_in_which_state(controller, grown):
    assert reporting.pools(controller)["osg"] == {
        "nodes": "osg[1-4]",
        "profile": "osg",
        "image": "node.qcow2",
        "cpus": 2,
        "memory": 2048,
        "partition": "osg",
        "free": 1,
        "room": 1,
        "size": 4,
        "ready": 3,
    }
    assert reporting.pools(controller)["virtual"]["free"] == 16


def test_history_tells_everything_oldest_first_also_of_a_name_that_is_free_again(controller, grown):
    shrink(controller, 3, "osg", reason="shrink by alice")
    rows = reporting.history(controller, "osg1")
    assert [(row["from"], row["to"]) for row in rows] == [
        ("free", "claimed"),
        ("claimed", "creating"),
        ("creating", "booting"),
        ("booting", "booting"),
        ("booting", "booting"),
        ("booting", "ready"),
        ("ready", "draining"),
        ("draining", "destroying"),
        ("destroying", "free"),
    ]
    assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)
    assert [row["operation"] for row in rows] == [1] * 6 + [2] * 3
    assert rows[6]["reason"] == "shrink by alice"


def test_history_of_a_name_that_never_was_anything_else_than_free_is_empty(controller):
    assert reporting.history(controller, "osg1") == []
