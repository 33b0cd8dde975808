"""Steps with progress, and commands whose output goes to a log that a failure names."""

import subprocess
import sys
import time
from contextlib import contextmanager

from labtools.settings import LOG


class StepFailed(Exception):
    """One line: which step failed, why, and where its log is."""


@contextmanager
def step(title):
    """Show a title while the block runs, then its seconds; turn a failed command into a StepFailed."""
    print(f"  {title} ...", end="", flush=True)
    started = time.monotonic()
    try:
        yield
    except subprocess.CalledProcessError as err:
        print(" FAILED", flush=True)
        command = err.cmd if isinstance(err.cmd, str) else " ".join(map(str, err.cmd))
        raise StepFailed(
            f"{title}: exit status {err.returncode} from: {command[:200]} (log: {LOG}/commands.log)"
        ) from err
    except StepFailed as err:
        print(" FAILED", flush=True)
        raise StepFailed(f"{title}: {err}") from err
    print(f" {time.monotonic() - started:.1f} s", flush=True)


def run(*argv, **kwargs):
    """Run a command with its output appended to the log; raise CalledProcessError if it fails."""
    LOG.mkdir(parents=True, exist_ok=True)
    with (LOG / "commands.log").open("ab") as log:
        log.write(f"\n$ {' '.join(map(str, argv))}\n".encode())
        log.flush()
        kwargs.setdefault("check", True)
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(list(map(str, argv)), stdout=log, stderr=log, **kwargs)


def output(*argv, **kwargs):
    """Run a command and return its standard output as text; raise CalledProcessError if it fails."""
    kwargs.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(list(map(str, argv)), check=True, stdout=subprocess.PIPE, text=True, **kwargs).stdout


def wait_until(condition, seconds, what):
    """Poll a condition until it holds and return its value; StepFailed when the seconds are over."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise StepFailed(f"{what}: not within {seconds} s")
        time.sleep(0.1)


def say(line):
    """Print a line of progress."""
    print(line, flush=True)


def complain(line):
    """Print one line of error."""
    print(f"lab: {line}", file=sys.stderr, flush=True)
