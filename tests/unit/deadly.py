"""Death at a boundary: before one certain call of a process to what is outside of it."""

import functools
import multiprocessing
import os
import shutil
import signal
import threading
from contextlib import suppress
from dataclasses import replace

import neighbours

from saltmarsh.errors import SaltmarshError

FORK = multiprocessing.get_context("fork")
LEDGER = ("claim", "begin", "move", "finish", "abandon", "adopt")
CLOUD = ("check", "plan", "create", "destroy", "remove_strays", "inventory", "accepted_keys")


class Deadly:
    """Something whose calls are counted, and which kills the process before one of them."""

    def __init__(self, something, count, only=None):
        self._something = something
        self._count = count
        self._only = only

    def __getattr__(self, name):
        found = getattr(self._something, name)
        if not callable(found) or (self._only and name not in self._only):
            return found

        @functools.wraps(found)
        def call(*args, **kwargs):
            self._count(name)
            return found(*args, **kwargs)

        return call


class Site:
    """A site that can be put back to how it was."""

    def __init__(self, directory, controller):
        self.controller = controller
        self.directory = directory
        self.kept = directory.with_name(f"{directory.name}.kept")
        self.slurm = directory / "state" / "slurm"
        self.call = directory / "call"
        controller.slurm.keep_in(self.slurm)

    def keep(self):
        """Remember how everything is."""
        shutil.copytree(self.directory, self.kept)

    def put_back(self):
        """Everything as it was."""
        for name in ("state", "provider"):
            shutil.rmtree(self.directory / name)
            shutil.copytree(self.kept / name, self.directory / name)

    def open(self, count=None):
        """A controller of this process; the boundaries are those at which ``count`` is called."""
        slurm, ledger = neighbours.Slurm(self.controller.site), neighbours.Ledger(self.controller.ledger.path)
        slurm.keep_in(self.slurm)
        minions = neighbours.Minions(self.controller.minions.provider, slurm)
        vmstates = neighbours.VmStates(self.controller.minions.provider, slurm)
        if count:
            vmstates = Deadly(vmstates, count)
        self.controller.cloud.vmstates = lambda profile: vmstates
        made = replace(self.controller, slurm=slurm, ledger=ledger, minions=minions)
        if not count:
            return made
        return replace(
            made,
            slurm=Deadly(slurm, count),
            ledger=Deadly(ledger, count, LEDGER),
            cloud=Deadly(made.cloud, count, CLOUD),
            dns=Deadly(made.dns, count),
            minions=Deadly(minions, count, ("call", "answering")),
        )

    def run(self, act, number):
        """Run something in a process that is killed before its call of this number; where, or None if it ended."""
        process = FORK.Process(target=self._run, args=(act, number))
        process.start()
        process.join()
        if process.exitcode == 0:
            return None
        assert process.exitcode == -signal.SIGKILL
        return self.call.read_text()

    def _run(self, act, number):
        lock, calls = threading.Lock(), []

        def count(name):
            with lock:
                calls.append(name)
                if len(calls) == number:
                    self.call.write_text(f"before call {number}: {name}")
                    os.kill(os.getpid(), signal.SIGKILL)

        with suppress(SaltmarshError):  # what was to come of it has come of it
            act(self.open(count))
