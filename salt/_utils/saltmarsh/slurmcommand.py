"""
How Slurm's commands are run, and what it means if one fails.

The lower half of :mod:`saltmarsh.slurm` and :mod:`saltmarsh.slurmtrial`; nobody else uses it.
"""

import json
import subprocess

from saltmarsh.errors import SlurmError, Unreachable

# Above Slurm's own patience with a slurmctld that is away (9 s measured with MessageTimeout=10) and with one name
# that does not resolve (19 s).
TIMEOUT = 30


def run(*argv, env=None):
    """
    The output of a command. One that fails says too little: whether slurmctld answers is asked then.

    :param argv: the command and its arguments
    :param dict env: the environment; None for this process's own
    :rtype: str
    :raises Unreachable: slurmctld does not answer, or there is no such command here
    :raises SlurmError: with what the command says
    """
    what = " ".join(argv[:2])
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT, check=False, env=env)
    except subprocess.TimeoutExpired as err:
        raise Unreachable(f"{what} got no answer from slurmctld within {TIMEOUT} s") from err
    except OSError as err:
        raise Unreachable(f"{what} can't be run here: {err.strerror}") from err
    if done.returncode == 0:
        return done.stdout
    said = " ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
    if argv[:2] == ("scontrol", "ping"):  # not even a configuration that says where slurmctld is
        raise Unreachable(f"{what} failed: {said}")
    ping(env)
    raise SlurmError(f"{what} failed: {said or f'exit status {done.returncode}'}")


def ask(*argv, env=None):
    """
    What a command with ``--json`` answers.

    :param argv: the command and its arguments
    :param dict env: as for :func:`run`
    :raises SlurmError: also if the answer is no JSON
    """
    output = run(*argv, env=env)
    try:
        return json.loads(output)
    except ValueError as err:
        raise SlurmError(f"{argv[0]} {argv[1]} gave no JSON") from err


def ping(env=None):
    """
    Make sure that slurmctld answers.

    :param dict env: as for :func:`run`
    :raises Unreachable: it does not
    """
    pings = ask("scontrol", "ping", "--json", env=env)["pings"]
    if not any(each["responding"] for each in pings):
        raise Unreachable(f"slurmctld on {', '.join(each['hostname'] for each in pings)} does not answer")
