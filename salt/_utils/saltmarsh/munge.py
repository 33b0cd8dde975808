"""Munge on this machine: credentials made and read. Nothing else in the project calls munge, but the gate on nodes."""

import subprocess

from saltmarsh.errors import ProviderError

_SECONDS = 30


def encode():
    """
    A credential without content.

    :rtype: str
    :raises ProviderError: munged does not make one
    """
    return _run("munge", "--no-input")


def decode(credential):
    """
    Make sure that a credential is one of this site, made about now, and new.

    :raises ProviderError: it is not; says why
    """
    _run("unmunge", "--no-output", text=credential)


def _run(*argv, text=""):
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise ProviderError(f"{argv[0]} on the controller: {err}") from err
    if done.returncode != 0:
        raise ProviderError(f"{argv[0]} on the controller: {' '.join((done.stderr or done.stdout).split())}")
    return done.stdout
