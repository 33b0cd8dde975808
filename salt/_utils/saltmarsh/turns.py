"""One writer at a time, urgent ones first: between processes, by locks on files."""

import fcntl
from contextlib import contextmanager

from saltmarsh.errors import ProviderError


@contextmanager
def turn_to_write(directory, stem, urgent):
    """
    Wait for one's turn, and have it until the end of the block.

    Who is urgent holds a second lock, shared, from before it waits until it is done; who is not gives way as long as
    anybody holds that.

    :param pathlib.Path directory: where the locks are
    :param str stem: what is written to, as part of a file name
    :param bool urgent: before those that are not
    :raises ProviderError: there can't be locks
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        turn, before = ((directory / f"{stem}.{kind}").open("a") for kind in ("lock", "urgent"))
    except OSError as err:
        raise ProviderError(f"memory can't be written without a lock: {err}") from err
    with turn, before:
        try:
            if urgent:
                fcntl.flock(before, fcntl.LOCK_SH)
                fcntl.flock(turn, fcntl.LOCK_EX)
            else:
                _wait_behind_urgent(turn, before)
            yield
        finally:
            for lock in (turn, before):
                fcntl.flock(lock, fcntl.LOCK_UN)  # closing isn't enough if the process has forked meanwhile


def _wait_behind_urgent(turn, before):
    while True:
        fcntl.flock(turn, fcntl.LOCK_EX)
        try:
            fcntl.flock(before, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(turn, fcntl.LOCK_UN)
            fcntl.flock(before, fcntl.LOCK_EX)
            fcntl.flock(before, fcntl.LOCK_UN)
        else:
            fcntl.flock(before, fcntl.LOCK_UN)
            return
