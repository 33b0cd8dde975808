"""
The ready gate: what must hold on a node before Slurm may use it. Runs on the node.

Each check returns None if all is well, otherwise one line saying what is not.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time

from saltmarsh import slurm
from saltmarsh.errors import SaltmarshError

_COMMAND_SECONDS = 30
_POLL = 0.5


def check(name, controller, mounts, max_offset, patience, translated=False):
    """
    Go through all checks; those that time can mend are tried again for a while.

    :param str name: the node's name
    :param str controller: the name of the machine that runs slurmctld
    :param dict mounts: by mount point: ``ro``, ``rw``, or ``write`` where root must be able to make a file
    :param float max_offset: seconds that the clock may be off
    :param float patience: seconds
    :param bool translated: the node is reached by an address that a router translates to its own
    :returns: what is wrong, one line each; empty when the node is ready
    :rtype: list[str]
    """
    deadline = time.monotonic() + patience
    checks = [
        lambda: check_name(name, translated),
        lambda: check_clock(max_offset),
        *(lambda path=path, access=access: check_mount(path, access) for path, access in mounts.items()),
        check_munge,
        lambda: check_slurm(controller),
    ]
    while True:
        failing = [(each, trouble) for each in checks if (trouble := each())]
        if not failing or time.monotonic() >= deadline:
            return [trouble for _, trouble in failing]
        checks = [each for each, _ in failing]
        time.sleep(_POLL)


def check_name(name, translated=False):
    """The host name is the node's, and DNS has it both ways: with an address of this machine, unless translated."""
    if socket.gethostname() != name:
        return f"the host name is {socket.gethostname()!r}, not {name!r}"
    try:
        address = socket.gethostbyname(name)
        back, aliases, _ = socket.gethostbyaddr(address)
    except OSError as err:
        return f"DNS does not know {name}: {err}"
    if name not in {known.partition(".")[0] for known in (back, *aliases)}:
        return f"DNS says that {address} is {back}, not {name}"
    if translated:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return f"DNS says that {name} is {address}, which is no address of this machine"
    return None


def check_clock(max_offset):
    """chrony follows a server, and the clock is no further off than allowed (chronyc(1): tracking)."""
    if not shutil.which("chronyc"):
        return "chronyc is not installed"
    code, said = _run("chronyc", "-c", "tracking")
    if code != 0:
        return f"chronyd does not answer: {said}"
    fields = said.strip().split(",")
    offset, leap = float(fields[4]), fields[13]
    if leap == "Not synchronised":
        return "chronyd has not synchronised the clock yet"
    if abs(offset) > max_offset:
        return f"the clock is {offset:+.3f} s off (at most {max_offset} s)"
    return None


def check_mount(path, access):
    """A file system is mounted here, and can be written where it should be."""
    if not os.path.ismount(path):
        return f"{path} is not mounted"
    try:
        read_only = bool(os.statvfs(path).f_flag & os.ST_RDONLY)
        if access == "write":
            with tempfile.TemporaryFile(dir=path) as probe:
                probe.write(b"saltmarsh")
    except OSError as err:
        return f"{path}: {err.strerror}"
    if read_only != (access == "ro"):
        return f"{path} is mounted {'ro' if read_only else 'rw'}, expected {access}"
    return None


def check_munge():
    """munged makes credentials and reads its own."""
    code, said = _run("munge", "--no-input")
    if code != 0:
        return f"munge: {said}"
    code, said = _run("unmunge", "--no-output", input=said)
    return None if code == 0 else f"unmunge: {said}"


def check_slurm(controller):
    """slurmctld takes this node's munge credentials, this node takes its, and both have the same configuration."""
    try:
        current = slurm.is_config_current(controller)
    except SaltmarshError as err:
        return f"slurmctld on {controller}: {err}"
    return None if current else "slurm.conf differs from slurmctld's"


def _run(*argv, **kwargs):
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False, **kwargs)
    except (OSError, subprocess.TimeoutExpired) as err:
        return 1, str(err)
    if done.returncode == 0:
        return 0, done.stdout
    return done.returncode, " ".join((done.stderr or done.stdout).split())
