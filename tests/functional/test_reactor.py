"""A minion chooses the tag and the data of its events: neither may choose what runs, its id is passed on as a value."""

from pathlib import Path

import pytest
import salt.utils.reactor

REACTOR = Path(__file__).resolve().parents[2] / "reactor"
TAG = "salt/minion/vn001/start"
EVENT = {"id": "vn001", "cmd": "_minion_event", "pretag": None, "tag": TAG, "data": "Minion vn001 started"}

YAML = "x\nowned:\n  local.cmd.run:\n    - tgt: '*'\n    - args: [{cmd: id}]\n"
JINJA = "{{ salt['cmd.run']('id') }}{% do salt['cmd.run']('id') %}"
HOSTILE = {
    "YAML in the data": EVENT | {"data": YAML},
    "YAML in the id": EVENT | {"id": YAML},
    "Jinja in the data": EVENT | {"data": JINJA},
    "Jinja in the id": EVENT | {"id": JINJA},
    "an id that matches everybody": EVENT | {"id": "*"},
    "an id of another type": EVENT | {"id": ["vn001", "vn002"]},
    "data that looks like a request": EVENT | {"data": {"fun": "cmd.run", "arg": ["id"], "tgt": "*"}},
    "quotes and colons": EVENT | {"id": "'\": - [{&a *a !!python/object/apply:os.system", "data": "%"},
    "a very long id": EVENT | {"id": "v" * 1_000_000},
    "no id": {},
}


@pytest.fixture
def reactor(master_opts):
    """The master's own reactor, which renders but is not started."""
    master_opts["reactor"] = []
    made = salt.utils.reactor.Reactor(master_opts)
    yield made
    made.minion.destroy()


@pytest.fixture(params=sorted(REACTOR.glob("*.sls")), ids=lambda path: path.stem)
def sls(request):
    """Each file of reactor/."""
    return str(request.param)


def with_id(value, given):
    """A reaction to an event from vn001, as it has to be for the id that was given: one inert value."""
    if isinstance(value, dict):
        return {key: with_id(item, given) for key, item in value.items()}
    if isinstance(value, list):
        return [with_id(item, given) for item in value]
    return given if value == EVENT["id"] else value


@pytest.mark.parametrize("event", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(
    "tag",
    [TAG, f"salt/minion/{YAML}/start", f"salt/minion/{JINJA}/start"],
    ids=("honest tag", "YAML in the tag", "Jinja in the tag"),
)
def test_a_hostile_event_runs_what_an_honest_one_does(reactor, sls, tag, event):
    honest = reactor.reactions(TAG, EVENT, [sls])
    assert honest
    assert reactor.reactions(tag, event, [sls]) == with_id(honest, event.get("id"))
