"""
Death at a boundary, which is a call of a process to what is outside of it.

Either the process is killed before the call; or whom it calls is killed, and comes back.
"""

import functools
import multiprocessing
import os
import shutil
import signal
import threading
from contextlib import suppress
from dataclasses import replace

import neighbours

from saltmarsh.errors import SaltmarshError, Unreachable

FORK = multiprocessing.get_context("fork")
LEDGER = ("claim", "begin", "move", "finish", "abandon", "adopt")
CLOUD = ("check", "plan", "create", "destroy", "remove_strays", "inventory", "accepted_keys")
MINIONS = ("call", "answering")


class Gated:
    """Something whose calls (or only some of them) are made by a gate, which is given the name and the call."""

    def __init__(self, something, gate, only=None):
        self._something = something
        self._gate = gate
        self._only = only

    def __getattr__(self, name):
        found = getattr(self._something, name)
        if not callable(found) or (self._only and name not in self._only):
            return found

        @functools.wraps(found)
        def call(*args, **kwargs):
            return self._gate(name, lambda: found(*args, **kwargs))

        return call


class Gate:
    """Counts calls, and lets ``act`` make the one of a certain number, or with ``on`` all from that one on."""

    def __init__(self, number, act, on=False):
        self.moment = None
        self._number = number
        self._act = act
        self._on = on
        self._count = 0
        self._lock = threading.Lock()

    def __call__(self, name, call):
        with self._lock:
            self._count += 1
            count = self._count
            if count == self._number:
                self.moment = f"call {count}: {name}"
        if count == self._number or self._on and count > self._number:
            return self._act(call)
        return call()


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
        shutil.rmtree(self.kept, ignore_errors=True)
        shutil.copytree(self.directory, self.kept)

    def put_back(self):
        """Everything as it was."""
        for name in ("state", "provider"):
            shutil.rmtree(self.directory / name)
            shutil.copytree(self.kept / name, self.directory / name)

    def open(self, gate=None, only=None):
        """
        A controller of this process.

        :param gate: through which all calls go
        :param str only: only those to ``slurm``, ``minions`` (the master) or ``hypervisor`` (libvirtd)
        """

        def gated(who, something, functions=None):
            return Gated(something, gate, functions) if gate and only in (None, who) else something

        slurm, ledger = neighbours.Slurm(self.controller.site), neighbours.Ledger(self.controller.ledger.path)
        slurm.keep_in(self.slurm)
        provider = self.controller.minions.provider
        minions, vmstates = neighbours.Minions(provider, slurm), neighbours.VmStates(provider, slurm)
        vmstates = gated("hypervisor", vmstates)
        self.controller.cloud.vmstates = lambda profile: vmstates
        neighbours.provider.gate = gate if only == "hypervisor" else neighbours.provider.open_gate
        return replace(
            self.controller,
            slurm=gated("slurm", slurm),
            ledger=gated("ledger", ledger, LEDGER),
            cloud=gated("cloud", self.controller.cloud, CLOUD),
            dns=gated("dns", self.controller.dns),
            minions=gated("minions", minions, MINIONS),
        )

    def run(self, act, number, may_fail=True):
        """Run something in a process that is killed before its call of this number; where, or None if it ended."""
        process = FORK.Process(target=self._run, args=(act, number, may_fail))
        process.start()
        process.join()
        if process.exitcode == 0:
            return None
        assert process.exitcode == -signal.SIGKILL
        return self.call.read_text()

    def _run(self, act, number, may_fail):
        def die(call):
            self.call.write_text(f"before {gate.moment}")
            os.kill(os.getpid(), signal.SIGKILL)

        gate = Gate(number, die)
        # What was to come of it has come of it.
        with suppress(SaltmarshError if may_fail else ()):
            act(self.open(gate))

    def lose(self, act, who, loss, number):
        """Run something whose call of this number to a neighbour is lost; which, or None if there are not so many."""
        slurm = None

        def lost(call):
            return loss(call, slurm)

        gate = Gate(number, lost, loss is away)
        controller = self.open(gate, who)
        slurm = getattr(controller.slurm, "_something", controller.slurm)
        with suppress(SaltmarshError):
            act(controller)
        controller.ledger.close()
        neighbours.provider.gate = neighbours.provider.open_gate
        return gate.moment and f"{who} {loss.__name__} at {gate.moment}"


def away(call, slurm):
    """It is killed before the call, and does not come back before the act has ended."""
    raise Unreachable("it does not answer")


def answerless(call, slurm):
    """It is killed when it has done what it was told, before it answers; and is back at once."""
    call()
    raise Unreachable("the connection is lost")


def forgetful(call, slurm):
    """slurmctld is killed when it has answered, and is back at once; what was not on its disk yet is forgotten."""
    memory = slurm.memory()
    answer = call()
    slurm.die(memory)
    return answer


LOSSES = [
    (who, loss)
    for who, losses in {
        "hypervisor": (away, answerless),
        "slurm": (away, answerless, forgetful),
        "minions": (away, answerless),
    }.items()
    for loss in losses
]
