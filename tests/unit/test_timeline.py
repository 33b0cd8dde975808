"""Timeline: what was where and when, from the ledger's history and Slurm's records of jobs."""

import json
import re
from dataclasses import replace

import pytest
from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet

from saltmarsh import picture, slurmrecords, timeline, utilization
from saltmarsh.errors import InvalidInput, SlurmError
from saltmarsh.model import State, Transition
from saltmarsh.slurmrecords import Run
from saltmarsh.timeline import BARE, LEASE, MAKING, RESTORING, RUNNING, SAVING, SUSPENDED, Bar

NOW = 1_795_280_000.0  # 2026-11-21T16:53:20Z


def history(*rows):
    """Transitions of vn001: after, seconds from NOW, host, reason."""
    before, found = State.FREE, []
    for after, at, host, reason in rows:
        found.append(Transition("vn001", NOW + at, before, State(after), host, reason, 1))
        before = State(after)
    return found


def told(bars):
    """Kind, start and end from NOW, host."""
    return [(bar.kind, bar.start - NOW, bar.end - NOW, bar.host) for bar in bars]


def run(name, start, end, partition="lease", nodes="hv1", state="PREEMPTED"):
    return Run(
        5, name, "slurm", partition, state, NOW + start, end and NOW + end, NodeSet(nodes, resolver=RESOLVER_NOGROUP), 1
    )


def test_a_node_has_a_bar_for_each_thing_that_it_did():
    rows = history(
        ("claimed", 0, None, ""),
        ("creating", 1, "hv1", ""),
        ("booting", 2, "hv1", ""),
        ("ready", 40, "hv1", "Slurm has it"),
        ("suspending", 60, "hv1", "suspended by alice at …"),
        ("suspended", 62, "hv1", "suspended by alice at …"),
        ("resuming", 100, "hv2", "restoring"),
        ("ready", 104, "hv2", "back at work"),
    )
    assert told(timeline.node_bars(rows, NOW + 200)) == [
        (MAKING, 0, 1, None),
        (MAKING, 1, 40, "hv1"),
        (RUNNING, 40, 60, "hv1"),
        (SAVING, 60, 62, "hv1"),
        (SUSPENDED, 62, 100, "hv1"),
        (RESTORING, 100, 104, "hv2"),
        (RUNNING, 104, 200, "hv2"),
    ]


def test_what_a_host_has_done_by_itself_is_told_with_its_own_times():
    rows = history(
        ("ready", 0, "hv1", ""),
        ("suspended", 63.5, "hv1", "suspended by a lease at 2026-11-21T16:54:21+00:00: hv1 is wanted"),
        ("ready", 106, "hv1", "its host hv1 has brought it back"),
    )
    bars = timeline.node_bars(rows, NOW + 200)
    assert told(bars) == [
        (RUNNING, 0, 61, "hv1"),
        (SAVING, 61, 63.5, "hv1"),
        (SUSPENDED, 63.5, 106, "hv1"),
        (RUNNING, 106, 200, "hv1"),
    ]
    runs = [run("vn001", -10, 60), run("vn001", 80, 81), run("vn001", 99, None)]
    assert told(timeline.restored_by_leases(bars, runs, 3))[2:] == [
        (SUSPENDED, 63.5, 102, "hv1"),
        (RESTORING, 102, 106, "hv1"),
        (RUNNING, 106, 200, "hv1"),
    ]


def test_a_name_that_is_free_has_no_bar_and_one_that_was_made_twice_has_two():
    rows = history(("ready", 0, "hv1", ""), ("destroying", 10, "hv1", ""), ("free", 12, None, ""))
    rows += history(("ready", 50, "hv2", ""))
    assert told(timeline.node_bars(rows, NOW + 60)) == [
        (RUNNING, 0, 10, "hv1"),
        ("being removed", 10, 12, "hv1"),
        (RUNNING, 50, 60, "hv2"),
    ]


def test_a_job_has_a_bar_on_each_of_its_hosts_and_none_elsewhere():
    runs = [
        run("vn001", 0, 10),
        run("urgent", 12, None, "metal", "hv[1-2],vn003", "RUNNING"),
    ]
    bars = timeline.job_bars(runs, {"hv1": None, "hv2": None}, "lease", NOW + 20)
    assert [(bar.row, bar.kind, bar.end - NOW) for bar in bars] == [
        ("hv1", LEASE, 10),
        ("hv1", BARE, 20),
        ("hv2", BARE, 20),
    ]
    assert bars[1].text == "job 5 urgent of slurm in metal: RUNNING"


def test_only_what_lies_in_the_time_asked_for_is_left():
    bars = [Bar("hv1", BARE, NOW - 10, NOW + 5, "hv1", ""), Bar("hv1", BARE, NOW - 10, NOW, "hv1", "")]
    assert told(timeline.clipped(bars, NOW, NOW + 3)) == [(BARE, 0, 3, "hv1")]


# The report


def test_the_report_adds_up_what_hosts_and_nodes_did():
    """In 100 s: a lease of 1 CPU until 40, an urgent job of 2 CPUs from 45 to 65, the lease again from 65 on."""
    node = [
        Bar("vn001", RUNNING, NOW, NOW + 40, "hv1", ""),
        Bar("vn001", SAVING, NOW + 40, NOW + 45, "hv1", "suspended by a lease at …"),
        Bar("vn001", SUSPENDED, NOW + 45, NOW + 68, "hv1", "suspended by a lease at …"),
        Bar("vn001", RESTORING, NOW + 68, NOW + 70, "hv1", "suspended by a lease at …"),
        Bar("vn001", RUNNING, NOW + 70, NOW + 90, "hv1", ""),
        Bar("vn001", SUSPENDED, NOW + 90, NOW + 100, "hv1", "suspended by alice at …"),
    ]
    urgent = replace(run("urgent", 45, 65, "metal"), cpus=2)
    runs = [run("vn001", -50, 40), urgent, run("vn001", 65, None), run("low", 10, None, "virtual", "vn001")]
    assert utilization.report(node, runs, {"hv1": 2}, {"vn001": "osg"}, "lease", NOW, NOW + 100) == {
        "hosts": {"hv1": {BARE: 20.0, LEASE: 37.5, "idle": 42.5}},
        "pools": {
            "osg": {
                RUNNING: round(60 / 3600, 3),
                SAVING: round(5 / 3600, 3),
                SUSPENDED: round(33 / 3600, 3),
                RESTORING: round(2 / 3600, 3),
            }
        },
        "preemptions": 1,
        "cpu hours saved": round(30 / 3600, 3),
        "seconds lost": 7.0,
    }


def test_each_kill_would_have_thrown_away_what_was_done_since_the_last():
    """A job of 2 CPUs runs 20 s, is away for 10 s, runs 5 s, and is away again: 50 CPU seconds."""
    node = [
        Bar("vn001", SUSPENDED, NOW + 20, NOW + 30, "hv1", "suspended by a lease at …"),
        Bar("vn001", RUNNING, NOW + 30, NOW + 35, "hv1", ""),
        Bar("vn001", SUSPENDED, NOW + 35, NOW + 36, "hv1", "suspended by a lease at …"),
    ]
    runs = [replace(run("low", 0, None, "virtual", "vn001"), cpus=2)]
    told = utilization.report(node, runs, {}, {"vn001": "osg"}, "lease", NOW, NOW + 3600)
    assert told["cpu hours saved"] == round(50 / 3600, 3)
    assert told["preemptions"] == 2


# Slurm's records, as jobcomp/filetxt of 24.11.5 writes them

RECORD = (
    "JobId=22 UserId=slurm(64030) GroupId=slurm(64030) Name=vn009 JobState=PENDING Partition=lease TimeLimit=UNLIMITED "
    "StartTime=2026-11-21T17:15:47 EndTime=2026-11-21T17:15:49 NodeList=hv1 NodeCnt=1 ProcCnt=1 WorkDir=/ "
    "ReservationName= Tres=cpu=1,mem=1000M,node=1,billing=1 Account= QOS= WcKey= Cluster=unknown "
    "SubmitTime=2026-11-21T17:15:46 EligibleTime=2026-11-21T17:15:46 DerivedExitCode=0:0 ExitCode=0:0 \n"
)
NEVER_RAN = RECORD.replace("NodeList=hv1", "NodeList=(null)")
GOING = {
    "job_id": 23,
    "name": "a job",
    "user_name": "alice",
    "partition": "metal",
    "job_state": ["RUNNING"],
    "start_time": {"number": 1_795_290_000},
    "nodes": "hv[1-2]",
    "cpus": {"number": 4},
}


@pytest.fixture
def slurmctld(monkeypatch, tmp_path):
    """slurmctld with a record of jobs; the value is that."""
    record = tmp_path / "jobcomp.log"
    shown = f"JobCompLoc              = {record}\nJobCompType             = jobcomp/filetxt\n"
    monkeypatch.setattr(slurmrecords, "run", lambda *argv: shown)
    monkeypatch.setattr(slurmrecords, "ask", lambda *argv: {"jobs": [GOING, GOING | {"job_state": ["PENDING"]}]})
    return record


def test_every_run_is_read_and_those_that_go_on(slurmctld):
    slurmctld.write_text(NEVER_RAN + RECORD.replace("Name=vn009", "Name=two words") + "half a li")
    ended, going = slurmrecords.runs()
    assert (ended.id, ended.name, ended.user, ended.partition, ended.state) == (
        22,
        "two words",
        "slurm",
        "lease",
        "PENDING",
    )
    assert (ended.end - ended.start, str(ended.nodes), ended.cpus) == (2, "hv1", 1)
    assert (going.id, going.end, len(going.nodes), going.cpus) == (23, None, 2, 4)


def test_before_the_first_job_has_ended_there_is_no_file(slurmctld):
    assert [each.id for each in slurmrecords.runs()] == [23]


def test_a_slurm_without_records_is_told_what_to_set(monkeypatch):
    monkeypatch.setattr(
        slurmrecords, "run", lambda *argv: "JobCompType             = (null)\nJobCompLoc              = (null)\n"
    )
    with pytest.raises(SlurmError, match="set JobCompType=jobcomp/filetxt and JobCompLoc"):
        slurmrecords.runs()


# The picture

BARS = [
    Bar("hv1", BARE, NOW, NOW + 60, "hv1", "job 3 urgent of alice in metal: COMPLETED"),
    Bar("vn001", SUSPENDED, NOW, NOW + 60, "hv1", "suspended by a lease"),
]


def drawn(bars, hosts):
    """The rows of the picture, and what is drawn into them."""
    spec = json.loads(picture.chart(bars, hosts).to_json())
    [values] = [spec["data"]["values"]] if "values" in spec["data"] else spec["datasets"].values()
    return spec["encoding"]["y"]["sort"], values


def test_the_picture_has_a_row_for_each_host_and_node_hosts_first():
    rows, values = drawn(BARS[::-1], ["hv2", "hv1"])
    assert rows == ["hv1", "vn001"]
    assert {value["text"] for value in values} == {bar.text for bar in BARS}


LEASES = [  # two beside each other; the first ends for an urgent job, and then goes on
    Bar("hv1", LEASE, NOW + 80, NOW + 120, "hv1", "first again"),
    Bar("hv1", LEASE, NOW, NOW + 60, "hv1", "first"),
    Bar("hv1", BARE, NOW + 60, NOW + 80, "hv1", "urgent"),
    Bar("hv1", LEASE, NOW + 5, NOW + 90, "hv1", "second"),
    Bar("hv2", BARE, NOW, NOW + 120, "hv2", "other"),
]


def test_what_is_on_a_host_at_the_same_time_is_drawn_below_each_other():
    rows, values = drawn(LEASES, ["hv1", "hv2"])
    by_row = {row: [value["text"] for value in values if value["row"] == row] for row in rows}
    assert list(by_row.values()) == [["first", "urgent", "first again"], ["second"], ["other"]]
    assert [value["on"] for value in values] == ["hv1"] * 4 + ["hv2"]


def test_a_host_with_several_lanes_is_named_once(tmp_path):
    picture.draw(LEASES, ["hv1", "hv2"], str(tmp_path / "a.svg"))
    labels = re.findall(r">(hv[^<]*)<", (tmp_path / "a.svg").read_text())
    assert labels == ["hv1", "hv2"]


def test_svg_has_the_rows_and_html_needs_nothing_from_elsewhere(tmp_path):
    for name in ("a.svg", "a.html"):
        picture.draw(BARS, ["hv1"], str(tmp_path / name))
    svg = (tmp_path / "a.svg").read_text()
    assert all(f">{word}<" in svg for word in ("hv1", "vn001", "suspended", "bare-metal job"))
    html = (tmp_path / "a.html").read_text()
    assert "job 3 urgent of alice" in html
    assert not re.search(r"<(script|link)[^>]+(src|href)=", html)


@pytest.mark.parametrize(("bars", "name", "said"), [(BARS, "a.png", "expected a name"), ([], "a.svg", "nothing has")])
def test_what_cant_be_drawn_is_told(bars, name, said, tmp_path):
    with pytest.raises(InvalidInput, match=said):
        picture.draw(bars, ["hv1"], str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []
