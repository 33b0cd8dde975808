"""The words of the project: which state may follow which, and when an owner is dead."""

import dataclasses
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from saltmarsh.model import TRANSITIONS, Owner, State


def test_every_state_says_what_may_follow_it():
    assert TRANSITIONS.keys() == set(State)


def test_any_state_but_free_may_turn_to_failed_and_failed_can_be_left():
    assert [state for state in State if State.FAILED not in TRANSITIONS[state]] == [State.FREE, State.FAILED]
    assert State.DESTROYING in TRANSITIONS[State.FAILED]


def test_a_name_is_freed_when_its_machine_is_destroyed_or_was_never_begun():
    assert [state for state in State if State.FREE in TRANSITIONS[state]] == [State.CLAIMED, State.DESTROYING]


def test_the_calling_process_is_alive():
    assert Owner.current().is_alive()


def test_an_owner_is_dead_once_killed_reaped_or_not(child):
    assert child.owner.is_alive()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not child.owner.is_alive()
    child.join()
    assert not child.owner.is_alive()


def test_a_process_that_reuses_the_pid_is_another_owner(child):
    assert not dataclasses.replace(child.owner, started=child.owner.started - 1).is_alive()


def test_an_owner_of_an_earlier_boot_is_dead(child):
    assert not dataclasses.replace(child.owner, boot_id="00000000-0000-0000-0000-000000000000").is_alive()


@pytest.fixture
def child():
    """A process that waits to be killed, with its ``owner``; its name is made to mislead a reader of /proc."""
    fork = multiprocessing.get_context("fork")
    answer, question = fork.Pipe(duplex=False)
    process = fork.Process(target=_wait, args=(question,))
    process.start()
    process.owner = answer.recv()
    yield process
    process.kill()
    process.join()


def _wait(question):
    Path("/proc/self/comm").write_bytes(b"a) Z 1 \xff")
    question.send(Owner.current())
    signal.pause()
