"""salt-run elastic: an answer, or one line and an exit status; test=True changes nothing."""

import functools
import importlib.util
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import neighbours
import pytest
import salt.scripts
from views import assert_suspended, assert_untouched, assert_working, states

from saltmarsh import breaker, growing, migrating, resuming, shrinking, suspending
from saltmarsh.errors import LedgerError, PillarError
from saltmarsh.model import State

FORK = multiprocessing.get_context("fork")
RUNNER = Path(__file__).resolve().parents[2] / "salt/_runners/elastic.py"


@pytest.fixture
def runner(controller, monkeypatch):
    """The runner's module as Salt loads it, with the controller among neighbours."""
    spec = importlib.util.spec_from_file_location("runner_elastic", RUNNER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.__opts__ = {"user": "root"}
    module.__context__ = {}
    monkeypatch.setattr(sys, "argv", ["/usr/bin/salt-run"])
    monkeypatch.setattr(module.Controller, "open", lambda opts: controller)
    return module


def error(runner, function, *args, **kwargs):
    """The line and the exit status of a call that must be refused; Salt is told the status, too."""
    answer = getattr(runner, function)(*args, **kwargs)
    assert set(answer) == {"error", "retcode"}
    assert runner.__context__ == {"retcode": answer["retcode"]}
    assert "\n" not in answer["error"]
    return answer["error"], answer["retcode"]


# Answers


def test_grow_status_history_and_shrink(runner, controller):
    assert set(runner.grow(2, pool="osg")["nodes"]) == {"osg1", "osg2"}
    assert {name: node["state"] for name, node in runner.status().items()} == {"osg1": "ready", "osg2": "ready"}
    assert set(runner.status("osg[1-4]")) == {"osg1", "osg2", "osg3", "osg4"}
    assert runner.pools()["osg"]["ready"] == 2
    assert runner.history("osg1")[-1]["to"] == "ready"
    assert runner.shrink("osg[1-2]") == {"gone": ["osg1", "osg2"]}
    assert runner.status() == {}
    assert runner.__context__ == {}


def test_suspend_resume_and_migrate(runner, controller, slurm, monkeypatch):
    monkeypatch.setenv("SUDO_USER", "alice")
    runner.grow(2, pool="osg")
    slurm.start_job(17, "osg[1-2]")
    assert set(runner.suspend("osg1", reason="a disk", urgent=True)) == {"osg1", "osg2"}
    assert_suspended(controller, ["osg1", "osg2"], [17])
    row = runner.status()["osg1"]
    assert (row["state"], row["jobs"], set(row["memory"])) == ("suspended", [17], {"file", "size", "age"})
    assert row["reason"].startswith("suspended by alice at 2")
    assert row["reason"].endswith(": a disk")
    assert runner.resume("osg[1-2]", host="hv2")["osg1"]["host"] == "hv2"
    assert runner.migrate("osg1", "hv1")["osg2"]["host"] == "hv1"
    assert runner.migrate("osg1", host="hv2", live=True)["osg1"]["host"] == "hv2"
    assert_working(controller, ["osg1", "osg2"], [17])
    assert "memory" not in runner.status()["osg1"]
    assert runner.__context__ == {}


def test_checkpoint_restore_and_discard(runner, controller, slurm, monkeypatch):
    monkeypatch.setenv("SUDO_USER", "alice")
    runner.grow(1, pool="osg")
    slurm.start_job(17, "osg1")
    assert runner.checkpoint("osg1", reason="the big step")["checkpoint"] == 1
    kept = runner.checkpoints("osg1")[1]
    assert (kept["by"], kept["why"], kept["jobs"]) == ("alice", "the big step", ["17"])
    assert runner.restore("osg1", checkpoint=1)["jobs"] == ["17"]
    assert_working(controller, ["osg1"], [17])
    assert runner.discard("osg1", 1) == {"discarded": 1}
    assert runner.checkpoints("osg1") == {}
    assert runner.__context__ == {}


def test_reconcile_says_what_differs_and_mends_it(runner, slurm):
    slurm.resume_by_hand("osg3")
    assert [row["when"] for row in runner.reconcile(test=True)["osg3"]] == ["now"]
    assert slurm.nodes()["osg3"].startable
    assert set(runner.reconcile()) == {"osg3"}
    assert slurm.nodes()["osg3"].absent
    assert runner.reconcile() == {}


def test_reset_says_what_had_stopped_a_pool(runner, controller):
    pool = controller.site.pool("osg")
    breaker.note(controller, pool, 0, {f"osg{number}": ("no /home", None) for number in (1, 2, 3)})
    assert runner.pools()["osg"]["stopped"] == "3 nodes in a row have failed, the last: no /home"
    assert error(runner, "grow", 1, pool="osg")[1] == 1
    runner.__context__.clear()
    assert runner.reset("osg") == {"osg": "3 nodes in a row have failed, the last: no /home"}
    assert set(runner.grow(1, pool="osg")["nodes"]) == {"osg1"}


def test_names_say_their_pool(runner):
    assert set(runner.grow("vn[003-004]")["nodes"]) == {"vn003", "vn004"}


def test_numbers_may_come_as_text(runner, controller):
    assert set(runner.grow("1", "osg")["nodes"]) == {"osg1"}


def test_what_salt_adds_to_the_arguments_is_ignored(runner):
    assert set(runner.grow(1, pool="osg", __pub_user="root", __pub_fun="runner.elastic.grow")["nodes"]) == {"osg1"}


def test_the_history_says_who_shrank(runner, monkeypatch):
    monkeypatch.setenv("SUDO_USER", "alice")
    runner.grow(1, pool="osg")
    runner.shrink(1, pool="osg")
    assert runner.history("osg1")[-2]["reason"] == "shrink by alice"


def test_operations_of_dead_processes_are_ended_first(runner, controller):
    operation, _ = controller.ledger.claim("grow", controller.site.pool("osg"), count=4)
    controller.ledger.abandon(operation)
    assert set(runner.grow(4, pool="osg")["nodes"]) == {"osg1", "osg2", "osg3", "osg4"}


def test_progress_goes_to_standard_error_of_salt_run(runner, capsys):
    runner.grow(1, pool="osg")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0].endswith(" s  osg1: claimed")


# In the master, for a user of the API


@pytest.fixture
def served(runner, monkeypatch):
    """The runner as the master calls it for the user "scripts", itself started with sudo."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/salt-master"])
    monkeypatch.setenv("SUDO_USER", "alice")
    runner.__user__ = "scripts"
    return runner


def test_the_history_says_which_user_of_the_api_asked(served):
    served.grow(1, pool="osg")
    served.shrink(1, pool="osg")
    assert served.history("osg1")[-2]["reason"] == "shrink by scripts"


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [("grow", (1,), {"pool": "osg", "map_out": "{}"}), ("timeline", ("{}",), {}), ("timeline", (), {"out": "{}"})],
)
def test_nobody_lets_the_master_write_a_file(served, controller, tmp_path, function, args, kwargs):
    path = str(tmp_path / "x.svg")
    said, status = error(
        served, function, *(a if a == 1 else path for a in args), **{k: v.format(path) for k, v in kwargs.items()}
    )
    assert said.endswith(f"='{path}': only salt-run on the controller writes files")
    assert status == 2
    assert not list(tmp_path.glob("*.svg"))
    assert states(controller) == {}


# Bad input

GROW = {
    "zero": ((0,), {}, "expected a number of nodes above 0 or a hostlist such as vn[001-004], got 0"),
    "negative": ((-1,), {}, "expected a number of nodes above 0 or"),
    "a fraction": ((1.5,), {}, "expected a number of nodes above 0 or"),
    "a bool": ((True,), {}, "expected a number of nodes above 0 or"),
    "nothing": ((None,), {}, "expected a number of nodes above 0 or"),
    "a list": (([1, 2],), {}, "expected a number of nodes above 0 or"),
    "no hostlist": (("vn[001",), {}, "'vn[001' is not a hostlist such as vn[001-004]: "),
    "a group": (("@all",), {}, "'@all' is not a hostlist such as vn[001-004]: '@' can't stand in it"),
    "no count": ((), {}, "missing a required argument: 'what'; arguments are what, pool, "),
    "too many arguments": ((1, 2, 3, 4, 5, 6, 7, 8), {}, "too many positional arguments; arguments are what, pool, "),
    "an argument that does not exist": (
        (1,),
        {"pol": "osg"},
        "got an unexpected keyword argument 'pol'; arg",
    ),
    "a pool that does not exist": ((1,), {"pool": "gpu"}, "pool 'gpu' does not exist; pools: osg, virtual"),
    "a pool that is no text": ((1,), {"pool": 7}, "pool=7: expected text"),
    "no pool": ((1,), {}, "which pool? name one with pool=; pools: osg, virtual"),
    "nodes of another pool": (
        ("osg1",),
        {"pool": "virtual"},
        "osg1 is not of pool virtual, whose",
    ),
    "nodes of two pools": (("osg1,vn001",), {}, "osg1,vn001 are of several pools (osg, virtual): one at a time"),
    "min above the count": ((1,), {"pool": "osg", "min": 2}, "min=2: expected a number from 1 to 1"),
    "min as text": ((1,), {"pool": "osg", "min": "one"}, "min=one: expected a number from 1 to 1"),
    "a host that does not exist": ((1,), {"pool": "osg", "host": "hv9"}, "host 'hv9' does not exist; hosts: hv1, hv2"),
    "a host that is no text": ((1,), {"pool": "osg", "host": 1}, "host=1: expected text"),
    "timeout=0": ((1,), {"pool": "osg", "timeout": 0}, "timeout=0: expected a number of seconds above 0"),
    "timeout as text": ((1,), {"pool": "osg", "timeout": "1h"}, "timeout='1h': expected a number of seconds above 0"),
    "timeout=True": ((1,), {"pool": "osg", "timeout": True}, "timeout=True: expected a number of seconds above 0"),
    "timeout=nan": ((1,), {"pool": "osg", "timeout": float("nan")}, "timeout=nan: expected a number of seconds"),
    "map_out that is no text": ((1,), {"pool": "osg", "map_out": 1}, "map_out=1: expected text"),
    "map_out that can't be written": (
        (1,),
        {"pool": "osg", "map_out": "/nowhere/x"},
        "map_out=/nowhere/x: No such",
    ),
    "test=maybe": ((1,), {"pool": "osg", "test": "maybe"}, "test='maybe': expected True or False"),
}


@pytest.mark.parametrize(("args", "kwargs", "line"), GROW.values(), ids=GROW)
def test_bad_input_of_grow_is_one_line_with_status_2(runner, controller, args, kwargs, line):
    said, status = error(runner, "grow", *args, **kwargs)
    assert said.startswith(line)
    assert status == 2
    assert states(controller) == controller.minions.provider.machines() == {}
    assert controller.ledger.operations() == ()


SHRINK = {
    "zero": ((0,), {}, "expected a number of nodes above 0 or"),
    "a pool that does not exist": ((1,), {"pool": "gpu"}, "pool 'gpu' does not exist; pools: osg, virtual"),
    "no pool": ((1,), {}, "which pool? name one with pool=; pools: osg, virtual"),
    "nodes of no pool": (
        ("vn099",),
        {},
        "node 'vn099' belongs to no pool; pools: osg (osg[1-4]), virtual (",
    ),
    "nodes of two pools": (("osg1,vn001",), {}, "osg1,vn001 are of several pools (osg, virtual): one at a time"),
    "nodes of another pool": (("vn001",), {"pool": "osg"}, "pool osg has no node vn001, its nodes are osg[1-4]"),
    "what is not there": (("osg[2-3]",), {}, "pool osg: osg[2-3]: not there, nothing to shrink"),
    "more than there are": ((2,), {"pool": "osg"}, "pool osg: 1 nodes can be shrunk, 2 asked for"),
    "force=maybe": ((1,), {"pool": "osg", "force": "maybe"}, "force='maybe': expected True or False"),
    "force=1": ((1,), {"pool": "osg", "force": 1}, "force=1: expected True or False"),
    "timeout=-1": ((1,), {"pool": "osg", "timeout": -1}, "timeout=-1: expected a number of seconds above 0"),
}


@pytest.mark.parametrize(("args", "kwargs", "line"), SHRINK.values(), ids=SHRINK)
def test_bad_input_of_shrink_is_one_line_with_status_2(runner, controller, slurm, args, kwargs, line):
    runner.grow("osg1")
    slurm.start_job(17, "osg1")
    said, status = error(runner, "shrink", *args, **kwargs)
    assert said.startswith(line)
    assert status == 2
    assert states(controller) == {"osg1": State.READY}
    assert slurm.killed == []


@pytest.mark.parametrize(
    ("function", "args", "line"),
    [
        ("status", ("vn[1",), "'vn[1' is not a hostlist such as vn[001-004]: "),
        ("status", ("vn099",), "node 'vn099' belongs to no pool; pools: "),
        ("status", (7,), "7 is not a hostlist such as vn[001-004]: "),
        ("history", ("vn099",), "node 'vn099' belongs to no pool; pools: "),
        ("history", ("vn[001-002]",), "'vn[001-002]': expected the name of one node"),
        ("history", (), "missing a required argument: 'node'; arguments are node"),
        ("pools", ("osg",), "too many positional arguments; arguments are none"),
        ("nudge", ("*",), "'*' is not a hostlist such as vn[001-004]: '*' can't stand in it"),
        ("reset", ("metal",), "pool 'metal' does not exist; pools: osg, virtual"),
        ("reset", (["osg"],), "pool=['osg']: expected text"),
        ("reconcile", ("soon",), "grace='soon': expected a whole number of seconds"),
        ("reconcile", (-1,), "grace=-1: expected a whole number of seconds"),
        ("reconcile", (0, "maybe"), "test='maybe': expected True or False"),
        ("nudge", (["vn001"],), "['vn001'] is not a hostlist such as vn[001-004]: "),
    ],
)
def test_bad_input_of_the_others_is_one_line_with_status_2(runner, function, args, line):
    said, status = error(runner, function, *args)
    assert said.startswith(line)
    assert status == 2


NODES = {
    "nothing": ((), {}, "missing a required argument: 'nodes'; arguments are nodes, "),
    "None": ((None,), {}, "None is not a hostlist such as vn[001-004]: "),
    "a number": ((2,), {}, "2 is not a hostlist such as vn[001-004]: "),
    "a list": ((["osg1"],), {}, "['osg1'] is not a hostlist such as vn[001-004]: "),
    "no hostlist": (("osg[1",), {}, "'osg[1' is not a hostlist such as vn[001-004]: "),
    "an empty one": (("",), {}, "'' is not a hostlist such as vn[001-004]: "),
    "everything": (("*",), {}, "'*' is not a hostlist such as vn[001-004]: '*' can't stand in it"),
    "a group": (("@all",), {}, "'@all' is not a hostlist such as vn[001-004]: '@' can't stand in it"),
    "a name of no pool": (("osg1,vn099",), {}, "node 'vn099' belongs to no pool; pools: osg (osg[1-4]), virtual ("),
    "an argument that does not exist": (("osg1",), {"hsot": "hv2"}, "got an unexpected keyword argument 'hsot'; arg"),
    "too many arguments": (("osg1", 1, 2, 3, 4, 5), {}, "too many positional arguments; arguments are nodes, "),
    "test=maybe": (("osg1",), {"test": "maybe"}, "test='maybe': expected True or False"),
    "test=1": (("osg1",), {"test": 1}, "test=1: expected True or False"),
}
SUSPEND = NODES | {
    "what is not there": (("osg[2-3]",), {}, "osg[2-3]: not there, nothing to suspend"),
    "a reason of two lines": (("osg1",), {"reason": "a\nb"}, "reason='a\\nb': expected one line of at most 200 char"),
    "a reason with an escape": (
        ("osg1",),
        {"reason": "\x1b[2J"},
        "reason='\\x1b[2J': expected one line of at most 200",
    ),
    "a reason that is too long": (("osg1",), {"reason": "x" * 201}, f"reason='{'x' * 201}': expected one line of at"),
    "a reason that is no text": (("osg1",), {"reason": 7}, "reason=7: expected one line of at most 200 characters"),
    "urgent=maybe": (("osg1",), {"urgent": "maybe"}, "urgent='maybe': expected True or False"),
    "urgent=1": (("osg1",), {"urgent": 1}, "urgent=1: expected True or False"),
}
RESUME = NODES | {
    "what is not there": (("osg[2-3]",), {}, "osg[2-3]: not there, nothing to resume"),
    "what is not suspended": (("osg1",), {}, "not suspended: osg1: ready"),
    "a host that is no text": (("osg1",), {"host": 1}, "host=1: expected text"),
    "a host that does not exist": (("osg4",), {"host": "hv9"}, "hv9 is not a host of this provider: hv1, hv2"),
}
MIGRATE = {
    what: (args if len(args) != 1 else (*args, "hv2"), kwargs, line) for what, (args, kwargs, line) in NODES.items()
} | {
    "no host": (("osg1",), {}, "missing a required argument: 'host'; arguments are nodes, host, live, test"),
    "a host that is no text": (("osg1", 1), {}, "host=1: expected text"),
    "a host that is nothing": (("osg1", None), {}, "host None does not exist; hosts: hv1, hv2"),
    "a host that does not exist": (("osg1", "hv9"), {}, "host 'hv9' does not exist; hosts: hv1, hv2"),
    "the host where it is": (("osg1", "hv1"), {}, "osg1 is on hv1 already"),
    "what is not there": (("osg[2-3]", "hv2"), {}, "osg[2-3]: not there, nothing to migrate"),
    "live=maybe": (("osg1", "hv2"), {"live": "maybe"}, "live='maybe': expected True or False"),
}
CASES = {
    f"{function}: {what}": (function, *case)
    for function, table in (("suspend", SUSPEND), ("resume", RESUME), ("migrate", MIGRATE))
    for what, case in table.items()
}


@pytest.mark.parametrize(("function", "args", "kwargs", "line"), CASES.values(), ids=CASES)
def test_bad_input_of_suspend_resume_and_migrate_is_one_line_with_status_2(
    runner, controller, slurm, function, args, kwargs, line
):
    runner.grow("osg1,osg4")
    slurm.start_job(17, "osg1")
    runner.suspend("osg4")
    said, status = error(runner, function, *args, **kwargs)
    assert said.startswith(line)
    assert status == 2
    assert_working(controller, ["osg1"], [17])
    assert_suspended(controller, ["osg4"])
    assert controller.ledger.operations() == ()


# What goes wrong


def test_too_few_free_names_are_one_line_with_status_1(runner, controller):
    assert error(runner, "grow", 5, pool="osg") == ("pool osg: 4 of 4 names free, 5 asked for", 1)
    assert_untouched(controller)


def test_nodes_that_do_not_become_ready_are_one_line_with_status_1(runner, controller, provider):
    provider.fail("create", "osg2", "hv1: storage pool nodes is full (0 KiB left), can't make osg2.qcow2")
    said, status = error(runner, "grow", 2, pool="osg")
    assert said.endswith(
        ": osg2: hv1: storage pool nodes is full (0 KiB left), can't make osg2.qcow2; everything made was removed"
    )
    assert status == 1
    assert states(controller) == {}


def test_slurm_that_is_away_is_one_line_with_status_1(runner, slurm):
    slurm.reachable = False
    for function in ("grow", "shrink"):
        runner.__context__.clear()
        assert error(runner, function, 1, pool="osg")[1] in (1, 2)
    assert runner.status() == {}


@pytest.mark.parametrize(
    ("trouble", "status"),
    [
        (PillarError("elastic:pools:osg:memory: expected a whole number of MiB above 0, got '8G'"), 2),
        (LedgerError("ledger /var/lib/saltmarsh/ledger.db: disk I/O error; look at its disk"), 1),
        (OSError(28, "No space left on device", "/var/lib/saltmarsh/dns/.x"), 1),
    ],
)
@pytest.mark.parametrize(
    "function", ["grow", "shrink", "suspend", "resume", "migrate", "reconcile", "status", "pools", "history"]
)
def test_whatever_can_not_be_opened_is_one_line(runner, monkeypatch, function, trouble, status):
    def fail(opts):
        raise trouble

    monkeypatch.setattr(runner.Controller, "open", fail)
    args = dict.fromkeys(("grow", "shrink", "suspend", "resume", "history"), ("osg1",)) | {"migrate": ("osg1", "hv2")}
    assert error(runner, function, *args.get(function, ())) == (str(trouble), status)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize(
    ("function", "module", "args"),
    [
        ("grow", growing, (1, "osg")),
        ("shrink", shrinking, (1, "osg")),
        ("suspend", suspending, ("osg1",)),
        ("resume", resuming, ("osg1",)),
        ("migrate", migrating, ("osg1", "hv2")),
    ],
)
def test_an_interruption_is_one_line(runner, monkeypatch, function, module, args, interruption):
    def interrupt(*args, **kwargs):
        raise interruption

    monkeypatch.setattr(module, function, interrupt)
    assert error(runner, function, *args) == ("interrupted; what was under way is left to the engine", 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_undoes_a_grow_and_is_one_line(runner, controller, minions, pillar, tmp_path, number):
    """As salt-run takes signals, in a process of its own."""
    minions.silent.add("osg1")
    reader, writer = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_grow_for_ever, args=(runner, minions, pillar, tmp_path, writer))
    process.start()
    while states(controller) != {"osg1": State.BOOTING}:
        assert process.is_alive()
    os.kill(process.pid, number)
    assert reader.recv() == {"error": "pool osg: interrupted; everything made was removed", "retcode": 1}
    process.join()
    assert states(controller) == controller.minions.provider.machines() == {}
    assert controller.ledger.operations() == ()


def _grow_for_ever(runner, minions, pillar, directory, answer):
    sys.argv[0] = "salt-run"
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, functools.partial(salt.scripts._handle_signals, None))
    controller = neighbours.controller(pillar, directory)
    controller.minions.silent.update(minions.silent)
    runner.Controller.open = lambda opts: controller
    answer.send(runner.grow("osg1"))


# test=True


def test_a_grow_that_is_only_tested_changes_nothing_and_says_what_it_would_do(runner, controller):
    assert runner.grow(2, pool="osg", host="hv2", test=True) == {
        "would grow": {
            "nodes": {"osg1": "10.77.0.51", "osg2": "10.77.0.52"},
            "map": {
                "osg": [
                    {name: {"address": address, "image": "node.qcow2", "cpus": 2, "memory": 2048, "host": "hv2"}}
                    for name, address in (("osg1", "10.77.0.51"), ("osg2", "10.77.0.52"))
                ]
            },
        }
    }
    assert_untouched(controller)


def test_a_shrink_that_is_only_tested_changes_nothing_and_says_what_it_would_do(runner, controller, slurm):
    runner.grow(3, pool="osg")
    slurm.start_job(17, "osg1")
    before = controller.ledger.nodes(), controller.ledger.operations(unfinished=False), slurm.nodes()
    assert runner.shrink("osg[1-2]", force=True, test=True) == {
        "would shrink": {"osg1": {"state": "ready", "jobs": [17]}, "osg2": {"state": "ready", "jobs": []}}
    }
    assert (controller.ledger.nodes(), controller.ledger.operations(unfinished=False), slurm.nodes()) == before


@pytest.mark.parametrize(
    ("function", "args", "answer"),
    [
        ("suspend", ("osg1",), {"would suspend": {"osg1": {"host": "hv1", "jobs": ["17"]}}}),
        ("resume", ("osg2",), {"would resume": {"osg2": {"host": "hv1", "file": "osg2.1.state"}}}),
        ("migrate", ("osg1", "hv2"), {"would migrate": {"osg1": {"from": "hv1", "to": "hv2", "jobs": ["17"]}}}),
        ("migrate", ("osg1", "hv2", True), {"would migrate": {"osg1": {"from": "hv1", "to": "hv2"}}}),
    ],
)
def test_what_is_only_tested_changes_nothing_and_says_what_it_would_do(
    runner, controller, slurm, vmstates, function, args, answer
):
    runner.grow(2, pool="osg")
    slurm.start_job(17, "osg1")
    runner.suspend("osg2")
    operation, _ = controller.ledger.claim("grow", controller.site.pool("osg"), count=1)
    controller.ledger.abandon(operation)

    def everything():
        looks = [vmstates.look(name) for name in ("osg1", "osg2")]
        return controller.ledger.nodes(), controller.ledger.operations(unfinished=False), slurm.nodes(), looks

    before = everything()
    said = getattr(runner, function)(*args, test=True)
    if function == "resume":
        said["would resume"]["osg2"]["file"] = Path(said["would resume"]["osg2"]["file"]).name
    assert said == answer
    assert everything() == before


def test_before_a_suspension_operations_of_dead_processes_are_ended(runner, controller):
    runner.grow(2, pool="osg")
    for act in (lambda: runner.suspend("osg1"), lambda: runner.resume("osg1"), lambda: runner.migrate("osg1", "hv2")):
        operation, _ = controller.ledger.claim("grow", controller.site.pool("virtual"), count=1)
        controller.ledger.abandon(operation)
        act()
        assert set(states(controller)) == {"osg1", "osg2"}
    assert_working(controller, ["osg1", "osg2"])


@pytest.mark.parametrize("function", ["grow", "shrink"])
def test_a_test_leaves_abandoned_operations_alone(runner, controller, function):
    operation, _ = controller.ledger.claim("grow", controller.site.pool("osg"), count=1)
    controller.ledger.abandon(operation)
    getattr(runner, function)(1, pool="osg", test=True)
    assert states(controller) == {"osg1": State.CLAIMED}
