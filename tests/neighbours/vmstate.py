"""The memory of the machines that the stub driver has made: what saltmarsh.vmstate does, with files for machines."""

import json
import os
import signal
import time

from saltmarsh import munge as real_munge
from saltmarsh.errors import InvalidInput, NoCapacity, NotFound, ProviderError
from saltmarsh.guest import JOB_PROCESSES, READY_AGAIN
from saltmarsh.machine import Machine, PowerState, StateFile, Suspension
from saltmarsh.vmstate import Look

KILL = "kill"


class Munge:
    """Munge that takes every credential."""

    encode = staticmethod(lambda: "MUNGE:controller\n")
    decode = staticmethod(lambda credential: None)


assert {"encode", "decode"} <= set(dir(real_munge))


class VmStates:
    """
    As saltmarsh.vmstate.VmStates, for every machine of a provider; all in files, for several processes.

    A fault of one of its functions is set by ``provider.fail(function, name, why)``; ``gate.NAME`` in the directory of
    faults has what ``ready-again`` says is wrong, ``processes.NAME`` the ids of the jobs with processes there.
    """

    def __init__(self, provider, slurm):
        self._provider = provider
        self._slurm = slurm
        self._saved = provider.store / "states"
        self._saved.mkdir(exist_ok=True)

    def look(self, name, host=None):
        state = next(iter(self.state_files([name])), None)
        if (machine := self._read(name)) is None or host not in (None, machine["host"]):
            return Look(None, False, None, state)
        return Look(_machine(name, machine), False, _suspension(machine), state)

    def state_files(self, names=None, hosts=None):
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
        for name in places:
            self._fault("check_room", name, NoCapacity)

    def mark(self, name, host, suspension):
        self._fault("mark", name)
        machine = self._there(name, host)
        machine["mark"] = suspension and vars(suspension)
        self._write(name, machine)

    def pause(self, name, host):
        self._power("pause", name, host, "paused")

    def unpause(self, name, host):
        self._power("unpause", name, host, "running")

    def save(self, name, host, urgent=False):
        self._fault("save", name)
        machine = self._there(name, host)
        number = 1 + max((state.number for state in self.state_files([name])), default=0)
        (self._saved / f"{name}.{number}.state").write_text(json.dumps(machine))
        self._write(name, machine | {"power": "stopped"})
        self._fault("saved", name)
        return self.state_files([name])[0]

    def let_go(self, name, host):
        self._fault("let_go", name)
        self._file(name).unlink(missing_ok=True)

    def choose_host(self, state, host=None, last=None):
        chosen = host or last or state.host
        self._fault("choose_host", chosen, InvalidInput)
        return chosen

    def restore(self, state, host):
        self._fault("restore", state.name)
        saved = json.loads((self._provider.store / "states" / f"{state.name}.{state.number}.state").read_text())
        self._write(state.name, saved | {"power": "paused", "host": host})
        self._fault("restored", state.name)

    def put_back(self, name, host):
        if (machine := self._read(name)) is not None:
            if machine.get("power", "running") == "running":
                raise ProviderError(f"{host}: {name} runs already")
            self._file(name).unlink()

    def forget(self, name, host, older_than=None):
        self._fault("forget", name)
        for state in self.state_files([name]):
            if older_than is None or state.number < older_than:
                os.unlink(state.path)

    def check_target(self, name, host, target):
        self._there(name, host)
        self._fault("check_target", name, NoCapacity)

    def migrate(self, name, host, target):
        self._fault("migrate", name)
        self._write(name, self._there(name, host) | {"host": target})

    def set_clock(self, name, host, patience):
        self._fault("set_clock", name)
        return 0.0

    def run_in_guest(self, name, host, argv, text="", timeout=60):
        self._fault("run_in_guest", name)
        assert self._there(name, host).get("power", "running") == "running", "only a guest that runs answers"
        program, *arguments = argv
        if program == JOB_PROCESSES:
            return self._job_processes(name, arguments)
        if program == READY_AGAIN:
            assert text == Munge.encode()
            wrong = self._text(f"gate.{name}")
            return int(bool(wrong)), f"MUNGE:node\n{wrong}", ""
        assert argv == ["/usr/bin/systemctl", "restart", "slurmd"]
        (self._provider.store / "faults" / f"processes.{name}").unlink(missing_ok=True)  # slurmctld has them killed
        return 0, "", ""

    def _job_processes(self, name, wanted):
        left = self._text(f"processes.{name}").split()
        jobs = {str(job.id): job.states for job in self._slurm.jobs([name])}
        if not wanted:
            return 0, "".join(f"{job} 1 S\n" for job in [*jobs, *left]), ""
        running = [job for job in wanted if "RUNNING" in jobs.get(job, ())]
        return int(bool(running)), "".join(f"{job} 1 S\n" for job in running), ""

    def _text(self, fault):
        path = self._provider.store / "faults" / fault
        return path.read_text() if path.exists() else ""

    def _fault(self, function, name, kind=ProviderError):
        if why := self._text(f"{function}.{name}"):
            if why == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)
            raise kind(why)

    def _power(self, function, name, host, power):
        self._fault(function, name)
        self._write(name, self._there(name, host) | {"power": power})

    def _there(self, name, host):
        machine = self._read(name)
        if machine is None or machine["host"] != host:
            raise NotFound(f"no machine {name} on {host}")
        return machine

    def _read(self, name):
        return json.loads(self._file(name).read_text()) if self._file(name).exists() else None

    def _write(self, name, machine):
        self._file(name).write_text(json.dumps(machine))

    def _file(self, name):
        return self._provider.machine_files / name


def _machine(name, machine):
    power = PowerState(machine.get("power", "running"))
    return Machine(name, machine["host"], power, "lab", 256, 1, machine.get("address", ""), "node.qcow2", "uuid")


def _suspension(machine):
    mark = machine.get("mark")
    return mark and Suspension(**mark | {"jobs": tuple(mark["jobs"])})
