"""
What is asked of a node's operating system by its guest agent, when neither Slurm nor Salt may speak to it.

The programs are put there by the states ``gate`` (salt/gate/files).
"""

import logging
import time

from saltmarsh.errors import ProviderError

log = logging.getLogger(__name__)

JOB_PROCESSES = "/usr/local/libexec/saltmarsh/job-processes"
READY_AGAIN = "/usr/local/libexec/saltmarsh/ready-again"
PART = "/usr/local/libexec/saltmarsh/part"
TEST = "/usr/bin/test"
TIMEOUT = "/usr/bin/timeout"
GUEST_SECONDS = 60
GATE_SECONDS = 400  # an NFS client whose session is older than what the server remembers needs a minute for a new one
_POLL = 0.1


class Guest:
    """
    The operating system of one node.

    :param Controller controller: what to act through
    :param Node node: the node; its host is where its machine is
    """

    def __init__(self, controller, node):
        self._machines = controller.vmstates_of(node.name)
        self._munge = controller.munge
        self._node = node

    def check_agent(self, timeout):
        """
        Make sure that the guest agent answers and has what is asked of it later.

        :raises ProviderError: it does not
        """
        code, _, _ = self._run([TEST, "-x", READY_AGAIN], timeout=timeout)
        if code:
            remedy = f"apply its states: salt {self._node.name} state.highstate"
            raise ProviderError(f"{self._node.name} has no {READY_AGAIN}; {remedy}")

    def jobs(self):
        """
        The ids of the jobs of which there are processes.

        :rtype: set[int]
        """
        _, out, _ = self._run([JOB_PROCESSES])
        return {int(line.split()[0]) for line in out.splitlines()}

    def wait_stopped(self, ids, timeout):
        """
        Wait until no process of these jobs runs any more: SIGSTOP comes about two seconds after Slurm said so.

        :param ids: of jobs
        :param float timeout: seconds
        :raises ProviderError: one still runs
        """
        deadline = time.monotonic() + timeout
        while True:
            code, out, err = self._run([JOB_PROCESSES, *map(str, ids)])
            if code == 0:
                return
            if time.monotonic() > deadline:
                left = ", ".join((err or out).splitlines())
                raise ProviderError(f"{self._node.name}: jobs still run {timeout:g} s after they were stopped: {left}")
            time.sleep(_POLL)

    def set_clock(self):
        """Step the clock to the controller's."""
        return self._machines.set_clock(self._node.name, self._node.host, GUEST_SECONDS)

    def ready_again(self):
        """
        The ready gate of a node that was away: DNS, mounts, munge with the controller in both directions, slurm.conf.

        :returns: what is wrong, one line each
        :rtype: list[str]
        """
        argv = [TIMEOUT, str(GATE_SECONDS - GUEST_SECONDS), READY_AGAIN, self._node.name, self._node.address]
        code, out, err = self._run(argv, text=self._munge.encode(), timeout=GATE_SECONDS)
        lines = [line for line in out.splitlines() if line]
        theirs = [line for line in lines if line.startswith("MUNGE:")]
        wrong = [line for line in lines if not line.startswith("MUNGE:")]
        if code not in (0, 1):
            wrong.append(f"{READY_AGAIN} ended with {code}: {' '.join(err.split())}")
        elif not theirs:
            wrong.append("munged made no credential")
        else:
            try:
                self._munge.decode(theirs[0])
            except ProviderError as err:
                wrong.append(str(err))
        return wrong

    def part(self):
        """
        End what ties a machine to others that is about to be replaced by what it was before.

        What could not be ended is logged: the gate tells what comes of it.
        """
        try:
            code, out, err = self._run([PART], timeout=GATE_SECONDS)
        except ProviderError as trouble:
            code, out, err = 1, str(trouble), ""
        if code:
            log.warning("%s: %s", self._node.name, " ".join((out + err).split()))

    def restart_slurmd(self):
        """Have slurmd register anew; its jobs' processes are not its own service's (KillMode=process)."""
        self._run(["/usr/bin/systemctl", "restart", "slurmd"])

    def _run(self, argv, text="", timeout=GUEST_SECONDS):
        return self._machines.run_in_guest(self._node.name, self._node.host, argv, text, timeout)
