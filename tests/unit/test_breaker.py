"""A pool whose nodes fail again and again is stopped; one whose provider has no room is left in peace for a while."""

import pytest
from views import assert_untouched, states

from saltmarsh import breaker, reporting
from saltmarsh.errors import (
    BadConfiguration,
    NoCapacity,
    OperationFailed,
    ProviderError,
    QuotaExceeded,
    Stopped,
    Throttled,
    Unreachable,
)
from saltmarsh.growing import grow, plan
from saltmarsh.model import State
from saltmarsh.reconciling import answer_slurm, reconcile

NODES = ("osg1", "osg2", "osg3", "osg4")


@pytest.fixture
def clock(monkeypatch):
    """The time by which pools are held; a test sets it forward."""

    class Clock:
        now = 1_000_000.0

    monkeypatch.setattr("saltmarsh.breaker.time.time", lambda: Clock.now)
    return Clock


def fail_to_boot(controller, minions, times=1):
    """A node is made, and its states can't be applied; again and again."""
    broken = {name: {"a": {"__id__": "gate", "result": False, "comment": "no /home"}} for name in NODES}
    minions.answers.update(broken)
    for _ in range(times):
        with pytest.raises(OperationFailed):
            grow(controller, 1, "osg")
    minions.answers.clear()


def refuse(controller, provider, kind, names=NODES):
    """The driver meets an error when it makes machines."""
    for name in names:
        provider.fail("create", name, "says no", kind)
    with pytest.raises(OperationFailed):
        grow(controller, 1, "osg")
    for name in names:
        provider.mend("create", name)


def test_after_three_nodes_in_a_row_have_failed_a_pool_grows_no_more(controller, minions, provider):
    for _ in range(3):
        assert breaker.stops(controller) == {}
        fail_to_boot(controller, minions)
    for ask in (grow, plan):
        with pytest.raises(Stopped) as raised:
            ask(controller, 1, "osg")
        assert str(raised.value) == (
            "pool osg is stopped: 3 nodes in a row have failed, the last: highstate failed: gate: no /home; "
            "look into it, then: salt-run elastic.reset osg"
        )
    assert provider.machines() == {}
    assert reporting.pools(controller)["osg"]["stopped"].startswith("3 nodes in a row have failed")
    assert "stopped" not in reporting.pools(controller)["virtual"]
    grow(controller, 1, "virtual")


def test_one_that_becomes_ready_breaks_the_row(controller, minions):
    fail_to_boot(controller, minions, 2)
    grow(controller, 1, "osg")
    fail_to_boot(controller, minions, 2)
    assert breaker.stops(controller) == {}


def test_reset_lets_a_pool_grow_and_begins_to_count_anew(controller, minions):
    fail_to_boot(controller, minions, 3)
    assert breaker.reset(controller, controller.site.pool("osg")).startswith("3 nodes in a row")
    assert breaker.reset(controller, controller.site.pool("osg")) == ""
    fail_to_boot(controller, minions, 2)
    grow(controller, 1, "osg")
    assert states(controller) == {"osg1": State.READY}


def test_another_image_begins_anew(controller, minions):
    fail_to_boot(controller, minions, 3)
    object.__setattr__(controller.site.pools["osg"], "image", "better.qcow2")
    assert breaker.stops(controller) == {}


def test_a_configuration_that_the_provider_refuses_stops_a_pool_at_once(controller, provider):
    refuse(controller, provider, BadConfiguration)
    with pytest.raises(Stopped, match="pool osg is stopped: says no; look into it"):
        grow(controller, 1, "osg")


HELD = {Throttled: 60, NoCapacity: 120, QuotaExceeded: 600}


@pytest.mark.parametrize(("kind", "seconds"), HELD.items(), ids=lambda value: getattr(value, "__name__", value))
def test_what_passes_by_itself_holds_slurm_off_for_a_while_and_not_the_administrator(
    controller, provider, clock, kind, seconds
):
    for _ in range(5):
        refuse(controller, provider, kind)
    assert breaker.stops(controller)["osg"].why == "says no"
    grow(controller, 1, "osg")
    refuse(controller, provider, kind)
    clock.now += seconds - 1
    assert set(breaker.stops(controller)) == {"osg"}
    clock.now += 1
    assert breaker.stops(controller) == {}


def test_a_host_that_does_not_answer_is_no_fault_of_the_image(controller, provider):
    for _ in range(5):
        refuse(controller, provider, Unreachable)
    assert breaker.stops(controller) == {}


@pytest.mark.parametrize("kind", [ProviderError, None], ids=["refused", "of unknown kind"])
def test_machines_that_can_not_be_made_count_as_failures(controller, provider, kind):
    for _ in range(3):
        refuse(controller, provider, kind)
    assert set(breaker.stops(controller)) == {"osg"}


class TestOnDemand:
    @pytest.fixture
    def pillar(self, pillar):
        pillar["elastic"]["pools"]["osg"]["on_demand"] = True
        return pillar

    @pytest.fixture
    def controller(self, controller):
        reconcile(controller)
        return controller

    def startable(self, controller):
        return {name for name, node in controller.slurm.nodes().items() if node.startable}

    def test_slurm_may_start_nothing_of_a_pool_that_is_stopped_until_it_is_reset(self, controller, slurm, minions):
        fail_to_boot(controller, minions, 3)
        found = {each.finding.subject: each.finding.why for each, _ in reconcile(controller)}
        assert found["osg"].startswith("pool osg does not grow, and waits to be reset: 3 nodes in a row have failed")
        assert self.startable(controller) == set()
        breaker.reset(controller, controller.site.pool("osg"))
        reconcile(controller)
        assert self.startable(controller) == set(NODES)

    def test_a_job_for_which_nodes_fail_again_and_again_ends_in_the_queue(self, controller, slurm, minions, provider):
        broken = {name: {"a": {"__id__": "gate", "result": False, "comment": "no /home"}} for name in NODES}
        minions.answers.update(broken)
        for number in range(1, 4):
            slurm.want(sorted(self.startable(controller))[0], job=number)
            answer_slurm(controller)
            reconcile(controller)
        assert slurm.killed == [1, 2, 3]
        assert self.startable(controller) == set()
        assert provider.machines() == {}

    def test_what_slurm_has_asked_for_meanwhile_is_given_back(self, controller, slurm, minions):
        slurm.want("osg4", job=17)
        fail_to_boot(controller, minions, 3)
        answer_slurm(controller)
        assert slurm.killed == [17]
        assert "osg4" not in self.startable(controller)

    def test_a_lost_image_holds_slurm_off_until_it_may_be_back(self, controller, slurm, clock):
        object.__setattr__(controller.site.pools["osg"], "image", "lost.qcow2")
        slurm.want("osg1", job=17)
        answer_slurm(controller)
        reconcile(controller)
        assert self.startable(controller) == set()
        clock.now += 300
        reconcile(controller)
        assert self.startable(controller) == set(NODES)


def test_what_can_not_be_read_stops_nobody(controller):
    (controller.ledger.path.parent / "stops.json").write_text("[]")
    assert breaker.stops(controller) == {}
    assert_untouched(controller)
