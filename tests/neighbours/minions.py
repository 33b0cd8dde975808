"""The minions of machines that exist."""

from saltmarsh import library
from saltmarsh.minions import Reply

APPLIED = {"slurmd_|-slurmd_|-slurmd_|-running": {"__id__": "slurmd", "result": True, "comment": "started"}}


class Minions:
    """
    Minions that answer at once, whose highstate succeeds, and whose slurmd then registers, unless told otherwise.

    What a minion does otherwise: it is in ``silent`` (never answers), ``hanging`` (answers everything but a highstate),
    ``without_slurmd``, or in ``answers`` with its answer to ``state.highstate``.
    """

    def __init__(self, provider, slurm):
        self.provider = provider
        self.silent = set()
        self.hanging = set()
        self.without_slurmd = set()
        self.answers = {}
        self.outdated = set()
        self.calls = []
        self._slurm = slurm

    def answering(self, names, timeout, over=None):
        """As saltmarsh.minions.Minions.answering; who does not answer is not waited for."""
        return frozenset(reply.minion for reply in self.call(names, "test.ping", timeout=timeout, over=over))

    def call(self, names, function, *args, timeout, over=None):
        """As saltmarsh.minions.Minions.call; who does not answer is not waited for."""
        names = frozenset(names)
        self.calls.append((function, names))
        there = {path.name for path in self.provider.machine_files.iterdir()}
        for name in sorted(names & there - self.silent):
            if function == "state.highstate":
                yield from self._highstate(name)
            elif function == "grains.get":
                yield Reply(name, "" if name in self.outdated else library.digest(), True)
            else:
                yield Reply(name, True, True)

    def _highstate(self, name):
        if name in self.hanging:
            return
        if name in self.answers:
            yield Reply(name, self.answers[name], False)
            return
        if name not in self.without_slurmd:
            self._slurm.register(name)
        yield Reply(name, APPLIED, True)
