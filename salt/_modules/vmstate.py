"""
The memory of the machines on one host: suspend to disk and back, pause, for an administrator who works there by hand.

For nodes of a cluster that works, ``salt-run elastic.suspend`` and ``resume`` are the way: they look after Slurm and
its jobs, and keep the ledger right. These here know nothing of Slurm: a node that is away for longer than SlurmdTimeout
is set down by Slurm, and loses its jobs.

Pillar says which machines are meant, and where their memory goes:

.. code-block:: yaml

    elastic:
      cluster: lab                # the mark of the cluster's machines; others are never touched
    hypervisor:
      state_dir: /srv/states      # a storage pool must be there
"""

import functools
import os
import shutil
import time

from salt.exceptions import CommandExecutionError, SaltInvocationError

MISSING = "this is no libvirt host: there is no virsh"
# A node has no use for it, and would spend memory on it that a small one has not.
if shutil.which("virsh"):
    try:
        from saltmarsh.errors import InvalidInput, SaltmarshError
        from saltmarsh.hypervisor import Hypervisors
        from saltmarsh.machine import ProviderConfig, Suspension
        from saltmarsh.vmstate import VmStates

        MISSING = None
    except ImportError as err:
        MISSING = str(err)

__virtualname__ = "vmstate"
__func_alias__ = {"list_": "list"}

_URI = "qemu:///system"
_CLOCK_SECONDS = 60


def __virtual__():
    if MISSING:
        return False, MISSING
    if not __pillar__.get("hypervisor", {}).get("state_dir"):
        return False, "pillar hypervisor:state_dir is not set: this is no host whose machines can be suspended"
    return __virtualname__


def _errors_of_salt(function):
    """Let callers of Salt see Salt's own errors."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except InvalidInput as err:
            raise SaltInvocationError(str(err)) from err
        except SaltmarshError as err:
            raise CommandExecutionError(str(err)) from err

    return call


@_errors_of_salt
def list_():
    """
    The cluster's machines on this host and those whose memory is in its ``state_dir``: state, MiB, CPUs, address.

    CLI Example:

    .. code-block:: bash

        salt hv1 vmstate.list
    """
    return {
        machine.name: {
            "state": str(machine.state),
            "memory": machine.memory,
            "cpus": machine.cpus,
            "address": machine.address,
        }
        for machine in _hypervisors().machines()
    }


@_errors_of_salt
def info(name):
    """
    What there is of a machine here: its state, why it was suspended, and its state files, the latest first, with their
    sizes in bytes and ages in seconds.

    name
        the machine

    CLI Example:

    .. code-block:: bash

        salt hv1 vmstate.info vn001
    """
    states = _states()
    look = states.look(name, _host())
    saved = states.state_files([name])
    mark = look.suspension or (look.state and look.state.suspension)
    if look.machine is None and not saved:
        raise CommandExecutionError(f"{name} is not on {_host()}, and has no state file there")
    return {
        "state": str(look.machine.state) if look.machine else "suspended",
        "suspended": {"by": mark.by, "at": mark.at, "why": mark.why, "jobs": list(mark.jobs)} if mark else None,
        "files": [
            {
                "file": each.path,
                "size": each.size,
                "age": round(time.time() - each.written),
                "usable": each.trouble or True,
            }
            for each in saved
        ],
    }


@_errors_of_salt
def suspend(name, reason="", test=False):
    """
    Write a machine's memory to ``state_dir``; the machine leaves this host, and its RAM and CPUs are free.

    name
        the machine

    reason
        why, kept with its memory

    test
        only say what would be done

    Returns the state file and its size in bytes.

    CLI Example:

    .. code-block:: bash

        salt hv1 vmstate.suspend vn001 reason='new disk'
    """
    states, host = _states(), _host()
    _running(states, name)
    states.check_room({name: host})
    if test:
        return {"would suspend": name}
    states.mark(name, host, Suspension(time.time(), _who(), reason))
    states.pause(name, host)
    try:
        saved = states.save(name, host)
    except SaltmarshError:
        states.unpause(name, host)
        states.mark(name, host, None)
        raise
    states.let_go(name, host)
    return {"file": saved.path, "size": saved.size}


@_errors_of_salt
def resume(name, test=False):
    """
    Bring a machine back from its latest state file, with its clock set; the file is deleted afterwards.

    name
        the machine

    test
        only say what would be done

    CLI Example:

    .. code-block:: bash

        salt hv1 vmstate.resume vn001
    """
    states, host = _states(), _host()
    look = states.look(name, host)
    if look.machine is not None:
        raise CommandExecutionError(f"{name} is on {host} already: it is {look.machine.state}")
    if look.state is None or look.state.machine is None:
        raise CommandExecutionError(look.state.trouble if look.state else f"{name} has no state file on {host}")
    if test:
        return {"would resume": name, "file": look.state.path}
    states.restore(look.state, host)
    states.mark(name, host, None)
    states.unpause(name, host)
    offset = states.set_clock(name, host, _CLOCK_SECONDS)
    states.settle(name, host)
    states.forget(name, host)
    return {"file": look.state.path, "clock": round(offset, 3)}


@_errors_of_salt
def save(name, path, test=False):
    """
    Write a machine's memory to a file of one's choice; the machine leaves this host.

    name
        the machine

    path
        an absolute path that does not exist yet

    test
        only say what would be done

    CLI Example:

    .. code-block:: bash

        salt hv1 vmstate.save vn001 /var/tmp/vn001.memory
    """
    states = _states()
    _running(states, name)
    if not os.path.isabs(path) or os.path.exists(path):
        raise SaltInvocationError(f"path={path}: expected an absolute path that does not exist yet")
    if test:
        return {"would save": name, "file": path}
    states.save_to(name, _host(), path)
    return {"file": path, "size": os.stat(path).st_size}


@_errors_of_salt
def restore(path, test=False):
    """
    Bring back the machine whose memory is in a file, with its clock set. The file stays, but it no longer fits the
    machine's disk once the machine has run.

    path
        the file

    test
        only say what would be done

    CLI Example:

    .. code-block:: bash

        salt hv1 vmstate.restore /var/tmp/vn001.memory
    """
    states, host = _states(), _host()
    saved = states.read(path, host)
    if states.look(saved.name, host).machine is not None:
        raise CommandExecutionError(f"{saved.name} is on {host} already")
    if test:
        return {"would restore": saved.name, "file": path}
    states.restore(saved, host)
    states.unpause(saved.name, host)
    return {"machine": saved.name, "clock": round(states.set_clock(saved.name, host, _CLOCK_SECONDS), 3)}


@_errors_of_salt
def pause(name, test=False):
    """
    Stop a machine's CPUs; its memory stays where it is.

    name
        the machine

    test
        only say what would be done

    CLI Example:

    .. code-block:: bash

        salt hv1 vmstate.pause vn001
    """
    states = _states()
    _running(states, name)
    if test:
        return {"would pause": name}
    states.pause(name, _host())
    return True


@_errors_of_salt
def unpause(name, test=False):
    """
    Let a paused machine's CPUs go on, with its clock set.

    name
        the machine

    test
        only say what would be done

    CLI Example:

    .. code-block:: bash

        salt hv1 vmstate.unpause vn001
    """
    states, host = _states(), _host()
    look = states.look(name, host)
    if look.machine is None or str(look.machine.state) != "paused":
        raise CommandExecutionError(f"{name} is not paused on {host}")
    if test:
        return {"would unpause": name}
    states.unpause(name, host)
    return {"clock": round(states.set_clock(name, host, _CLOCK_SECONDS), 3)}


def _running(states, name):
    look = states.look(name, _host())
    if look.machine is None or str(look.machine.state) != "running":
        raise CommandExecutionError(
            f"{name} does not run on {_host()}{f': {look.machine.state}' if look.machine else ''}"
        )


def _host():
    return __grains__["id"]


def _who():
    return os.environ.get("SUDO_USER") or __opts__.get("user", "root")


def _config():
    values = {
        "cluster": __pillar__.get("elastic", {}).get("cluster"),
        "hosts": {_host(): {"uri": _URI}},
        # Machines are neither made nor removed here.
        "image_pool": "images",
        "disk_pool": "nodes",
        "reserved_memory": 0,
        "state_dir": __pillar__["hypervisor"]["state_dir"],
    }
    return ProviderConfig.read(values, "pillar")


def _hypervisors():
    return Hypervisors(_config(), __opts__["cachedir"])


def _states():
    return VmStates(_hypervisors(), __opts__["cachedir"])
