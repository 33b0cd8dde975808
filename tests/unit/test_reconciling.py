"""Reconcile: what differs is mended, at once where it can be taken back, after a grace time where it can't."""

import time
from contextlib import closing

import neighbours
import pytest
from views import assert_undone, reasons, states, traces

from saltmarsh import mending, reconciling, recovery, reporting
from saltmarsh.comparing import ENDING, Repair
from saltmarsh.errors import OperationFailed, SlurmError
from saltmarsh.growing import grow
from saltmarsh.model import State
from saltmarsh.pools import parse_nodes
from saltmarsh.reconciling import reconcile
from saltmarsh.shrinking import shrink
from saltmarsh.suspending import suspend


@pytest.fixture
def grown(controller, provider):
    """osg1 and osg2 at work, on hv1."""
    grow(controller, 2, "osg")
    for name in ("osg1", "osg2"):
        (provider.keys / name).touch()  # here, salt-cloud makes no keys


@pytest.fixture
def clock(monkeypatch):
    """The time at which somebody looks; a test sets it forward."""

    class Clock:
        now = 1_000_000.0

        def pass_(self, seconds):
            self.now += seconds

    made = Clock()
    monkeypatch.setattr("saltmarsh.observing.time.time", lambda: made.now)
    return made


def wait_until(condition):
    """Wait for a condition; fail if it does not come."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def repairs(controller, **kwargs):
    """What a look finds: by subject its repairs, and whether they were due."""
    found = {}
    for each, due in reconcile(controller, **kwargs):
        found.setdefault(each.finding.subject, []).append((each.finding.repair, due))
    return found


def lose(provider, slurm, name):
    """A machine is gone, and nobody knows why."""
    (provider.machine_files / name).unlink()
    slurm.lose(name)


def test_a_cluster_at_rest_needs_nothing_and_nothing_is_done(controller, grown):
    before = controller.ledger.operations(unfinished=False)
    assert reconcile(controller) == []
    assert controller.ledger.operations(unfinished=False) == before


def test_a_look_asks_each_provider_and_slurm_once_however_many_nodes_there_are(controller, slurm, grown, monkeypatch):
    asked = []
    ask = controller.cloud._ask
    monkeypatch.setattr(controller.cloud, "_ask", lambda *args: asked.append(args) or ask(*args))
    slurm.calls.clear()
    reconcile(controller)
    assert [function for _, function in asked] == ["inventory"]
    assert slurm.calls == ["nodes"]


def test_a_node_whose_machine_is_gone_gives_its_jobs_back_then_its_name(controller, provider, slurm, grown, clock):
    slurm.start_job(17, "osg1")
    lose(provider, slurm, "osg1")
    assert repairs(controller, grace=60) == {"osg1": [(Repair.FAIL, False)]}
    assert states(controller)["osg1"] is State.READY
    assert slurm.killed == []
    clock.pass_(60)
    reconcile(controller, grace=60)
    assert states(controller)["osg1"] is State.FAILED
    assert slurm.killed == [17]
    assert reporting.status(controller)["osg1"]["reason"] == "its machine is gone from hv1"
    reconcile(controller, grace=60)
    clock.pass_(60)
    reconcile(controller, grace=60)
    assert states(controller) == {"osg2": State.READY}
    assert traces(controller) == {"osg2"}
    assert reasons(controller, "osg1")[-1] == (State.FREE, "")
    assert reconcile(controller, grace=60) == []


def test_what_comes_back_within_the_grace_time_is_as_if_nothing_had_been(controller, provider, slurm, grown, clock):
    file = provider.machine_files / "osg1"
    machine = file.read_text()
    lose(provider, slurm, "osg1")
    reconcile(controller, grace=60)
    file.write_text(machine)
    slurm.register("osg1")
    clock.pass_(50)
    assert reconcile(controller, grace=60) == []
    lose(provider, slurm, "osg1")
    clock.pass_(50)
    reconcile(controller, grace=60)
    assert states(controller)["osg1"] is State.READY


def test_a_grace_time_in_which_nobody_looked_does_not_count(controller, provider, slurm, grown, clock):
    lose(provider, slurm, "osg1")
    reconcile(controller, grace=60)
    clock.pass_(3600)
    reconcile(controller, grace=60)
    assert states(controller)["osg1"] is State.READY


def test_an_administrator_who_does_not_wait_begins_no_grace_time_anew(controller, provider, clock):
    provider.add("web1")
    began = clock.now
    reconcile(controller, grace=60)
    clock.pass_(30)
    reconcile(controller, grace=0)
    assert [each.since for each in reconciling.last(controller).seen] == [began]


def test_a_machine_that_nobody_has_is_removed_after_the_grace_time(controller, provider, clock):
    provider.add("osg3")
    provider.keys.joinpath("osg3").touch()
    controller.dns.add({"osg3": "10.77.0.53"})
    assert repairs(controller, grace=60) == {"osg3": [(Repair.REMOVE, False)]}
    assert set(provider.machines()) == {"osg3"}
    clock.pass_(60)
    reconcile(controller, grace=60)
    assert_undone(controller)


def test_volumes_of_a_machine_that_is_gone_are_removed_after_the_grace_time(controller, provider, clock):
    provider.volumes.joinpath("osg3").touch()
    assert repairs(controller, grace=60) == {"osg3": [(Repair.REMOVE, False)]}
    report = reporting.differences(reconcile(controller, grace=60, test=True), 60)
    assert report["osg3"][0]["why"] == "nobody has this name, but there are volumes of a machine"
    assert report["osg3"][0]["when"].startswith("at ")
    with pytest.raises(OperationFailed, match=r"has osg3.lab.qcow2, but there is no domain osg3"):
        grow(controller, parse_nodes("osg3"), "osg")
    assert provider.volumes.joinpath("osg3").exists()
    clock.pass_(60)
    reconcile(controller, grace=60)
    assert_undone(controller)
    assert not provider.volumes.joinpath("osg3").exists()
    grow(controller, parse_nodes("osg3"), "osg")


def test_while_a_host_does_not_answer_volumes_may_be_those_of_its_machines(controller, provider, clock):
    provider.volumes.joinpath("osg3").touch()
    provider.fail("host", "hv2", "no route")
    for _ in range(2):
        assert repairs(controller, grace=0)["osg3"] == [(None, False)]
    assert provider.volumes.joinpath("osg3").exists()


def test_volumes_that_must_not_be_removed_are_left_and_their_name_stays_free(controller, provider, caplog):
    provider.volumes.joinpath("osg3").touch()
    provider.fail("remove_strays", "osg3", "domain rescue uses osg3.lab.qcow2")
    reconcile(controller, grace=0)
    assert "osg3: not done now" in caplog.text
    assert "domain rescue uses osg3.lab.qcow2" in caplog.text
    assert provider.volumes.joinpath("osg3").exists()
    assert_undone(controller)


def test_volumes_of_another_name_are_never_touched(controller, provider):
    provider.volumes.joinpath("web1").touch()
    for _ in range(2):
        assert repairs(controller, grace=0) == {"web1": [(None, False)]}
    assert provider.volumes.joinpath("web1").exists()


def test_a_machine_that_nobody_has_is_removed_from_a_pool_that_is_full(controller, provider, clock):
    grow(controller, 12, "virtual")
    provider.add("vn016")
    reconcile(controller, grace=0)
    assert "vn016" not in provider.machines()
    assert len(states(controller)) == 12


def test_a_machine_of_another_name_is_never_touched(controller, provider, clock):
    provider.add("web1")
    provider.keys.joinpath("web1").touch()
    for _ in range(2):
        assert repairs(controller, grace=0) == {"web1": [(None, False)]}
    assert set(provider.machines()) == {"web1"}
    assert "web1" in controller.cloud.accepted_keys()


def test_nodes_of_a_host_that_does_not_answer_are_left_alone_and_shown_as_unknown(
    controller, provider, slurm, grown, clock
):
    provider.fail("host", "hv1", "no route")
    slurm.lose("osg1")
    reconcile(controller, grace=0)
    began = reporting.status(controller)["osg1"]["trouble"]
    assert [line for line in began if line.startswith("its machine is unknown: no route (since ")]
    clock.pass_(3600)
    for _ in range(2):
        reconcile(controller, grace=0)
        assert set(states(controller).values()) == {State.READY}
    provider.mend("host", "hv1")
    slurm.register("osg1")
    assert reconcile(controller) == []
    assert "trouble" not in reporting.status(controller)["osg1"]


def test_since_when_something_is_unknown_does_not_change_with_the_words_of_the_error(
    controller, provider, grown, clock
):
    provider.fail("host", "hv1", "no route")
    first = {each.since for each, _ in reconcile(controller)}
    clock.pass_(30)
    provider.fail("host", "hv1", "connection refused")
    assert {each.since for each, _ in reconcile(controller)} == first == {1_000_000.0}


def test_that_a_job_does_not_end_is_told_once_it_has_lasted(controller, slurm, grown, clock):
    slurm.complete("osg1")
    for _ in range(ENDING // 15):
        assert reconcile(controller) == []
        assert "trouble" not in reporting.status(controller)["osg1"]
        clock.pass_(15)
    ((told, due),) = reconcile(controller)
    assert (told.finding.subject, told.since, due) == ("osg1", 1_000_000.0, False)
    (line,) = reporting.status(controller)["osg1"]["trouble"]
    assert line.startswith("a job does not end: IDLE+CLOUD+COMPLETING (since ")
    slurm.completed("osg1")
    assert reconcile(controller) == []
    slurm.complete("osg1")
    assert reconcile(controller) == []


@pytest.mark.parametrize("why", ["no answer", "half an answer"])
def test_a_provider_that_does_not_answer_leaves_all_as_it_is(why, controller, provider, grown):
    provider.fail("list", "all", why)
    provider.machine_files.joinpath("osg1").unlink()
    for _ in range(2):
        assert not any(due for _, due in reconcile(controller, grace=0))
    assert set(states(controller).values()) == {State.READY}


def test_garbage_for_an_answer_leaves_all_as_it_is(controller, provider, slurm, grown, monkeypatch):
    lose(provider, slurm, "osg1")
    monkeypatch.setattr(controller.cloud, "_ask", lambda provider, function: {"machines": "none"})
    assert not any(due for _, due in reconcile(controller, grace=0))
    assert set(states(controller).values()) == {State.READY}


def test_while_slurm_does_not_answer_nothing_is_removed(controller, provider, slurm, grown):
    lose(provider, slurm, "osg1")
    provider.add("osg3")
    slurm.reachable = False
    assert not any(due for _, due in reconcile(controller, grace=0))
    assert set(provider.machines()) == {"osg2", "osg3"}


def test_a_node_that_was_moved_behind_our_back_is_written_down_where_it_is(controller, provider, grown):
    provider.add("osg1", "hv2")
    reconcile(controller)
    assert controller.ledger.nodes(["osg1"])[0].host == "hv2"
    assert reconcile(controller) == []


def test_a_name_that_dns_has_lost_and_an_address_that_slurm_has_wrong_are_put_right(controller, slurm, grown):
    controller.dns.remove(["osg1"])
    slurm.set_addresses({"osg2": "osg2"})
    reconcile(controller)
    assert controller.dns.names() == {"osg1", "osg2"}
    assert slurm.nodes()["osg2"].address == "10.77.0.52"
    assert reconcile(controller) == []


def test_a_node_that_somebody_resumed_in_slurm_is_parked_again(controller, slurm):
    slurm.resume_by_hand("osg3")
    assert repairs(controller) == {"osg3": [(Repair.PARK, True)]}
    assert slurm.nodes()["osg3"].absent
    assert_undone(controller)


def test_a_removal_that_a_host_interrupted_is_ended_when_it_is_back(controller, provider, slurm, grown):
    provider.fail("host", "hv1", "no route")
    with pytest.raises(Exception, match="not proven gone"):
        shrink(controller, 2, "osg")
    reconcile(controller, grace=0)
    assert set(states(controller).values()) == {State.FAILED}
    provider.mend("host", "hv1")
    reconcile(controller, grace=0)
    assert_undone(controller)


def test_a_suspended_node_is_at_rest(controller, grown):
    suspend(controller, ["osg1"], by="alice", why="a test")
    assert reconcile(controller, grace=0) == []


def test_testing_changes_nothing_and_says_all(controller, provider, slurm, grown, clock):
    lose(provider, slurm, "osg1")
    slurm.resume_by_hand("osg3")
    before = states(controller), slurm.nodes()
    report = reporting.differences(reconcile(controller, grace=60, test=True), 60)
    assert (states(controller), slurm.nodes()) == before
    assert report["osg3"] == [
        {
            "why": "nobody has this name, but Slurm would start it for a job (IDLE+CLOUD+POWERED_DOWN)",
            "since": report["osg3"][0]["since"],
            "repair": "tell Slurm that it is not there",
            "when": "now",
        }
    ]
    assert (report["osg1"][0]["repair"], report["osg1"][0]["when"][:3]) == (str(Repair.FAIL), "at ")
    assert not (controller.ledger.path.parent / "findings.json").exists()


def test_one_thing_that_can_not_be_mended_keeps_nothing_else_from_it(controller, provider, slurm, grown, caplog):
    def refuse():
        raise SlurmError("scontrol update failed")

    slurm.resume_by_hand("osg3")
    slurm.before["park"] = refuse
    controller.dns.remove(["osg1"])
    reconcile(controller)
    assert "osg3: not done now" in caplog.text
    assert "osg1" in controller.dns.names()
    assert controller.ledger.operations() == ()
    del slurm.before["park"]
    reconcile(controller)
    assert slurm.nodes()["osg3"].absent


def test_what_was_remembered_and_can_not_be_read_is_begun_anew(controller, provider, slurm, grown, clock):
    lose(provider, slurm, "osg1")
    reconcile(controller, grace=60)
    (controller.ledger.path.parent / "findings.json").write_text('{"at": 1, "seconds": 1, "seen": [{}]}')
    clock.pass_(60)
    reconcile(controller, grace=60)
    assert states(controller)["osg1"] is State.READY


def test_a_removal_whose_process_died_is_ended_by_the_next(controller, pillar, provider, tmp_path):
    provider.add("osg3")
    operation, _ = controller.ledger.claim(mending.VERB, controller.site.pool("osg"), names=["osg3", "osg4"])
    controller.ledger.move(operation, ["osg3"], State.DESTROYING, reason="left over")
    controller.ledger.abandon(operation)
    assert recovery.recover_abandoned(controller) == 1
    assert_undone(controller)


def test_two_that_reconcile_at_once_do_not_disturb_each_other(controller, pillar, provider, tmp_path):
    other = neighbours.controller(pillar, tmp_path)
    provider.add("osg3")
    first = reconcile(controller, test=True)
    reconcile(other, grace=0)
    assert first
    assert reconcile(controller, grace=0) == []
    other.ledger.close()
    assert_undone(controller)


def test_the_engine_looks_in_the_background_and_one_at_a_time(controller, slurm, caplog):
    slurm.resume_by_hand("osg3")
    with closing(reconciling.Reconciler(controller)) as reconciler:
        for _ in range(5):
            reconciler.look()
        wait_until(lambda: not controller.ledger.operations() and slurm.nodes()["osg3"].absent)
    assert caplog.text.count("osg3: nobody has this name, but Slurm would start it") == 1
