"""The ledger against a model of it: whatever is called in whatever order, both say the same."""

import contextlib
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from saltmarsh.errors import Conflict, NotEnoughFree
from saltmarsh.ledger import RESTING, Ledger
from saltmarsh.model import TRANSITIONS, State
from saltmarsh.pools import Site

NAMES = [f"n{number}" for number in range(1, 7)]
MAX_NODES = 5
POOL = Site.from_pillar(
    {
        "elastic": {
            "cluster": "lab",
            "controller": {"name": "ctl", "address": "10.77.0.1"},
            "network": {"prefix": 24, "nameservers": ["10.77.0.1"]},
            "hosts": {},
            "pools": {
                "small": {
                    "nodes": "n[1-6]",
                    "addresses": "10.77.0.11-16",
                    "profile": "small",
                    "image": "node",
                    "cpus": 1,
                    "memory": 256,
                    "partition": "small",
                    "limits": {"max_nodes": MAX_NODES},
                }
            },
        }
    }
).pool()

some_names = st.sets(st.sampled_from(NAMES), min_size=1, max_size=4)


class LedgerMachine(RuleBasedStateMachine):
    """Compares the ledger with two dictionaries: the state of each node, and the operation that holds it."""

    @initialize()
    def open(self):
        self.stack = contextlib.ExitStack()
        scratch = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.ledger = self.stack.enter_context(Ledger(Path(scratch) / "ledger"))
        self.state = {}
        self.holder = {}
        self.unfinished = []

    def teardown(self):
        self.stack.close()

    def begun(self, operation, names, state):
        self.unfinished.append(operation)
        self.state |= dict.fromkeys(names, state)
        self.holder |= dict.fromkeys(names, operation.id)

    @rule(count=st.integers(1, 7))
    def claim_some(self, count):
        names = [name for name in NAMES if name not in self.state][:count]
        with refused(NotEnoughFree, len(names) < count or len(self.state) + count > MAX_NODES):
            operation, _ = self.ledger.claim("grow", POOL, count=count)
            self.begun(operation, names, State.CLAIMED)

    @rule(names=some_names)
    def claim_these(self, names):
        taken = not names.isdisjoint(self.state)
        with refused(Conflict if taken else NotEnoughFree, taken or len(self.state) + len(names) > MAX_NODES):
            operation, _ = self.ledger.claim("grow", POOL, names=names)
            self.begun(operation, names, State.CLAIMED)

    @rule(data=st.data(), expect=st.sets(st.sampled_from(State), min_size=4), to=st.sampled_from(State))
    def begin(self, data, expect, to):
        idle = sorted(self.state.keys() - self.holder.keys())
        names = data.draw((st.sets(st.sampled_from(idle), min_size=1) if idle else st.nothing()) | some_names)
        allowed = all(
            self.state.get(name) in expect and name not in self.holder and to in TRANSITIONS[self.state[name]]
            for name in names
        )
        with refused(Conflict, not allowed):
            operation, _ = self.ledger.begin("shrink", POOL.name, names, expect=expect, to=to, reason="because")
            self.begun(operation, names, to)

    @precondition(lambda self: self.unfinished)
    @rule(data=st.data())
    def move(self, data):
        operation = data.draw(st.sampled_from(self.unfinished))
        held = sorted(name for name, holder in self.holder.items() if holder == operation.id)
        names = data.draw(st.sets(st.sampled_from(held), min_size=1) if held else some_names)
        to = data.draw(st.sampled_from(sorted(TRANSITIONS[self.state[min(names)]]) if held else list(State)))
        allowed = held and all(to in TRANSITIONS[self.state[name]] for name in names)
        with refused(Conflict, not allowed):
            self.ledger.move(operation, names, to, reason="because")
            self.state |= dict.fromkeys(names, to)
            for name in [name for name in names if to is State.FREE]:
                del self.state[name], self.holder[name]

    @precondition(lambda self: self.unfinished)
    @rule(data=st.data())
    def finish(self, data):
        operation = data.draw(st.sampled_from(self.unfinished))
        self.ledger.finish(operation)
        self.unfinished.remove(operation)
        for name in [name for name, holder in self.holder.items() if holder == operation.id]:
            del self.holder[name]
            if self.state[name] not in RESTING:
                self.state[name] = State.FAILED

    @invariant()
    def nodes_are_as_the_model_says(self):
        nodes = self.ledger.nodes()
        assert {node.name: node.state for node in nodes} == self.state
        assert {node.name: node.operation for node in nodes if node.operation is not None} == self.holder
        assert {node.name: node.address for node in nodes} == {name: POOL.address_of(name) for name in self.state}
        assert set(self.ledger.free_names(POOL)) == set(NAMES) - self.state.keys()

    @invariant()
    def operations_are_as_the_model_says(self):
        assert [operation.id for operation in self.ledger.operations()] == [each.id for each in self.unfinished]

    @invariant()
    def history_leads_without_a_gap_to_the_present(self):
        for name in NAMES:
            steps = self.ledger.history(name)
            assert [State.FREE, *[step.after for step in steps]] == [
                *[step.before for step in steps],
                self.state.get(name, State.FREE),
            ]


@contextlib.contextmanager
def refused(error, expected):
    """Expect the error, or no error."""
    try:
        yield
    except error:
        assert expected
    else:
        assert not expected


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
