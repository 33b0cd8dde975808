"""What all salt-cloud drivers of this project do in the same way."""

import contextlib
import os
import socket

import salt.utils.cloud
import salt.utils.files
from salt.exceptions import SaltCloudConfigError, SaltCloudExecutionFailure, SaltCloudNotFound, SaltCloudSystemExit

from saltmarsh import identity
from saltmarsh.errors import InvalidInput, NotFound, SaltmarshError


@contextlib.contextmanager
def errors_converted():
    """A foreign exception would end a whole map: raise what salt-cloud knows, with the same one line."""
    try:
        yield
    except InvalidInput as err:
        raise SaltCloudConfigError(str(err)) from err
    except NotFound as err:
        raise SaltCloudNotFound(str(err)) from err
    except SaltmarshError as err:
        raise SaltCloudExecutionFailure(str(err)) from err


def with_address(vm_):
    """
    What is known of a machine, with its address; without one there, its name says it.

    :param dict vm_: provider, profile and map entry, merged by salt-cloud
    :raises InvalidInput: there is none, and the name does not resolve to one
    """
    if vm_.get("address"):
        return vm_
    try:
        [address] = {found[4][0] for found in socket.getaddrinfo(vm_["name"], None, socket.AF_INET)}
    except (OSError, ValueError) as err:
        raise InvalidInput(f"{what(vm_)}: address: not given, and the name does not resolve to one address") from err
    return vm_ | {"address": address}


def what(vm_):
    """What a machine's values are, for messages."""
    return f"{vm_['name']} (profile {vm_.get('profile')})"


def minion(opts, vm_):
    """
    The minion of a machine, or None if salt-cloud has made no keys for it (``deploy: False``).

    :param dict opts: salt-cloud's configuration
    :param dict vm_: provider, profile and map entry, merged by salt-cloud
    :rtype: saltmarsh.identity.Minion
    :raises InvalidInput: the master's key can't be read
    """
    if not vm_.get("pub_key"):
        return None
    try:
        with salt.utils.files.fopen(os.path.join(opts["pki_dir"], "master.pub")) as file:
            trusted = file.read()
    except OSError as err:
        raise InvalidInput(
            f"{vm_['name']} can't be told which master to trust: {err}; run this on the master, or set deploy: False"
        ) from err
    return identity.Minion(
        config=salt.utils.cloud.minion_config(opts, vm_),
        private_key=vm_["priv_key"],
        public_key=vm_["pub_key"],
        master_key=trusted,
    )


def forget_key(opts, vm_):
    """salt-cloud has accepted the key before it came to the driver; a machine that isn't there must not have one."""
    if not vm_.get("pub_key"):
        return
    config = vm_.get("minion") or {}
    key = ".".join(filter(None, (config.get("id", vm_["name"]), config.get("append_domain"))))
    salt.utils.cloud.remove_key(opts["pki_dir"], key)


def fire(opts, vm_, tag, message):
    """One of salt-cloud's events about a machine; of what is known of it, nothing that could be a secret."""
    salt.utils.cloud.fire_event(
        "event",
        message,
        f"salt/cloud/{vm_['name']}/{tag}",
        args={key: vm_[key] for key in ("name", "profile", "provider", "driver") if key in vm_},
        sock_dir=opts["sock_dir"],
        transport=opts["transport"],
    )


def not_an_action(call, function):
    """:raises SaltCloudSystemExit: salt-cloud was told to do this to a machine"""
    if call == "action":
        raise SaltCloudSystemExit(f"{function} is not for a machine: use -f or --function")


def only_an_action(call, function):
    """:raises SaltCloudSystemExit: salt-cloud was not told to do this to a machine"""
    if call != "action":
        raise SaltCloudSystemExit(f"{function} is for a machine: use -a or --action")


def not_a_function(call):
    """:raises SaltCloudSystemExit: salt-cloud was told to destroy no machine in particular"""
    if call == "function":
        raise SaltCloudSystemExit("destroy is for machines: use -d, --destroy, -a or --action")
