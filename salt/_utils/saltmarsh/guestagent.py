"""
What a machine's guest agent is asked by libvirt: run a program, set the clock.

Part of the seam to libvirt: used by :mod:`saltmarsh.vmstate`, nobody else.
"""

import base64
import json
import time

import libvirt
import libvirt_qemu

from saltmarsh.errors import ProviderError
from saltmarsh.libvirt_link import asking

_AGENT_CALL = 10  # seconds for one answer
_CLOCK_OFFSET = 0.3  # seconds
_POLL = 0.02
_AWAY = (
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
    libvirt.VIR_ERR_AGENT_UNSYNCED,
    libvirt.VIR_ERR_OPERATION_INVALID,
)


def run(host, connection, domain, argv, text="", timeout=60):
    """
    Run a program in the guest.

    :param argv: the program's path and its arguments
    :param str text: its standard input
    :param float timeout: seconds
    :returns: its exit status, and what it wrote to stdout and stderr
    :rtype: tuple[int, str, str]
    :raises ProviderError: the agent does not answer, or the program did not end in time
    """

    def ask(command, **arguments):
        with asking(host, connection, f"can't ask the guest agent of {domain.name()}"):
            request = json.dumps({"execute": command, "arguments": arguments})
            return json.loads(libvirt_qemu.qemuAgentCommand(domain, request, _AGENT_CALL, 0))["return"]

    deadline = time.monotonic() + timeout
    program, *rest = argv
    given = {"input-data": base64.b64encode(text.encode()).decode()} if text else {}
    pid = ask("guest-exec", path=program, arg=rest, **{"capture-output": True}, **given)["pid"]
    while not (status := ask("guest-exec-status", pid=pid))["exited"]:
        if time.monotonic() > deadline:
            raise ProviderError(f"{host}: {program} in {domain.name()} has not ended within {timeout:g} s")
        time.sleep(_POLL)
    out, err = (base64.b64decode(status.get(key, "")).decode(errors="replace") for key in ("out-data", "err-data"))
    return status.get("exitcode", 128 + status.get("signal", 0)), out, err


def set_clock(host, connection, domain, patience):
    """
    Step the guest's clock to this machine's, and see that it is.

    Not by libvirt's own virDomainSetTime: the agent would write the hardware clock as well, for half a second under
    emulation (measured), and QEMU's has followed the host's all the time. It is stepped by how far it is off, not to a
    time: until a program runs in a guest that has just come back, that would be over.

    :param float patience: seconds until its guest agent must have answered
    :returns: how far off it is now, in seconds
    :raises ProviderError: the agent does not answer, or the clock can't be set
    """
    name, said = domain.name(), ""
    deadline = time.monotonic() + patience
    while True:
        try:
            offset = _clock_offset(host, connection, domain)
            if abs(offset) <= _CLOCK_OFFSET:
                return offset
            if time.monotonic() > deadline:
                raise ProviderError(f"{host}: the clock of {name} is {offset:+.3f} s off after it was set{said}")
            code, _, err = run(host, connection, domain, ["/usr/bin/date", f"--set={-offset:.6f} seconds"])
            said = f" ({' '.join(err.split())})" if code else ""
        except ProviderError as err:
            cause = err.__cause__
            away = isinstance(cause, libvirt.libvirtError) and cause.get_error_code() in _AWAY
            if not away or time.monotonic() > deadline:
                raise
            time.sleep(_POLL)


def _clock_offset(host, connection, domain):
    """How many seconds a guest's clock is ahead of this machine's."""
    with asking(host, connection, f"can't read the clock of {domain.name()}"):
        asked = time.time()
        guest = domain.getTime()
        return guest["seconds"] + guest["nseconds"] / 1e9 - (asked + time.time()) / 2
