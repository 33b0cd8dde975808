"""The reference cluster in a box, up for the whole session, and the hands that a test has on it."""

import json
import subprocess

import pytest

from labtools import cluster, container
from labtools.settings import VENV
from labtools.steps import StepFailed

_RUNNERS = (f"{VENV}/bin/python3", "/srv/saltmarsh/tests/lab/runners.py")


class Lab:
    """The hands that a test has on the lab."""

    def __init__(self, checkout):
        self._script = checkout / "lab/lab"
        self._runners = None

    def run(self, *arguments, timeout=60):
        """Run the lab's own command; its exit status is the caller's business."""
        return subprocess.run(
            [self._script, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
        )

    def exec(self, name, *argv, check=True, timeout=60):
        """
        Run a command in a machine, or by ssh in a node.

        :param str name: ``ctl``, ``hv1``, ``hv2`` or a node
        :param argv: the command, one argument each
        :param bool check: fail the test unless the exit status is 0; a machine that is off has 1
        :param timeout: seconds
        :returns: a :class:`subprocess.CompletedProcess` with stdout and stderr as text
        """
        process = None
        try:
            process = self.start(name, *argv)
            out, err = process.communicate(timeout=timeout)
            done = subprocess.CompletedProcess(argv, process.returncode, out, err)
        except StepFailed as off:
            done = subprocess.CompletedProcess(argv, 1, "", str(off))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        if check and done.returncode != 0:
            pytest.fail(f"on {name}: {argv}: exit status {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)
        return done

    def start(self, name, *argv):
        """Start a command in a machine; returns its :class:`subprocess.Popen`, with pipes for stdout and stderr."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            cluster.entry(name, argv),
            env=container.ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True,
        )  # fmt: skip

    def runner(self, function, *arguments, timeout):
        """
        What a runner of the controller answers, without the start of a salt-run; see runners.py.

        :returns: its answer, and its lines of progress
        """
        if self._runners is None or self._runners.poll() is not None:  # the controller has booted anew
            self._runners = subprocess.Popen(
                cluster.entry("ctl", _RUNNERS), env=container.ENVIRONMENT,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
        self._runners.stdin.write(json.dumps([timeout, function, *arguments]) + "\n")
        self._runners.stdin.flush()
        said = json.loads(self._runners.stdout.readline())
        return said["answer"], said["progress"]

    def close(self):
        """End what serves :meth:`runner`."""
        if self._runners:
            self._runners.communicate()


@pytest.fixture(scope="session")
def lab(checkout):
    """
    The lab, up. What a session starts, it stops again; a lab that was up before it stays up.

    So nothing is left behind by default, and whoever works on the lab tier says ``lab/lab up`` once and then tests
    without the wait.
    """
    hands = Lab(checkout)
    was_up = hands.run("status").returncode == 0
    up = hands.run("up", timeout=1200)
    if up.returncode != 0:
        pytest.fail(f"lab/lab up: exit status {up.returncode}\n{up.stdout}{up.stderr}", pytrace=False)
    yield hands
    hands.close()
    if not was_up:
        down = hands.run("down", timeout=300)
        if down.returncode != 0:
            pytest.fail(f"lab/lab down: exit status {down.returncode}\n{down.stdout}{down.stderr}", pytrace=False)
