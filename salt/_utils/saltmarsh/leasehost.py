"""
The program that runs on a host for a lease: ``lease hold JOB`` as long as it lasts, ``lease end JOB`` if that has died.

It needs neither the Salt master nor a minion: its configuration is one file, written by the state ``lease``.
"""

import argparse
import contextlib
import fcntl
import json
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

from saltmarsh import leasing, munge, slurm
from saltmarsh.errors import SaltmarshError
from saltmarsh.hypervisor import Hypervisors
from saltmarsh.machine import ProviderConfig
from saltmarsh.pools import Site
from saltmarsh.record import Record
from saltmarsh.vmstate import VmStates

log = logging.getLogger(__name__)

CONFIG = "/etc/saltmarsh/lease.json"
RUN = "/run/saltmarsh"
AGAIN_SECONDS = 60
REVOKED_SECONDS = 2
_POLL = 0.1


@dataclass(frozen=True)
class HostController:
    """What the verbs act on and through on a host, as :class:`saltmarsh.controller.Controller` on the controller."""

    host: str
    site: Site
    ledger: Record
    slurm: ModuleType
    munge: ModuleType
    hypervisors: Hypervisors
    locks: Path
    _signals: list = field(default_factory=list)

    @classmethod
    def open(cls, path=CONFIG):
        """
        Open everything, as the state ``lease`` has configured it.

        :param path: the configuration
        :rtype: HostController
        """
        values = json.loads(Path(path).read_text())
        config = ProviderConfig.read(values["provider"], path)
        # Two hosts may have to act on one node: where they share their storage they share the locks as well.
        locks = Path(config.state_dir if config.shared_storage else RUN)
        hypervisors = Hypervisors(config, RUN)
        return cls(values["host"], Site.from_pillar(values), Record(()), slurm, munge, hypervisors, locks)

    def with_record(self, record):
        """The same, with other nodes in its record."""
        return replace(self, ledger=record)

    def vmstates_of(self, name):
        """As Controller.vmstates_of; there is one provider."""
        self.site.pool_of(name)
        return VmStates(self.hypervisors, self.locks)

    def profile_of(self, name):
        """As Controller.profile_of; of a pool with several, the first: there is one provider."""
        return self.site.pool_of(name).profiles[0]

    def destroy(self, name):
        """Remove a machine that is on this host, and all of it."""
        self.hypervisors.destroy(name, self.host)

    @contextlib.contextmanager
    def locked(self, names):
        """Act on nodes alone among all hosts; a request to end (SIGTERM) comes to its turn afterwards."""
        with contextlib.ExitStack() as stack:
            for name in names:
                lock = stack.enter_context((self.locks / f"lease-{name}.lock").open("a"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            before = signal.signal(signal.SIGTERM, lambda number, frame: self._signals.append(number))
            try:
                yield
            finally:
                signal.signal(signal.SIGTERM, before)
        if self._signals:
            raise SystemExit(128 + self._signals[0])


def hold(opened, number):
    """
    As long as a lease runs: bring its node back, wait, and put it away when this process is told to end.

    A program that has been loaded before is faster by what Python takes to load it, which a job would wait for.

    :param opened: called for what to act through, each time anew
    :param int number: the lease's job
    """
    try:
        controller = opened()
        if start(controller, number):
            controller.hypervisors.disconnect()
            _wait_for_signal()
    except SystemExit:
        end(opened(), number)


def start(controller, number):
    """
    A lease has started: bring its node back, once it is certain that the lease stays.

    :param HostController controller: what to act through
    :param int number: the lease's job
    :returns: whether it is one
    :rtype: bool
    """
    name = leasing.node_of(controller, number)
    if name is None:
        log.info("job %s is no lease (any more)", number)
        return False
    _note(number).write_text(name)
    # Urgent jobs that come one after the other must not find the node half restored each time.
    time.sleep(controller.site.lease.hysteresis)
    leasing.bring_back(controller, name)
    return True


def end(controller, number):
    """
    A lease has ended: put its node away. Until this returns, slurmd keeps the host from the next job.

    :param HostController controller: what to act through
    :param int number: the lease's job
    """
    note = _note(number)
    if not note.exists():
        return  # it ended before it began
    name = note.read_text()
    try:
        leasing.put_away(controller, name, f"{controller.host} is wanted")
    except SaltmarshError as err:
        leasing.give_up(controller, name, number, err)
    note.unlink()


def again(controller, number):
    """
    Let a lease that was put back into the queue start as soon as it can, not after two minutes (AuthInfo:cred_expire).

    slurmd refuses a job that starts in the very second in which it was put back, and the job is lost (measured).

    :param HostController controller: what to act through
    :param int number: the lease's job
    """
    deadline = time.monotonic() + AGAIN_SECONDS
    while time.monotonic() < deadline:
        [states] = [job.states for job in controller.slurm.jobs() if job.id == number] or [None]
        if states is None or "RUNNING" in states:
            return
        if "PENDING" in states and "COMPLETING" not in states:
            time.sleep(REVOKED_SECONDS)
            controller.slurm.start_now(number)
            return
        time.sleep(_POLL)


def _wait_for_signal():
    """Until its handler raises, whichever thread the signal comes to."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write)
    try:
        while True:
            os.read(read, 1)
    finally:
        signal.set_wakeup_fd(before)
        os.close(read)
        os.close(write)


def _note(number):
    """Where it is kept on this host which node a lease has, until it is put away; Slurm may not answer by then."""
    return Path(RUN, f"lease-{number}")


def main():
    """The command line; the exit status is what slurmd makes of it: not 0 drains the host."""
    parser = argparse.ArgumentParser(description="Bring the node of a lease back, and write it to disk at its end.")
    parser.add_argument("act", choices=["hold", "end", "again"])
    parser.add_argument("job", type=int)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    os.makedirs(RUN, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        match arguments.act:
            case "hold":
                hold(HostController.open, arguments.job)
            case "end":
                end(HostController.open(), arguments.job)
            case "again":
                again(HostController.open(), arguments.job)
    except SaltmarshError as err:
        log.error("%s", err)
        return 1
    return 0
