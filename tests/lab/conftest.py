"""The reference cluster in a box, up for the whole session."""

import subprocess

import pytest


class Lab:
    """The hands that a test has on the lab."""

    def __init__(self, checkout):
        self.script = checkout / "lab/lab"

    def run(self, *arguments, timeout=60):
        """Run the lab's own command; its exit status is the caller's business."""
        return subprocess.run(
            [self.script, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
        )

    def exec(self, name, *argv, check=True, timeout=60):
        """
        Run a command in a machine, or by ssh in a node.

        :param str name: ``ctl``, ``hv1``, ``hv2`` or a node
        :param argv: the command, one argument each
        :param bool check: fail the test unless the exit status is 0
        :param timeout: seconds
        :returns: a :class:`subprocess.CompletedProcess` with stdout and stderr as text
        """
        done = self.run("exec", name, "--", *map(str, argv), timeout=timeout)
        if check and done.returncode != 0:
            pytest.fail(f"on {name}: {argv}: exit status {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)
        return done

    def start(self, name, *argv):
        """Start a command in a machine; returns its :class:`subprocess.Popen`, with pipes for stdout and stderr."""
        command = [self.script, "exec", name, "--", *map(str, argv)]
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


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
    if not was_up:
        down = hands.run("down", timeout=300)
        if down.returncode != 0:
            pytest.fail(f"lab/lab down: exit status {down.returncode}\n{down.stdout}{down.stderr}", pytrace=False)
