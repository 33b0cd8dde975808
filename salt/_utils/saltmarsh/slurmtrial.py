"""
The trial of a configuration, before it replaces the one that slurmctld runs with.
"""

import json
import os
import re
import subprocess
import time
from pathlib import Path

from saltmarsh.errors import SlurmError
from saltmarsh.slurmcommand import TIMEOUT, run

_POLL = 0.25


def try_config(path, address, timeout=120):
    """
    Prove that slurmctld accepts a configuration, by starting a second one on it (Slurm has no other test).

    It runs in a network namespace of its own, which has only the controller's address and reaches nothing, so that it
    can neither take the real one's port nor speak to a node. Without an address that is not 127.0.0.1 Slurm would
    resolve nothing (AI_ADDRCONFIG, getaddrinfo(3)).

    slurmctld does not load what only slurmd uses (TaskPlugin, ProctrackType, ...), but every slurmd ends when told to
    reconfigure with a plugin that does not exist (measured): that the plugins exist is looked up.

    :param pathlib.Path path: its slurm.conf, see slurmconf.render_trial; other files lie beside it
    :param str address: the controller's address
    :param float timeout: seconds
    :raises SlurmError: with slurmctld's own reason, or the plugin that does not exist
    """
    namespace = f"saltmarsh-{os.getpid()}"
    inside = ("ip", "netns", "exec", namespace)
    run("ip", "netns", "add", namespace)
    try:
        run("ip", "-n", namespace, "addr", "add", f"{address}/32", "dev", "lo")
        run("ip", "-n", namespace, "link", "set", "lo", "up")
        with (path.parent / "stderr").open("w+") as stderr:
            slurmctld = subprocess.Popen([*inside, "slurmctld", "-D", "-f", path], stdout=stderr, stderr=stderr)
            try:
                _wait_for_trial(slurmctld, (*inside, "env", f"SLURM_CONF={path}", "scontrol"), timeout)
                _check_plugins(run(*inside, "env", f"SLURM_CONF={path}", "scontrol", "show", "config"))
            except SlurmError as err:
                stderr.seek(0)
                why = _reason(stderr) if slurmctld.poll() is not None else err
                raise SlurmError(f"slurmctld does not accept the configuration: {why}") from err
            finally:
                _stop(slurmctld)
    finally:
        run("ip", "netns", "delete", namespace)


def _wait_for_trial(slurmctld, scontrol, timeout):
    end = time.monotonic() + timeout
    ask = [*scontrol, "ping", "--json"]
    while slurmctld.poll() is None:
        done = subprocess.run(ask, capture_output=True, timeout=TIMEOUT, check=False)
        if done.returncode == 0 and any(each["responding"] for each in json.loads(done.stdout)["pings"]):
            return
        if time.monotonic() >= end:
            raise SlurmError(f"it did not answer within {timeout:g} s")
        time.sleep(_POLL)
    raise SlurmError(f"it ended with exit status {slurmctld.returncode}")


def _check_plugins(shown):
    """Every plugin named in the output of ``scontrol show config`` must exist: TYPE/NAME is the file TYPE_NAME.so."""
    config = dict(re.findall(r"^(\w+) *= (.*?) *$", shown, re.MULTILINE))
    named = {key: value for key, value in config.items() if re.search("(Type|Plugins?)$", key) and "/" in value}
    for key, value in {**named, "MpiDefault": f"mpi/{config['MpiDefault']}"}.items():
        for plugin in value.split(","):
            path = Path(config["PluginDir"], plugin.replace("/", "_") + ".so")
            if not plugin.endswith(("/none", "/(null)")) and not path.exists():
                raise SlurmError(f"{key}={value}: there is no {path}")


def _stop(slurmctld):
    slurmctld.terminate()
    try:
        slurmctld.wait(10)
    except subprocess.TimeoutExpired:
        slurmctld.kill()
        slurmctld.wait()


def _reason(log):
    """What slurmctld says last before it gives up, with the complaints that lead to it."""
    said = [line.partition("slurmctld: ")[2].strip() for line in log if "fatal:" in line or "error:" in line]
    return "; ".join(said[-3:])
