"""The engine of backfill goes on, whatever is away or has changed meanwhile."""

import importlib.util
from pathlib import Path

import pytest

from saltmarsh.backfilling import start
from saltmarsh.leasing import leases
from saltmarsh.pools import Site

ENGINE = Path(__file__).resolve().parents[2] / "salt/_engines/backfill.py"


class Over(Exception):
    """The test has seen enough."""


@pytest.fixture
def run(controller, pillar, monkeypatch):
    """A function that runs the engine; each time it sleeps the next act is done, and after the last it ends."""
    spec = importlib.util.spec_from_file_location("engine_backfill", ENGINE)
    engine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(engine)
    engine.__opts__ = {}
    engine.opened = []
    monkeypatch.setattr(engine, "_PILLAR", 0)
    monkeypatch.setattr(engine.Controller, "open", lambda opts: engine.opened.append(controller) or controller)
    monkeypatch.setattr("saltmarsh.controller.read_site", lambda opts: Site.from_pillar(pillar))

    def run_engine(*acts):
        waiting = iter(acts)

        def sleep(seconds):
            if (act := next(waiting, None)) is None:
                raise Over
            act()

        monkeypatch.setattr(engine.time, "sleep", sleep)
        with pytest.raises(Over):
            engine.start()
        return len(engine.opened)

    return run_engine


def test_while_slurm_is_away_it_waits_and_then_goes_on(controller, slurm, run, caplog):
    start(controller, 1, "osg")
    slurm.cancel_jobs([job.id for job in slurm.jobs()])
    slurm.reachable = False

    def come_back():
        slurm.reachable = True

    run(come_back, lambda: None)
    assert "engine backfill waits: slurmctld on ctl does not answer" in caplog.text
    assert leases(controller).keys() == {"osg1"}


def test_it_begins_anew_when_pillar_has_changed(pillar, run):
    def change():
        pillar["elastic"]["pools"].pop("osg")

    assert run(lambda: None, lambda: None) == 1
    assert run(lambda: None, change, lambda: None) == 1 + 2
