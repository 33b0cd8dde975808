"""A machine of the lab as the bench sees it: by virsh on its host, and by its guest agent, as anybody could."""

import base64
import contextlib
import json
import os
import re
import subprocess
import time
from dataclasses import dataclass

from vm import read

from labtools import container
from labtools.settings import STATE, Machine

PATIENCE = 300  # seconds
_POLL = 0.05


@dataclass(frozen=True)
class Guest:
    """A machine, by its name, on a host of the lab."""

    name: str
    host: Machine

    def virsh(self, command, *arguments):
        """The output of virsh on its host."""
        return read(self.host, "virsh", "--quiet", command, *arguments)

    def agent(self, command, **arguments):
        """What its guest agent answers; CalledProcessError while there is none."""
        request = json.dumps({"execute": command, "arguments": arguments})
        argv = ["virsh", "--quiet", "qemu-agent-command", self.name, request]
        asked = container.execute(self.host, argv, check=True, capture_output=True, text=True)
        return json.loads(asked.stdout)["return"]

    def begin(self, *argv):
        """Begin a process in the guest; returns its pid."""
        program, *rest = argv
        return self.agent("guest-exec", path=program, arg=rest, **{"capture-output": True})["pid"]

    def result(self, pid):
        """The exit status and the output of a process, once it has ended."""
        deadline = time.monotonic() + PATIENCE
        while not (status := self.agent("guest-exec-status", pid=pid))["exited"]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {pid} in {self.name} has not ended within {PATIENCE} s")
            time.sleep(_POLL)
        return status.get("exitcode"), base64.b64decode(status.get("out-data", "")).decode()

    def run(self, script):
        """The exit status and the output of a shell script in the guest."""
        return self.result(self.begin("/bin/sh", "-c", script))

    def wait_agent(self):
        """Wait until its guest agent answers."""

        def answers():
            with contextlib.suppress(subprocess.CalledProcessError):
                self.agent("guest-ping")
                return True

        self._wait(answers, "answer")

    def wait_off(self):
        """Wait until it has shut down."""
        self._wait(lambda: self.virsh("domstate", self.name).strip() == "shut off", "shut down")

    def resident(self):
        """MiB of the host's RAM that its QEMU has; 0 where there is none."""
        return self._stat("--balloon", r"balloon\.rss=(\d+)") / 1024

    def cpu_percent(self, seconds=2):
        """How much of one of the host's CPUs its own use, over some seconds."""
        before, begun = self._cpu_time(), time.monotonic()
        if before == 0:  # it is off
            return 0.0
        time.sleep(seconds)
        return 100 * (self._cpu_time() - before) / (time.monotonic() - begun)

    def disk(self):
        """MiB that its own files take up."""
        return sum(path.stat().st_blocks for path in self._files()) * 512 / 1024**2

    def drop_caches(self):
        """Have the host's page cache forget its own files."""
        for path in self._files():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def _files(self):
        return [*(STATE / "nodes").glob(f"{self.name}.*"), *(STATE / "states").glob("bench.*")]

    def _cpu_time(self):
        return self._stat("--vcpu", r"vcpu\.0\.time=(\d+)") / 1e9

    def _stat(self, group, pattern):
        found = re.search(pattern, self.virsh("domstats", group, self.name))
        return int(found[1]) if found else 0

    def _wait(self, condition, what):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} did not {what} within {PATIENCE} s")
            time.sleep(_POLL)


@contextlib.contextmanager
def clock(seconds, name):
    """Time a block into a mapping."""
    begun = time.monotonic()
    try:
        yield
    finally:
        seconds[name] = time.monotonic() - begun
