"""Why a highstate failed: one line that can be printed, whatever a minion answers."""

import pytest

from saltmarsh.minions import failures


def state(name, result, comment):
    return {"__id__": name, "result": result, "comment": comment, "changes": {}}


ANSWERS = {
    "one state failed": (
        {"a": state("munge", True, "ok"), "b": state("chrony", False, "no\n  server")},
        "chrony: no server",
    ),
    "what only depends on it is left out": (
        {
            "a": state("the ready gate", False, "the clock is +3.000 s off"),
            "b": state("slurmd", False, "One or more requisite failed: gate.the ready gate"),
        },
        "the ready gate: the clock is +3.000 s off",
    ),
    "nothing but requisites": (
        {"b": state("slurmd", False, "One or more requisite failed: gate")},
        "slurmd: One or more requisite failed: gate",
    ),
    "several": ({"a": state("a", False, "x"), "b": state("b", False, "y")}, "a: x; b: y"),
    "mistakes in the states": (["Rendering SLS 'base:a' failed:\n  no", "b"], "Rendering SLS 'base:a' failed: no; b"),
    "a traceback": ("Traceback:\n  File\nOSError: full", "Traceback: File OSError: full"),
    "control characters": (["\x1b[31mred\x07"], "?[31mred?"),
    "nothing": (None, "None"),
    "a number": (7, "7"),
    "no states": ({"a": 1, "b": None, "c": []}, ""),
    "states without what states have": ({"a": {"result": False}}, "None: None"),
    "states with other types": ({"a": {"__id__": 1, "result": False, "comment": ["x"]}}, "1: ['x']"),
}


@pytest.mark.parametrize(("answer", "line"), ANSWERS.values(), ids=ANSWERS)
def test_it_is_one_printable_line(answer, line):
    assert failures(answer) == line


@pytest.mark.parametrize(
    "answer",
    [
        "x" * 1_000_000,
        ["x" * 1_000_000],
        {"a": state("x" * 1_000_000, False, "x" * 1_000_000)},
        {str(number): state(str(number), False, "x" * 1000) for number in range(10_000)},
    ],
    ids=["text", "list", "one state", "many states"],
)
def test_it_is_short(answer):
    assert len(failures(answer)) < 4000


def test_of_what_is_too_long_beginning_and_end_are_told():
    line = failures("Traceback: " + "x" * 1000 + " OSError: full")
    assert line.startswith("Traceback: ")
    assert line.endswith(" OSError: full")
