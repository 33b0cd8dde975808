"""The memory of the machines that the stub driver has made: what saltmarsh.vmstate does, with files for machines."""

import json
import os
import signal
import time
from pathlib import Path

from saltmarsh.errors import InvalidInput, NoCapacity, NotFound, ProviderError
from saltmarsh.guest import JOB_PROCESSES, PART, READY_AGAIN, TEST, TIMEOUT
from saltmarsh.machine import Look, Machine, Phase, PowerState, StateFile, Suspension

KILL = "kill"
CREDENTIAL = "MUNGE:controller\n"


class Munge:
    """Munge that takes every credential."""

    encode = staticmethod(lambda: CREDENTIAL)
    decode = staticmethod(lambda credential: None)


class VmStates:
    """
    As saltmarsh.vmstate.VmStates, for every machine of a provider; all in files, for several processes.

    A machine's disk changes whenever the machine goes on. One that goes on with the memory of another disk has ruined
    it, which fails the test.

    Its faults are set by ``provider.fail(function, name, why)``, where ``function`` is one of its own (or ``saved`` and
    ``restored``: it fails afterwards; ``half-saved``: an incomplete file is left; ``died``: the machine dies while it
    is written), ``gate`` (what is wrong with a node), ``gateless`` (it lacks the gate's programs), ``hanging`` (its
    jobs don't stop), ``processes`` (the ids of jobs that have ended and still have processes), or ``immortal`` (those
    don't end). ``choose_host`` and ``check_target`` fail by the name of a host, ``restore`` by the machine's and the
    host's. ``calls`` has the names of its functions that were called, each with the machine's.
    """

    gives_back = True
    keeps_checkpoints = True

    def __init__(self, provider, slurm):
        self.calls = []
        self._provider = provider
        self._slurm = slurm
        self._saved = provider.store / "states"
        self._disks = provider.store / "disks"
        for path in (self._saved, self._disks):
            path.mkdir(exist_ok=True)

    def look(self, name, host=None):
        """As VmStates.look; nothing is ever busy."""
        self._fault("look", name)
        state = next(iter(self.state_files([name])), None)
        if (machine := self._read(name)) is None or host not in (None, machine["host"]):
            return Look(None, False, None, state)
        return Look(_machine(name, machine), False, _suspension(machine), state)

    def latest(self, name, host):
        """As VmStates.latest."""
        self._fault("look", name)
        return next(iter(self.state_files([name])), None)

    def state_files(self, names=None, hosts=None):
        """As VmStates.state_files."""
        return [state for state in self._files(names) if not state.is_checkpoint]

    def checkpoints(self, names=None, hosts=None):
        """As VmStates.checkpoints."""
        return [state for state in self._files(names) if state.is_checkpoint]

    def _files(self, names):
        found = []
        for path in self._saved.iterdir():
            name, number, _ = path.name.split(".")
            if names is None or name in names:
                text = path.read_text()
                machine = json.loads(text) if text else None
                found.append(
                    StateFile(
                        name=name,
                        number=int(number),
                        path=str(path),
                        host="hv1",
                        size=path.stat().st_size,
                        written=path.stat().st_mtime,
                        machine=machine and _machine(name, machine | {"power": "suspended"}),
                        suspension=machine and _suspension(machine),
                        trouble="" if machine else f"{path} can't be restored from: save image is incomplete",
                    )
                )
        return sorted(found, key=lambda state: (state.name, -state.number))

    def check_room(self, places):
        """As VmStates.check_room."""
        for name in places:
            self._fault("check_room", name, NoCapacity)

    def mark(self, name, host, suspension):
        """As VmStates.mark."""
        self._called("mark", name)
        machine = self._active(name, host)
        machine["mark"] = suspension and vars(suspension)
        self._write(name, machine)

    def pause(self, name, host):
        """As VmStates.pause."""
        self._called("pause", name)
        self._write(name, self._active(name, host) | {"power": "paused"})

    def unpause(self, name, host):
        """As VmStates.unpause."""
        self._called("unpause", name)
        machine = self._active(name, host)
        if _power(machine) == "paused":
            known = machine.get("disk", 0)
            assert known in (self._disk(name), self._disk(name) + 1), f"{name} ruins its disk"
            self._write(name, machine | {"power": "running", "disk": known + 1})
            self._set_disk(name, known + 1)  # second: it may be killed in between

    def save(self, name, host, urgent=False):
        """As VmStates.save."""
        self._called("save", name)
        number = 1 + max((state.number for state in self._files([name])), default=0)
        path = self._saved / f"{name}.{number}.state"
        machine = self._active(name, host)
        if self._text("half-saved", name) or self._text("died", name):
            path.touch()
        if self._text("died", name):
            self._write(name, machine | {"power": "stopped"})
        self._fault("half-saved", name)
        self._fault("died", name)
        path.write_text(json.dumps(machine))
        self._write(name, machine | {"power": "stopped"})
        self._fault("saved", name)
        return self.state_files([name])[0]

    def let_go(self, name, host):
        """As VmStates.let_go."""
        self._called("let_go", name)
        self._let_go(name, host)

    def choose_host(self, state, host=None, last=None):
        """As VmStates.choose_host."""
        if host not in (None, "hv1", "hv2"):
            raise InvalidInput(f"{host} is not a host of this provider: hv1, hv2")
        chosen = host or last or state.host
        self._fault("choose_host", chosen, NoCapacity)
        return chosen

    def restore(self, state, host):
        """As VmStates.restore."""
        self._called("restore", state.name)
        self._fault("restore", f"{state.name}.{host}")
        if (there := self._read(state.name)) and _power(there) in ("running", "paused"):
            raise ProviderError(f"{there['host']}: {state.name} is active already")
        saved = json.loads(Path(state.path).read_text())
        self._fit_disk(state)
        self._write(state.name, saved | {"power": "paused", "host": host})
        self._fault("restored", state.name)

    def put_back(self, name, host):
        """As VmStates.put_back."""
        self._called("put_back", name)
        machine = self._read(name)
        if machine is None or machine["host"] != host:
            return
        if _power(machine) == "running" or not _suspension(machine) or _suspension(machine).ran:
            raise ProviderError(f"{host}: {name} has run already")
        self._write(name, machine | {"power": "stopped"})
        self._let_go(name, host)

    def settle(self, name, host):
        """As VmStates.settle."""
        self._called("settle", name)
        state = self.latest(name, host)
        if state and state.machine and state.suspension.phase is Phase.RESTORED and not state.suspension.kept:
            self._amend(state, phase=Phase.OVER)
            self._snapshot(state).unlink()

    def forget(self, name, host):
        """As VmStates.forget."""
        self._called("forget", name)
        for state in self.state_files([name]):
            if state.machine and state.suspension.phase is Phase.RESTORED and state.suspension.kept:
                self._amend(state, phase=Phase.CHECKPOINT)
            else:
                os.unlink(state.path)

    def choose(self, state, host, suspension):
        """As VmStates.choose."""
        self._called("choose", state.name)
        self._amend(state, **vars(suspension) | {"kept": True, "phase": Phase.RESTORED})

    def give_up(self, name, host):
        """As VmStates.give_up."""
        self._called("give_up", name)
        self._there(name, host)
        state = self.latest(name, host)
        if not state or state.suspension.phase is not Phase.RESTORED:
            raise ProviderError(f"{host}: {name} has no memory but its own, which must not be thrown away")
        self._file(name).unlink()

    def discard(self, state, host):
        """As VmStates.discard."""
        self._called("discard", state.name)
        self._active(state.name, host)
        os.unlink(state.path)
        self._snapshot(state).unlink()

    def check_target(self, places, target):
        """As VmStates.check_target."""
        for name, host in places.items():
            self._active(name, host)
        self._fault("check_target", target, NoCapacity)

    def migrate(self, name, host, target):
        """As VmStates.migrate."""
        self._called("migrate", name)
        self._write(name, self._active(name, host) | {"host": target})

    def set_clock(self, name, host, patience):
        """As VmStates.set_clock."""
        self._called("set_clock", name)
        self._running(name, host)
        return 0.0

    def run_in_guest(self, name, host, argv, text="", timeout=60):
        """As VmStates.run_in_guest, with what the project's programs on a node do."""
        program, *arguments = argv if argv[0] != TIMEOUT else argv[2:]
        function = Path(program).name
        self._called(function, name)
        self._running(name, host)
        if program == JOB_PROCESSES:
            return self._job_processes(name, arguments)
        if program == READY_AGAIN:
            assert text == CREDENTIAL
            wrong = self._text("gate", name)
            return int(bool(wrong)), f"MUNGE:node\n{wrong}", ""
        if program == TEST:
            return int(arguments != ["-x", READY_AGAIN] or bool(self._text("gateless", name))), "", ""
        if program == PART:
            why = self._text("part", name)
            return int(bool(why)), why, ""
        assert argv == ["/usr/bin/systemctl", "restart", "slurmd"]
        if not self._text("immortal", name):
            self._provider.mend("processes", name)  # slurmctld has them killed
        return 0, "", ""

    def die(self, name):
        """A machine dies."""
        self._write(name, self._read(name) | {"power": "stopped"})

    def _job_processes(self, name, wanted):
        left = self._text("processes", name).split()
        jobs = {str(job.id): job.states for job in self._slurm.jobs([name])}
        if not wanted:
            return 0, "".join(f"{job} 1 S\n" for job in [*jobs, *left]), ""
        running = [job for job in wanted if "RUNNING" in jobs.get(job, ()) or self._text("hanging", name)]
        return int(bool(running)), "".join(f"{job} 1 S\n" for job in running), ""

    def _let_go(self, name, host):
        machine = self._read(name)
        if machine is None or machine["host"] != host:
            return
        saved = self.state_files([name])
        if not saved or not saved[0].machine:
            raise ProviderError(f"{host}: {name} has no complete state file and must not be undefined")
        if _power(machine) in ("running", "paused"):
            raise ProviderError(f"{host}: {name} is still active")
        if not _suspension(machine) or _suspension(machine).ran:
            raise ProviderError(f"{host}: {name} has run since {saved[0].path} was written")
        self._file(name).unlink()

    def _called(self, function, name):
        self.calls.append((function, name))
        self._fault(function, name)

    def _text(self, function, name):
        path = self._provider.store / "faults" / f"{function}.{name}"
        return path.read_text() if path.exists() else ""

    def _fault(self, function, name, kind=ProviderError):
        if why := self._text(function, name):
            if why == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)
            raise kind(why)

    def _there(self, name, host):
        machine = self._read(name)
        if machine is None or machine["host"] != host:
            raise NotFound(f"no machine {name} of cluster lab on {host}")
        return machine

    def _active(self, name, host):
        machine = self._there(name, host)
        if _power(machine) not in ("running", "paused"):
            raise ProviderError(f"{host}: domain {name} is not running")
        return machine

    def _running(self, name, host):
        machine = self._there(name, host)
        if _power(machine) != "running":
            raise ProviderError(f"{host}: the guest agent of {name} is not connected")
        return machine

    def _fit_disk(self, state):
        match state.suspension.phase:
            case Phase.WRITTEN:
                _write_whole(self._snapshot(state), str(self._disk(state.name)))
                self._amend(state, phase=Phase.RESTORED)
            case Phase.RESTORED:
                self._set_disk(state.name, self._snapshot(state).read_text())
            case _:
                raise ProviderError(f"{state.host}: {state.name} has been at work since {state.path} was written")

    def _amend(self, state, **changes):
        saved = json.loads(Path(state.path).read_text())
        saved["mark"] |= changes
        _write_whole(Path(state.path), json.dumps(saved))

    def _snapshot(self, state):
        return self._disks / f"{state.name}.{state.number}"

    def _set_disk(self, name, generation):
        _write_whole(self._disks / name, str(generation))

    def _disk(self, name):
        path = self._disks / name
        return int(path.read_text()) if path.exists() else 0

    def _read(self, name):
        return json.loads(self._file(name).read_text()) if self._file(name).exists() else None

    def _write(self, name, machine):
        _write_whole(self._file(name), json.dumps(machine))

    def _file(self, name):
        return self._provider.machine_files / name


def _write_whole(path, text):
    """A process that is killed leaves the old text or the new."""
    fresh = path.parent.with_name(f".{path.parent.name}.{path.name}")
    fresh.write_text(text)
    fresh.rename(path)


def _power(machine):
    return machine.get("power", "running")


def _machine(name, machine):
    power = PowerState(_power(machine))
    return Machine(name, machine["host"], power, "lab", 256, 1, machine.get("address", ""), "node.qcow2", 0.0, "uuid")


def _suspension(machine):
    mark = machine.get("mark")
    return mark and Suspension(**mark | {"jobs": tuple(mark["jobs"]), "phase": Phase(mark["phase"])})
