"""salt-run elastic.backfill, timeline and report: an answer, or one line and an exit status."""

import time

import pytest
from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet
from test_runner_elastic import error, runner
from views import assert_suspended, assert_undone

from saltmarsh import slurmrecords
from saltmarsh.errors import SlurmError
from saltmarsh.growing import grow
from saltmarsh.pools import parse_nodes
from saltmarsh.suspending import suspend

__all__ = ["runner"]


def test_leases_are_begun_told_and_ended(runner, controller, slurm):
    assert runner.backfill("start", pool="osg", target=2)["submitted"].keys() == {"osg1", "osg2"}
    told = runner.backfill("status")["osg"]
    assert (told["target"], told["leases"], told["nodes"].keys()) == (2, 2, {"osg1", "osg2"})
    assert sorted(runner.backfill("stop", pool="osg")["ended"]) == ["osg1", "osg2"]
    assert runner.backfill("status") == {}
    assert_undone(controller)


def test_what_would_be_begun_or_ended_is_only_told(runner, controller, slurm):
    assert runner.backfill("start", pool="osg", target=2, test=True) == {
        "would submit": ["osg1", "osg2"],
        "would end": [],
    }
    assert (runner.backfill("status"), slurm.jobs()) == ({}, ())
    runner.backfill("start", pool="osg", target=2)
    before = runner.backfill("status")
    assert runner.backfill("start", pool="osg", target=1, test=True) == {"would submit": [], "would end": ["osg1"]}
    assert runner.backfill("stop", pool="osg", test=True) == {"would end": ["osg1", "osg2"]}
    assert runner.backfill("status") == before


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["begin"], "'begin': expected start, stop or status"),
        (["start", "osg"], "target=0: expected a number of leases"),
        (["start", "osg", "many"], "target='many': expected a number of leases"),
        (["stop", "osg", -1], "target=-1: expected a number of leases"),
        (["stop", "osg", 0, "perhaps"], "force='perhaps': expected True or False"),
        (["start", "osg", 1, False, 10, "perhaps"], "test='perhaps': expected True or False"),
        (["start", "nowhere", 1], "pool 'nowhere' does not exist; pools: osg, virtual"),
        (["start", None, 1], "which pool? name one with pool=; pools: osg, virtual"),
        (["start", "osg", 5], "pool osg: 0 leases are there, 4 more are possible, not 5"),
    ],
)
def test_bad_input_of_backfill_is_one_line_with_status_2(runner, controller, slurm, args, line):
    assert error(runner, "backfill", *args) == (line, 2)
    assert slurm.jobs() == ()


@pytest.fixture
def records(monkeypatch):
    """Slurm's records: one urgent job, an hour ago, for a minute."""
    start = time.time() - 3600
    urgent = slurmrecords.Run(
        3, "urgent", "alice", "metal", "COMPLETED", start, start + 60, NodeSet("hv1", resolver=RESOLVER_NOGROUP), 2
    )
    monkeypatch.setattr(slurmrecords, "runs", lambda: [urgent])


def test_a_timeline_is_drawn_from_history_and_records(runner, records, tmp_path):
    runner.grow(1, pool="osg")
    out = tmp_path / "timeline.svg"
    assert runner.timeline(str(out), since="2h")["out"] == str(out)
    assert all(f">{word}<" in out.read_text() for word in ("hv1", "osg1", "node at work", "bare-metal job"))


def test_a_timeline_without_a_file_is_told_in_bars(runner, records):
    runner.grow(1, pool="osg")
    bars = runner.timeline(since="2h")
    assert {(bar["row"], bar["kind"]) for bar in bars} >= {("hv1", "bare-metal job"), ("osg1", "node at work")}


def test_a_report_is_made_of_history_and_records(runner, controller, slurm, records, monkeypatch):
    runner.grow(1, pool="osg")
    bare = slurm.nodes(["osg1"])["osg1"]
    monkeypatch.setattr(slurm, "nodes", lambda names=None: dict.fromkeys(["hv1", "hv2"], bare))
    told = runner.report(since="2h")
    assert told["hosts"]["hv1"] == {"bare-metal job": 0.8, "lease": 0.0, "idle": 99.2}
    assert told["preemptions"] == 0
    assert "node at work" in told["pools"]["osg"]


@pytest.mark.parametrize(
    ("function", "args", "line"),
    [
        ("timeline", ["x.svg", "today"], "since='today': expected for example 30m, 12h, 7d or 2026-11-21T08:00"),
        ("timeline", ["/tmp/x.pdf"], "out='/tmp/x.pdf': expected a name that ends with .html or .svg"),
        ("report", [7], "since=7: expected for example 30m, 12h, 7d or 2026-11-21T08:00"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_with_status_2(runner, records, function, args, line):
    assert error(runner, function, *args) == (line, 2)


def test_a_slurm_without_records_is_one_line_with_status_1(runner, monkeypatch):
    def none():
        raise SlurmError("Slurm keeps no record of jobs here")

    monkeypatch.setattr(slurmrecords, "runs", none)
    assert error(runner, "report") == ("Slurm keeps no record of jobs here", 1)


@pytest.mark.parametrize("test", [False, True])
def test_a_node_that_has_a_lease_is_resumed_by_that_alone(runner, controller, slurm, test):
    grow(controller, parse_nodes("osg[1-2]"), "osg")
    suspend(controller, ["osg1"], by="a lease", why="hv1 is wanted")
    slurm.queue_lease(5, "osg1")
    assert error(runner, "resume", "osg1", test=test) == ("can't be resumed by hand: osg1: lease 5 brings it back", 2)
    assert_suspended(controller, ["osg1"])


def test_a_node_that_has_a_lease_is_not_woken_to_grow(runner, controller, slurm):
    grow(controller, parse_nodes("osg[1-2]"), "osg")
    suspend(controller, ["osg1", "osg2"], by="a lease", why="hv1 is wanted")
    slurm.queue_lease(5, "osg1")
    assert runner.grow(1, "osg")["nodes"].keys() == {"osg2"}
    assert runner.grow(1, "osg")["nodes"].keys() == {"osg3"}
    assert_suspended(controller, ["osg1"])
