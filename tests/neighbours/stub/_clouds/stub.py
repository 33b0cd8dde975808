"""A salt-cloud driver whose machines are files, see neighbours.provider."""

import functools
import json
import os
import signal
from pathlib import Path

import salt.config
import salt.utils.cloud
from neighbours import provider
from salt.exceptions import SaltCloudExecutionFailure, SaltCloudSystemExit

from saltmarsh import errors


def _gated(function):
    """A call to the provider, which somebody may watch or disturb."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        try:
            return provider.gate(function.__name__, lambda: function(*args, **kwargs))
        except errors.Unreachable as err:
            raise SaltCloudExecutionFailure(str(err)) from err

    return wrapper


def __virtual__():
    return get_configured_provider() is not False


def get_configured_provider():
    active = str(__active_provider_name__ or "stub:stub")
    return salt.config.is_provider_configured(__opts__, active, ("store", "hosts", "images"))


def get_dependencies():
    return True


@_gated
def create(vm_):
    name = vm_["name"]
    alias = vm_["provider"].partition(":")[0]
    for kind in (errors.NoCapacity, errors.QuotaExceeded):
        if why := _fault(kind.__name__, alias):
            raise SaltCloudExecutionFailure(why) from kind(why)
    host = vm_.get("host") or __opts__["providers"][alias]["stub"]["hosts"][0]
    _see(host)
    _show("create", name)
    if (_store() / "others" / name).exists():
        raise SaltCloudExecutionFailure(f"{host} already has a domain {name}")
    if (_store() / "volumes" / name).exists():
        raise SaltCloudExecutionFailure(
            f"{host}: storage pool nodes has {name}.lab.qcow2, but there is no domain {name}"
        )
    machine = {"name": name, "host": host, "address": vm_["address"], "image": vm_["image"], "pub_key": vm_["pub_key"]}
    machine |= {key: vm_[key] for key in ("tunnel",) if key in vm_}
    # One process that is killed leaves all of it or nothing, of two at once one succeeds.
    fresh = _store() / f".{name}.{os.getpid()}"
    fresh.write_text(json.dumps(machine))
    try:
        os.link(fresh, _store() / "machines" / name)
    except FileExistsError as err:
        raise SaltCloudExecutionFailure(f"{host} already has a domain {name}") from err
    finally:
        fresh.unlink()
    _show("created", name)
    return machine


@_gated
def destroy(name, call=None, host=None):
    if call == "function":
        raise SaltCloudSystemExit("destroy is for machines")
    configured = get_configured_provider()["hosts"]
    hosts = [host] if host in configured else configured
    for each in hosts:
        _see(each)
    _show("destroy", name)
    machine = _store() / "machines" / name
    if machine.exists() and json.loads(machine.read_text()).get("host") in (None, *hosts):
        machine.unlink()
    for path in (*_store().glob(f"states/{name}.*"), *_store().glob(f"disks/{name}.*"), _store() / "disks" / name):
        path.unlink(missing_ok=True)
    return {"Destroyed": f"{name} was destroyed"}


def list_nodes_full(call=None):
    return {
        path.name: {"state": "running"} | json.loads(path.read_text()) for path in (_store() / "machines").iterdir()
    }


def list_nodes(call=None):
    return list_nodes_full()


@_gated
def list_nodes_min(call=None):
    _show("list", "all")
    return {path.name: {"state": "running"} for path in (_store() / "machines").iterdir()}


def list_nodes_select(call=None):
    return salt.utils.cloud.list_nodes_select(list_nodes_full(), __opts__["query.selection"], call)


def show_instance(name, call=None):
    return list_nodes_full()[name]


@_gated
def inventory(call=None):
    _show("list", "all")
    silent = {host: why for host in get_configured_provider()["hosts"] if (why := _fault("host", host)) is not None}
    found = [json.loads(path.read_text()) for path in (_store() / "machines").iterdir()]
    return {
        "machines": [
            {"name": each["name"], "host": each["host"], "state": each.get("power", "running")}
            for each in found
            if each["host"] not in silent
        ],
        "saved": {path.name.partition(".")[0]: path.stat().st_size for path in (_store() / "states").glob("*.state")},
        "silent": silent,
        "strays": {path.name for path in (_store() / "volumes").iterdir()},
        "others": {path.name for path in (_store() / "others").iterdir()},
    }


@_gated
def remove_strays(kwargs=None, call=None):
    for host in get_configured_provider()["hosts"]:
        _see(host)
    _show("remove_strays", kwargs["name"])
    (_store() / "volumes" / kwargs["name"]).unlink(missing_ok=True)


@_gated
def avail_images(call=None):
    return {image: {} for image in get_configured_provider()["images"]}


def avail_sizes(call=None):
    return {}


@_gated
def avail_locations(call=None):
    return {host: {} for host in get_configured_provider()["hosts"] if _fault("host", host) is None}


def _store():
    return Path(get_configured_provider()["store"])


def _fault(function, name):
    path = _store() / "faults" / f"{function}.{name}"
    return path.read_text() if path.exists() else None


def _show(function, name):
    """Show the fault that is asked for, if one is."""
    why = _fault(function, name)
    if why == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if why is not None:
        kind, _, text = why.rpartition("|")
        raise SaltCloudExecutionFailure(text) from (getattr(errors, kind)(text) if kind else None)


def _see(host):
    if (why := _fault("host", host)) is not None:
        raise SaltCloudExecutionFailure(f"{host} can't be reached: {why}")
