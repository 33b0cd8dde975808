"""
The state of a server's memory: what :mod:`saltmarsh.vmstate` is for machines on libvirt hosts, in an OpenStack cloud.

Nova suspends a server on its hypervisor: the processes stay, the hypervisor's memory is free, but the cloud goes on
counting the server as taken. The server itself stays where it is, so "state file" here means the server while it is
SUSPENDED. Nova has neither a server that is written to disk while it is paused, nor one that comes back paused: so a
restore only puts a mark on it, and :meth:`ServerStates.unpause` is what brings it back. The guest is asked through its
minion, because Nova gives nobody its guest agent.
"""

import json
import time
from dataclasses import replace
from datetime import datetime

from saltmarsh.errors import InvalidInput, NotFound, ProviderError
from saltmarsh.machine import Look, Phase, PowerState, StateFile, Suspension
from saltmarsh.server import RESTORED

_MARK = "saltmarsh_suspension"
_PIECE = 255  # Nova's longest value
_PIECES = 16
_CLOCK_OFFSET = 0.3  # seconds
_ANSWER = 10  # seconds for one answer of a minion
_SUSPENDED = "SUSPENDED"


class ServerStates:
    """
    The memory of one provider's machines. Cheap to make; safe to use from several threads and processes.

    :param saltmarsh.servers.Servers servers: the provider's machines
    :param saltmarsh.minions.Minions minions: through which their guests are asked
    """

    gives_back = False
    """Whether the provider can use a suspended machine's room for another."""
    keeps_checkpoints = False
    """Whether a machine's memory and disk can be kept beside the machine."""

    def __init__(self, servers, minions):
        self._servers = servers
        self._minions = minions

    def look(self, name, host=None):
        """As :meth:`saltmarsh.vmstate.VmStates.look`."""
        try:
            server = self._servers.find(name)
        except NotFound:
            return Look(None, False, None, None)
        mark, state = _suspension(server), self._state(server)
        machine = self._servers.describe(server)
        if state and RESTORED not in server.metadata:
            return Look(None, bool(server.task_state), None, state)
        if state:
            machine = replace(machine, state=PowerState.PAUSED)
        return Look(machine, bool(server.task_state), mark, state)

    def latest(self, name, host):
        """As :meth:`saltmarsh.vmstate.VmStates.latest`."""
        return self.look(name).state

    def state_files(self, names=None, hosts=None):
        """As :meth:`saltmarsh.vmstate.VmStates.state_files`, by one list of all servers."""
        states = map(self._state, self._servers.all())
        return [state for state in states if state and (names is None or state.name in names)]

    def check_room(self, places):
        """Nova keeps the memory on the hypervisors' disks, and does not say what room they have."""

    def mark(self, name, host, suspension):
        """As :meth:`saltmarsh.vmstate.VmStates.mark`: among the server's metadata, which has short values only."""
        text = json.dumps(vars(suspension)) if suspension else ""
        pieces = [text[at : at + _PIECE] for at in range(0, len(text), _PIECE)]
        if len(pieces) > _PIECES:
            raise ProviderError(f"{name}: what is to be noted about its suspension is too long: {len(text)} characters")
        values = dict.fromkeys([f"{_MARK}_{number:02}" for number in range(_PIECES)])
        values |= {f"{_MARK}_{number:02}": piece for number, piece in enumerate(pieces)}
        self._servers.set_metadata(name, values)

    def pause(self, name, host):
        """Nothing: Nova can't suspend a server that is paused."""

    def unpause(self, name, host):
        """Let a machine go on, from wherever it stopped. One that runs is no error."""
        server = self._servers.find(name)
        if server.status == _SUSPENDED:
            self._servers.act(name, "resume_server", "ACTIVE")
        elif server.status == "PAUSED":
            self._servers.act(name, "unpause_server", "ACTIVE")
        if RESTORED in server.metadata:
            self._servers.set_metadata(name, {RESTORED: None})

    def save(self, name, host, urgent=False):
        """
        Suspend a server. The hypervisors write in whatever order Nova has them do it, urgent or not.

        :rtype: saltmarsh.machine.StateFile
        :raises ProviderError: it could not be suspended; it is as it was before
        """
        self._servers.act(name, "suspend_server", _SUSPENDED)
        return self._state(self._servers.find(name))

    def let_go(self, name, host):
        """Nothing to do: the server stays, suspended.

        :raises ProviderError: it is not
        """
        if self._servers.find(name).status != _SUSPENDED:
            raise ProviderError(f"{host}: {name} is not suspended")

    def choose_host(self, state, host=None, last=None):
        """
        On which provider a machine comes back: the one that has it.

        :raises InvalidInput: another one was asked for
        """
        if host not in (None, state.host):
            raise InvalidInput(f"{state.name} is suspended in {state.host}, and can only come back there")
        return state.host

    def restore(self, state, host):
        """
        Mark a machine as one that comes back; :meth:`unpause` is next.

        :raises ProviderError: it is not suspended
        """
        self.let_go(state.name, host)
        self._servers.set_metadata(state.name, {RESTORED: "yes"})

    def put_back(self, name, host):
        """
        Undo a restore after which the machine never ran.

        :raises ProviderError: it runs
        """
        try:
            self.let_go(name, host)
        except NotFound:
            return
        self._servers.set_metadata(name, {RESTORED: None})

    def checkpoints(self, names=None, hosts=None):
        """None: Nova has no snapshot of memory."""
        return []

    def settle(self, name, host):
        """Nothing: there is no way back from the moment in which a server runs."""

    def forget(self, name, host):
        """Nothing: a server that runs has no memory on disk any more."""

    def check_target(self, places, target):
        """:raises InvalidInput: always; where its machines are is the cloud's own business"""
        raise InvalidInput(f"{', '.join(places)}: a cloud places its machines itself; they can't be moved to {target}")

    def set_clock(self, name, host, patience):
        """
        Step the guest's clock to this machine's, as exactly as Salt can carry the time; its chrony does the rest.

        :param float patience: seconds until its minion must have answered
        :returns: how far off it is now, in seconds; known to half of the time that the answer took
        :raises ProviderError: the minion does not answer, or the clock can't be set
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                self.run_in_guest(name, host, ["/usr/bin/date", f"--set=@{time.time():.6f}"], timeout=_ANSWER)
                asked = time.time()
                _, said, _ = self.run_in_guest(name, host, ["/usr/bin/date", "+%s.%N"], timeout=_ANSWER)
                took = time.time() - asked
                offset = float(said) - asked - took / 2
            except (ProviderError, ValueError) as err:
                if time.monotonic() > deadline:
                    raise ProviderError(f"{host}: the clock of {name} can't be set: {err}") from err
                continue
            if abs(offset) <= _CLOCK_OFFSET + took:
                return offset
            if time.monotonic() > deadline:
                raise ProviderError(f"{host}: the clock of {name} is {offset:+.1f} s off after it was set")

    def run_in_guest(self, name, host, argv, text="", timeout=60):
        """As :meth:`saltmarsh.vmstate.VmStates.run_in_guest`, by its minion."""
        given = {"__kwarg__": True, "python_shell": False, "stdin": text, "timeout": timeout, "ignore_retcode": True}
        for reply in self._minions.call([name], "cmd.run_all", argv, given, timeout=timeout):
            try:
                return reply.value["retcode"], reply.value["stdout"], reply.value["stderr"]
            except (KeyError, TypeError) as err:
                raise ProviderError(f"{host}: the minion of {name} can't run {argv[0]}: {reply.value}") from err
        raise ProviderError(f"{host}: the minion of {name} has not answered within {timeout:g} s")

    def _state(self, server):
        """The server as the state file that it is; None if it is not suspended."""
        if server.status != _SUSPENDED:
            return None
        machine = self._servers.describe(server)
        return StateFile(
            name=server.name,
            number=1,
            path=f"{machine.host}:{server.id}",
            host=machine.host,
            size=0,
            written=datetime.fromisoformat(server.updated_at).timestamp(),
            machine=machine,
            suspension=_suspension(server),
        )


def _suspension(server):
    pieces = [value for key, value in sorted(server.metadata.items()) if key.startswith(_MARK)]
    if not pieces:
        return None
    values = json.loads("".join(pieces))
    return Suspension(**values | {"jobs": tuple(values["jobs"]), "phase": Phase(values["phase"])})
