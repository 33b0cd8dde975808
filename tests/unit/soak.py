"""
An hour of a site in a few minutes, see ``make soak``: nodes come and go, and whoever acts is killed again and again.

Time is virtual: it passes between two steps. What is done follows from the seed, which is printed; ``SEED=`` gives one.
"""

import os
import random
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import neighbours
import pytest
from deadly import LOSSES, Site
from test_elastic_random import JOBS, assert_all_agree, grow_some, names, resume_some, shrink_some, suspend_some

from saltmarsh import breaker, recovery
from saltmarsh.errors import SaltmarshError
from saltmarsh.growing import grow
from saltmarsh.model import State
from saltmarsh.reconciling import reconcile
from saltmarsh.resuming import resume

HOUR = 3600
GRACE = 120
STEP = (1, 12)  # seconds
NO_CALL = 10**9
VERBS = {"grow", "shrink", "suspend", "resume", "reconcile"}


def engine(controller, count):
    """What the engine does every 15 seconds."""
    recovery.recover_abandoned(controller)
    reconcile(controller, grace=GRACE)


def resume_failed(controller, count):
    """An administrator takes care of nodes that failed on their way back."""
    for name in names(controller, State.FAILED)[:count]:
        resume(controller, [name])


def grow_what_fails(controller, count):
    """Of one node the machine is made, and the driver does not know it."""
    controller.minions.provider.fail("created", f"osg{count}", "connection lost")
    grow(controller, count, "osg")


ACTS = (grow_some, grow_some, grow_what_fails, shrink_some, suspend_some, resume_some, resume_failed, engine, engine)


class Hour:
    """What happens by itself, and what is done, by the dice."""

    def __init__(self, site, dice, clock):
        self.site = site
        self.dice = dice
        self.clock = clock

    def live(self):
        """One hour."""
        while self.clock.passed < HOUR:
            [event] = self.dice.choices(list(self.EVENTS), self.EVENTS.values())
            self.by_itself(self.site.open(), event)
            self.act(self.dice.choice(ACTS))
            self.clock.passed += self.dice.uniform(*STEP)
            self.act(engine)

    def act(self, what):
        """Something is done; often its process or a neighbour of it is killed meanwhile."""
        count, moment, fate = self.dice.randint(1, 4), self.dice.randint(1, 50), self.dice.random()
        who, loss = self.dice.choice(LOSSES)
        if fate < 0.15:
            self.site.lose(lambda controller: what(controller, count), who, loss, moment)
        else:
            self.site.run(lambda controller: what(controller, count), moment if fate < 0.4 else NO_CALL)

    def by_itself(self, controller, what):
        """Something happens in Slurm or to a host, or somebody sees to what has stopped."""
        what(self, controller)
        for name in controller.site.pool("osg").nodes:
            controller.minions.provider.mend("created", name)
        for pool in controller.site.pools.values():
            breaker.reset(controller, pool)
        controller.ledger.close()

    def start_a_job(self, controller):
        free = [name for name in self._idle(controller) if name in names(controller, State.READY)]
        if free:
            number = next(number for number in JOBS if not controller.slurm.job_states(number))
            controller.slurm.start_job(number, ",".join(self._some(free)))

    def end_a_job(self, controller):
        if running := [job.id for job in controller.slurm.jobs() if job.states == {"RUNNING"}]:
            controller.slurm.end_job(self.dice.choice(running))

    def want_nodes(self, controller):
        known = controller.slurm.nodes(controller.site.pool("osg").nodes)
        if startable := [name for name, node in known.items() if node.startable]:
            number = next(number for number in range(JOBS.stop, NO_CALL) if not controller.slurm.job_states(number))
            controller.slurm.want(",".join(self._some(startable)), job=number)

    def give_one_up(self, controller):
        if controller.site.pool("osg").on_demand and (idle := self._idle(controller)):
            controller.slurm.give_up(self.dice.choice(idle))

    def lose_a_machine(self, controller):
        if idle := self._idle(controller):
            name = self.dice.choice(idle)
            (controller.minions.provider.machine_files / name).unlink(missing_ok=True)
            controller.slurm.lose(name)

    def leave_something(self, controller):
        """A machine, or volumes without one, of a name that nobody has."""
        provider = controller.minions.provider
        taken = {node.name for node in controller.ledger.nodes()} | provider.machines().keys()
        if free := set(controller.site.pool("osg").nodes) - taken:
            name = self.dice.choice(sorted(free))
            if self.dice.random() < 0.5:
                provider.add(name)
            else:
                (provider.volumes / name).touch()

    def lose_a_host(self, controller):
        controller.minions.provider.fail("host", "hv1", "no route")

    def find_it_again(self, controller):
        controller.minions.provider.mend("host", "hv1")

    # How often, one beside the other.
    EVENTS = {  # noqa: RUF012
        start_a_job: 8, end_a_job: 6, want_nodes: 6, give_one_up: 4, lose_a_machine: 2, leave_something: 1,
        lose_a_host: 2, find_it_again: 6,
    }  # fmt: skip

    def _idle(self, controller):
        busy = {name for job in controller.slurm.jobs() for name in job.nodes}
        return [name for name in names(controller, State.READY) if controller.slurm.usable(name) and name not in busy]

    def _some(self, found):
        return found[: self.dice.randint(1, 4)]

    def settle(self):
        """Everything is there again, and nobody does anything but the engine, and who sees to failed nodes."""
        controller = self.site.open()
        self.find_it_again(controller)
        for _ in range(3 * GRACE // 15):
            self.clock.passed += 15
            engine(controller, 0)
            with suppress(SaltmarshError):  # what has nothing to be resumed from is removed
                resume_failed(controller, 4)
        return controller


@pytest.fixture
def clock(monkeypatch):
    """Time that passes by ``passed`` besides."""

    class Clock:
        passed = 0.0

    made, real = Clock(), time.time
    monkeypatch.setattr(time, "time", lambda: real() + made.passed)
    return made


@pytest.mark.parametrize("on_demand", [False, True], ids=["by hand", "on demand"])
def test_after_an_hour_of_whatever_happens_all_agree_and_no_job_is_lost(pillar, controller, clock, on_demand):
    seed = int(os.environ.get("SEED", 0)) or random.SystemRandom().randrange(1, 10**6)
    print(f"SEED={seed}")
    pillar["elastic"]["pools"]["osg"] |= {"on_demand": on_demand, "limits": {"boot_timeout": 5}}
    with tempfile.TemporaryDirectory() as directory:
        site = Site(Path(directory), neighbours.controller(pillar, Path(directory)))
        hour = Hour(site, random.Random(seed), clock)
        hour.live()
        controller = hour.settle()
        for verb, done, count, _ in controller.ledger.totals():
            print(f"{verb}: {count}{'' if done else ' not done'}")
        assert_all_agree(controller)
        assert {verb for verb, done, _, _ in controller.ledger.totals() if done} >= VERBS
        controller.ledger.close()
