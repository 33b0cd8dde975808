"""The engine reads events as hints: names, and nothing else."""

import importlib.util
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from saltmarsh import joining
from saltmarsh.errors import PillarError
from saltmarsh.pools import Site

ENGINE = Path(__file__).resolve().parents[2] / "salt/_engines/elastic.py"


@pytest.fixture
def engine():
    """The engine's module, as Salt loads it."""
    spec = importlib.util.spec_from_file_location("engine_elastic", ENGINE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Bus:
    """A bus with events on it."""

    def __init__(self, *events):
        self.events = list(events)

    def get_event(self, tag, wait):
        assert tag == "saltmarsh/nudge"
        return self.events.pop(0) if self.events else None


EVENTS = {
    "one": ([{"nodes": ["vn001"]}], {"vn001"}),
    "several of one moment": ([{"nodes": ["vn001"]}, {"nodes": ["vn002", "vn001"]}], {"vn001", "vn002"}),
    "none": ([], set()),
    "look at all": ([{"nodes": []}], set()),
    "no list": ([{"nodes": "vn001"}], set()),
    "what is no name": ([{"nodes": [1, None, ["vn001"], {"vn001": 1}, True, "vn002"]}], {"vn002"}),
    "a minion's own event": ([{"id": "vn001", "cmd": "_minion_event", "data": {"nodes": ["vn002"]}}], set()),
    "a mapping": ([{"nodes": {"vn001": "cmd.run"}}], set()),
}


@pytest.mark.parametrize(("events", "names"), EVENTS.values(), ids=EVENTS)
def test_hints_are_names_and_nothing_else(engine, events, names):
    assert engine._hints(Bus(*events)) == names


def test_events_without_end_do_not_keep_the_engine_from_its_work(engine, monkeypatch):
    class Flood:
        def get_event(self, tag, wait):
            return {"nodes": ["vn001"]}

    monkeypatch.setattr(engine, "_MOMENT", 0.05)
    assert engine._hints(Flood()) == {"vn001"}


@pytest.fixture
def pillar_as_it_is_now(engine, monkeypatch):
    """What the engine reads from pillar; a test changes it."""
    now = {}

    def read(opts):
        if isinstance(now["pillar"], Exception):
            raise now["pillar"]
        return Site.from_pillar(now["pillar"])

    engine.__opts__ = {}
    monkeypatch.setattr("saltmarsh.controller.read_site", read)
    return now


def test_the_engine_begins_anew_when_pillar_has_changed(engine, controller, pillar, pillar_as_it_is_now):
    pillar_as_it_is_now["pillar"] = pillar
    assert not engine.pillar_has_changed({}, controller.site)
    pillar["elastic"]["pools"]["osg"]["on_demand"] = True
    assert engine.pillar_has_changed({}, controller.site)


def test_the_engine_goes_on_with_what_it_knows_while_pillar_is_broken(engine, controller, pillar_as_it_is_now, caplog):
    pillar_as_it_is_now["pillar"] = PillarError("elastic:pools:osg:memory: expected a whole number")
    assert not engine.pillar_has_changed({}, controller.site)
    assert "goes on with what it was: elastic:pools:osg:memory" in caplog.text


class Over(Exception):
    """The test has seen enough."""


class BusUntil:
    """A bus without events, until something has come true."""

    def __init__(self, condition):
        self._condition = condition
        self._end = time.monotonic() + 10

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def subscribe(self, tag):
        pass

    def get_event(self, tag, wait):
        if self._condition() or time.monotonic() > self._end:
            raise Over
        time.sleep(0.01)


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "while a grow joins nodes"])
def test_the_engine_reconciles_whoever_joins_nodes(engine, controller, slurm, monkeypatch, alone):
    engine.__opts__ = {"sock_dir": ""}
    monkeypatch.setattr(engine.Controller, "open", lambda opts: controller)
    monkeypatch.setattr("saltmarsh.controller.read_site", lambda opts: controller.site)
    monkeypatch.setattr(engine.bell, "rung", lambda: False)

    def mended():
        return slurm.nodes()["osg3"].absent and not controller.ledger.operations()

    monkeypatch.setattr(engine.salt.utils.event, "get_master_event", lambda *_, **__: BusUntil(mended))
    slurm.resume_by_hand("osg3")
    with nullcontext() if alone else joining.joiner(controller):
        with pytest.raises(Over):
            engine._serve(0.05, 900, None)
    assert mended()
    with joining.joiner(controller) as joiner:
        assert joiner  # the engine holds it no more
