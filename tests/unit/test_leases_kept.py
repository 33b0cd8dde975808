"""As many leases as were asked for, whatever becomes of them, and of whoever submits them."""

import logging
import time

import neighbours
import pytest
from deadly import LOSSES, Site
from neighbours.host import Host
from views import assert_suspended, assert_working, error_of, states

from saltmarsh import backfilling, leasing, targets
from saltmarsh.backfilling import HOLD_DOWN, Backfill, start, status, stop
from saltmarsh.errors import LedgerError, OperationFailed, SlurmError, Unreachable
from saltmarsh.growing import grow
from saltmarsh.leasing import put_away
from saltmarsh.model import State
from saltmarsh.pools import parse_nodes
from saltmarsh.suspending import suspend


def leased(controller):
    """The nodes that have leases; none has two."""
    names = sorted(job.name for job in leasing.submitted(controller))
    assert names == sorted(set(names))
    return names


def cancel(controller, *names):
    """Somebody cancels leases, which have ended then."""
    there = leasing.leases(controller)
    controller.slurm.cancel_jobs([there[name].id for name in names])


def run_on(controller, name, host):
    """Slurm starts the lease of a node."""
    controller.slurm.queue_lease(leasing.leases(controller)[name].id, name, host)


@pytest.fixture
def clock(monkeypatch):
    """Time that passes by ``passed`` besides."""

    class Clock:
        passed = 0.0

    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + Clock.passed)
    return Clock


@pytest.fixture
def engine(controller, clock):
    """What looks at the leases, a minute later each time."""
    backfill = Backfill(controller)

    def look():
        clock.passed += HOLD_DOWN
        backfill.look()

    return look


# Lost ones


def test_a_lease_that_was_cancelled_has_another_one_in_its_place(controller, engine):
    start(controller, 3, "osg")
    cancel(controller, "osg2")
    engine()
    assert leased(controller) == ["osg1", "osg2", "osg3"]


def test_an_engine_that_starts_later_knows_how_many_were_asked_for(controller, engine):
    start(controller, 2, "osg")
    cancel(controller, "osg1", "osg2")
    Backfill(controller).look()
    assert len(leased(controller)) == 2


def test_a_node_whose_lease_was_cancelled_goes_to_disk_and_comes_back_with_the_next_one(controller, slurm, engine):
    start(controller, 1, "osg")
    run_on(controller, "osg1", "hv1")
    engine()
    slurm.start_job(17, "osg1")
    put_away(Host.of(controller, "hv1"), "osg1", "its lease was cancelled")
    cancel(controller, "osg1")
    engine()
    assert_suspended(controller, ["osg1"], [17])
    assert leased(controller) == ["osg1"]
    run_on(controller, "osg1", "hv2")
    leasing.bring_back(Host.of(controller, "hv2"), "osg1")
    engine()
    assert_working(controller, ["osg1"], [17])


def test_a_node_on_disk_comes_first_even_if_the_ledger_has_not_learned_of_it(controller, slurm, engine, monkeypatch):
    start(controller, 1, "osg")
    run_on(controller, "osg1", "hv1")
    engine()
    put_away(Host.of(controller, "hv1"), "osg1", "its lease was cancelled")
    cancel(controller, "osg1")

    def silent(name, host=None):
        raise Unreachable("hv2 can't be reached")

    monkeypatch.setattr(controller.vmstates_of("osg1"), "look", silent)
    engine()
    assert states(controller) == {"osg1": State.READY}
    assert leased(controller) == ["osg1"]


def test_a_lease_that_ends_counts_until_it_has_ended(controller, slurm, engine):
    start(controller, 2, "osg")
    [first, _] = [job.id for job in leasing.submitted(controller)]
    slurm.change_job(first, "CANCELLED", "COMPLETING")
    engine()
    assert len(leasing.submitted(controller)) == 2
    slurm.end_job(first)
    engine()
    assert leased(controller) == ["osg1", "osg2"]


def test_a_node_without_a_lease_that_is_at_work_is_left_alone(controller, engine):
    grow(controller, parse_nodes("osg1"), "osg")
    start(controller, 1, "osg")
    engine()
    assert leased(controller) == ["osg2"]


def test_leases_that_always_end_at_once_are_submitted_once_a_minute(controller, slurm, clock):
    start(controller, 2, "osg")
    backfill = Backfill(controller)
    for _ in range(12):
        if there := leased(controller):
            cancel(controller, *there)
        backfill.look()
        clock.passed += HOLD_DOWN / 6
    assert slurm.calls.count("submit_lease") == 2 + 2 * 2


# As many as can be


def test_what_a_pool_has_no_nodes_for_is_told_once(controller, engine, caplog):
    start(controller, 3, "osg")
    cancel(controller, "osg3")
    grow(controller, parse_nodes("osg[3-4]"), "osg")
    for _ in range(3):
        engine()
    assert leased(controller) == ["osg1", "osg2"]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        "pool osg: 1 of 3 leases are lacking, it has no nodes for them"
    ]


def test_what_slurm_refuses_is_told_and_tried_again_and_keeps_nobody_up(controller, slurm, engine, caplog):
    start(controller, 2, "osg")
    run_on(controller, "osg1", "hv1")
    cancel(controller, "osg2")

    def refuse():
        raise SlurmError("sbatch failed: invalid account")

    slurm.before["submit_lease"] = refuse
    engine()
    assert "pool osg: not as many leases as are wanted: sbatch failed: invalid account" in caplog.text
    assert_working(controller, ["osg1"])
    del slurm.before["submit_lease"]
    engine()
    assert leased(controller) == ["osg1", "osg2"]


def test_a_start_that_slurm_refuses_is_taken_up_by_the_engine(controller, slurm, engine):
    def refuse():
        raise SlurmError("sbatch failed: invalid account")

    slurm.before["submit_lease"] = refuse
    with pytest.raises(SlurmError):
        start(controller, 2, "osg")
    del slurm.before["submit_lease"]
    engine()
    assert leased(controller) == ["osg1", "osg2"]


def test_while_slurm_is_away_nothing_is_asked_for_and_nothing_is_kept(controller, slurm, engine):
    start(controller, 1, "osg")
    slurm.reachable = False
    with pytest.raises(Unreachable):
        start(controller, 3, "osg")
    with pytest.raises(Unreachable):
        engine()
    slurm.reachable = True
    engine()
    assert leased(controller) == ["osg1"]


# Fewer


def test_a_smaller_target_ends_leases_without_a_node_and_no_node(controller, engine):
    start(controller, 4, "osg")
    run_on(controller, "osg2", "hv1")
    engine()
    assert start(controller, 2, "osg") == ({}, ["osg1", "osg3"])
    assert leased(controller) == ["osg2", "osg4"]
    run_on(controller, "osg4", "hv2")
    engine()
    assert start(controller, 1, "osg") == ({}, [])
    engine()
    assert leased(controller) == ["osg2", "osg4"]
    assert_working(controller, ["osg2", "osg4"])
    put_away(Host.of(controller, "hv1"), "osg2", "its lease was cancelled")
    cancel(controller, "osg2")
    engine()
    assert leased(controller) == ["osg4"]


def test_leases_that_wait_end_before_those_whose_node_is_about_to_be_made(controller):
    start(controller, 2, "osg")
    run_on(controller, "osg1", "hv1")
    assert start(controller, 1, "osg") == ({}, ["osg2"])


def test_what_is_stopped_stays_so(controller, engine):
    start(controller, 3, "osg")
    run_on(controller, "osg1", "hv1")
    engine()
    stop(controller, 2, "osg")
    engine()
    assert len(leased(controller)) == 2
    stop(controller, 0, "osg")
    engine()
    assert leased(controller) == []
    assert status(controller) == {}


def test_a_stop_that_gave_up_on_a_job_goes_on_when_its_lease_has_ended(controller, slurm, engine):
    start(controller, 1, "osg")
    run_on(controller, "osg1", "hv1")
    engine()
    slurm.start_job(17, "osg1")
    with pytest.raises(OperationFailed):
        stop(controller, pool="osg", timeout=0)
    engine()
    assert status(controller)["osg"]["target"] == 0
    assert leased(controller) == ["osg1"]
    slurm.end_job(17)
    put_away(Host.of(controller, "hv1"), "osg1", "its lease was cancelled")
    cancel(controller, "osg1")
    engine()
    assert leased(controller) == []


def test_a_stop_never_asks_for_more(controller, engine):
    start(controller, 2, "osg")
    stop(controller, 4, "osg")
    engine()
    assert len(leased(controller)) == 2


def test_leases_that_nobody_has_said_a_number_for_are_left_alone(controller, slurm, engine):
    """Those of a version that did not keep it."""
    slurm.queue_lease(5, "osg1")
    slurm.queue_lease(6, "osg2")
    engine()
    assert leased(controller) == ["osg1", "osg2"]
    stop(controller, 1, "osg")
    engine()
    assert len(leased(controller)) == 1


# Told


def test_status_tells_how_many_are_wanted_and_there(controller, slurm):
    start(controller, 3, "osg")
    cancel(controller, "osg3")
    slurm.queue_lease(5, "vn001")
    told = {name: (row["target"], row["leases"], list(row["nodes"])) for name, row in status(controller).items()}
    assert told == {"osg": (3, 2, ["osg1", "osg2"]), "virtual": (None, 1, ["vn001"])}
    assert status(controller, "osg").keys() == {"osg"}


# Safe


def test_a_pool_that_left_pillar_has_no_leases_submitted_until_it_is_back(controller, pillar, tmp_path, clock):
    start(controller, 2, "osg")
    cancel(controller, "osg1")
    osg = pillar["elastic"]["pools"].pop("osg")
    without = neighbours.controller(pillar, tmp_path)
    Backfill(without).look()
    assert (without.slurm.jobs(), status(without)) == ((), {})
    without.ledger.close()
    pillar["elastic"]["pools"]["osg"] = osg
    Backfill(controller).look()
    assert leased(controller) == ["osg1", "osg2"]


def test_a_second_lease_of_a_node_is_ended_and_the_first_goes_on(controller, slurm, engine):
    """Whoever was killed may have told slurmctld to submit it, which did so only after the next one had looked."""
    start(controller, 1, "osg")
    run_on(controller, "osg1", "hv1")
    [first] = leasing.submitted(controller)
    slurm.queue_lease(first.id + 1, "osg1")
    assert leasing.leases(controller)["osg1"].id == first.id
    engine()
    assert [job.id for job in leasing.submitted(controller)] == [first.id]
    assert_working(controller, ["osg1"])


def test_a_number_that_is_none_is_told_with_its_file_and_can_be_written_anew(controller, engine):
    start(controller, 1, "osg")
    [file] = [path for path in targets._directory(controller).iterdir() if path.name == "osg"]
    file.write_text("many")
    with pytest.raises(LedgerError) as raised:
        engine()
    assert error_of(raised) == f"{file}: expected a number; salt-run elastic.backfill start writes it anew"
    start(controller, 2, "osg")
    engine()
    assert leased(controller) == ["osg1", "osg2"]


# Killed


def start_three(controller):
    start(controller, 3, "osg")


def start_one(controller):
    start(controller, 1, "osg")


def stop_all(controller):
    stop(controller, 0, "osg", timeout=0)


def look(controller):
    Backfill(controller).look()


@pytest.fixture
def site(pillar, tmp_path, impatient, monkeypatch):
    """Two leases are wanted; one is lost, that of osg2 has a node, and osg3's node sleeps without one."""
    monkeypatch.setattr(backfilling, "END_SECONDS", 0.2)
    monkeypatch.setattr(backfilling, "_POLL", 0.01)
    directory = tmp_path / "site"
    directory.mkdir()
    controller = neighbours.controller(pillar, directory)
    made = Site(directory, controller)
    grow(controller, parse_nodes("osg[2-3]"), "osg", host="hv1")
    suspend(controller, ["osg3"], by="alice", why="")
    start(controller, 2, "osg")
    controller.slurm.queue_lease(5, "osg2", "hv1")
    cancel(controller, *set(leased(controller)) - {"osg2"})
    controller.ledger.close()
    made.keep()
    return made


ACTS = {start_three: (2, 3), start_one: (1, 2), stop_all: (0, 2), look: (2,)}


def assert_as_many_as_wanted(controller, wanted):
    """When the engine has looked, and what had begun has ended: as many as was said before or is said now."""
    Backfill(controller).look()
    target = targets.wanted(controller, controller.site.pool("osg"))
    assert target in wanted
    if target:
        assert len(leased(controller)) == target
        assert target == 1 or "osg3" in leased(controller)
    return target


@pytest.mark.parametrize(("act", "wanted"), ACTS.items(), ids=[each.__name__ for each in ACTS])
def test_wherever_it_is_killed_the_engine_goes_on_to_what_is_wanted(act, wanted, site):
    number, reached = 0, set()
    while moment := site.run(act, number := number + 1, may_fail=False):
        controller = site.open()
        try:
            reached.add(assert_as_many_as_wanted(controller, wanted))
        except Exception as err:
            raise AssertionError(f"{act.__name__} killed {moment}: {err}") from err
        finally:
            controller.ledger.close()
        site.put_back()
    assert reached == set(wanted)


@pytest.mark.parametrize("loss", [loss for who, loss in LOSSES if who == "slurm"], ids=lambda loss: loss.__name__)
@pytest.mark.parametrize(("act", "wanted"), ACTS.items(), ids=[each.__name__ for each in ACTS])
def test_whichever_call_to_slurm_is_lost_the_engine_goes_on_to_what_is_wanted(act, wanted, loss, site):
    number = 0
    while moment := site.lose(act, "slurm", loss, number := number + 1):
        controller = site.open()
        try:
            assert_as_many_as_wanted(controller, wanted)
        except Exception as err:
            raise AssertionError(f"{act.__name__}, {moment}: {err}") from err
        finally:
            controller.ledger.close()
        site.put_back()
    assert number > 1
