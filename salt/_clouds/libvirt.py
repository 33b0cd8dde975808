"""
Salt-cloud driver for virtual machines on libvirt hosts.

One provider is a set of hosts; a machine is placed on the one with most free memory. A machine is told its name,
address and minion keys when it boots; nothing is copied to it over SSH. See ``docs/howto/providers.md``.

:depends: libvirt-python

.. code-block:: yaml

    lab:
      driver: libvirt
      cluster: lab
      hosts:
        hv1: {uri: "qemu+tls://hv1/system"}
      image_pool: images
      disk_pool: nodes
"""

import dataclasses
import functools
import logging
import uuid

import salt.config
import salt.utils.cloud

from saltmarsh import driver, identity
from saltmarsh.errors import InvalidInput, Unreachable

# Never "import libvirt" here: this module has that name, and its directory is on the path while it is loaded.
try:
    from saltmarsh.hypervisor import Hypervisors
    from saltmarsh.inventory import inventory as take_inventory
    from saltmarsh.machine import MachineSpec, ProviderConfig
    from saltmarsh.strays import remove_strays as remove_volumes

    MISSING = None
except ImportError as err:
    MISSING = str(err)

log = logging.getLogger(__name__)

__virtualname__ = "libvirt"


def __virtual__():
    if not get_configured_provider():
        return False, "no provider of the driver libvirt is configured"
    if not get_dependencies():
        return False, MISSING
    return __virtualname__


def get_configured_provider():
    """
    The configuration of the provider at hand, or of the first one of this driver; False if there is none.

    CLI Example:

    .. code-block:: bash

        salt-cloud --list-providers
    """
    return salt.config.is_provider_configured(
        __opts__, _active_provider() or __virtualname__, ("cluster", "hosts", "image_pool", "disk_pool")
    )


def get_dependencies():
    """
    Whether the Python packages this driver needs are there; warns if not.

    CLI Example:

    .. code-block:: bash

        salt-cloud --list-providers
    """
    if MISSING:
        log.warning("The cloud driver libvirt can't be used: %s", MISSING)
    return MISSING is None


def _converted(function):
    # Not in saltmarsh.driver: Salt sets the active provider among the globals of the function that it calls.
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        with driver.errors_converted():
            return function(*args, **kwargs)

    return wrapper


@_converted
def create(vm_):
    """
    Create one machine and start it; salt-cloud calls this for each machine of a profile or a map.

    :param dict vm_: provider, profile and map entry, merged by salt-cloud; see ``docs/howto/providers.md``
    :returns: a dictionary as of :func:`show_instance`
    :raises SaltCloudConfigError: the profile or the map entry is not acceptable
    :raises SaltCloudExecutionFailure: the hosts can't be reached, have no room, or refused; nothing is left of it

    CLI Example:

    .. code-block:: bash

        salt-cloud -p virtual vn001
        salt-cloud -m cloud.maps.d/example.map
    """
    driver.fire(__opts__, vm_, "creating", "starting create")
    try:
        # Not the active provider: there is one for all threads, and they may create machines of several providers.
        hypervisors = _hypervisors(vm_["provider"])
        spec = MachineSpec.read(driver.with_address(vm_), driver.what(vm_))
        given = _identity(spec, vm_)
        driver.fire(__opts__, vm_, "requesting", "requesting instance")
        machine = hypervisors.create(spec, given)
    except BaseException:
        driver.forget_key(__opts__, vm_)
        raise
    driver.fire(__opts__, vm_, "created", "created instance")
    return _shape(machine)


@_converted
def destroy(name, call=None, host=None):
    """
    Destroy one machine: its domain, its volumes and what its host keeps of it; salt-cloud then deletes its minion key.

    :param str name: the machine
    :param str call: how salt-cloud came here
    :param str host: the only host it can be on, for callers that know; otherwise all hosts must answer
    :raises SaltCloudExecutionFailure: it isn't proven that the machine is gone

    CLI Example:

    .. code-block:: bash

        salt-cloud -d vn001
    """
    driver.not_a_function(call)
    driver.fire(__opts__, {"name": name}, "destroying", "destroying instance")
    _hypervisors().destroy(name, host)
    driver.fire(__opts__, {"name": name}, "destroyed", "destroyed instance")
    return {"Destroyed": f"{name} was destroyed"}


@_converted
def list_nodes(call=None):
    """
    This cluster's machines, with the fields that salt-cloud has for all drivers.

    A host that can't be reached is logged as a warning, and its machines are missing: salt-cloud takes a query that
    fails for a provider without machines.

    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud -Q
    """
    driver.not_an_action(call, "list_nodes")
    keys = ("id", "image", "size", "state", "private_ips", "public_ips")
    return {name: {key: node[key] for key in keys} for name, node in _nodes().items()}


@_converted
def list_nodes_min(call=None):
    """
    This cluster's machines by name and state.

    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud -f list_nodes_min lab
    """
    driver.not_an_action(call, "list_nodes_min")
    return {name: {"state": node["state"]} for name, node in _nodes().items()}


@_converted
def list_nodes_full(call=None):
    """
    This cluster's machines with all that is known of them.

    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud -F
    """
    driver.not_an_action(call, "list_nodes_full")
    return _nodes()


@_converted
def list_nodes_select(call=None):
    """
    This cluster's machines, with the fields of the option ``query.selection``.

    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud -S
    """
    return salt.utils.cloud.list_nodes_select(_nodes(), __opts__["query.selection"], call)


@_converted
def inventory(call=None):
    """
    This cluster's machines in short, what state files take on disk by machine, the hosts that do not answer, and the
    names of which there are volumes without a machine.

    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud -f inventory lab
    """
    driver.not_an_action(call, "inventory")
    return dataclasses.asdict(take_inventory(_hypervisors()))


@_converted
def remove_strays(kwargs=None, call=None):
    """
    Remove the volumes of a machine that there is not any more, if they bear this cluster's mark.

    :param dict kwargs: ``name``: the machine
    :param str call: how salt-cloud came here
    :raises SaltCloudConfigError: no name
    :raises SaltCloudExecutionFailure: not all hosts answer, there is a domain of this name or a state file, or a
        domain uses one of them

    CLI Example:

    .. code-block:: bash

        salt-cloud -f remove_strays lab name=vn001
    """
    driver.not_an_action(call, "remove_strays")
    if not (name := (kwargs or {}).get("name")):
        raise InvalidInput("remove_strays: name= is missing")
    remove_volumes(_hypervisors(), name)


@_converted
def show_instance(name, call=None):
    """
    All that is known of one machine.

    :param str name: the machine
    :param str call: how salt-cloud came here
    :raises SaltCloudNotFound: there is none of that name

    CLI Example:

    .. code-block:: bash

        salt-cloud -a show_instance vn001
    """
    driver.only_an_action(call, "show_instance")
    return _shape(_hypervisors().show(name))


@_converted
def start(name, call=None):
    """
    Start a machine that is stopped.

    :param str name: the machine
    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud -a start vn001
    """
    driver.only_an_action(call, "start")
    _hypervisors().start(name)
    return {"Started": f"{name} was started"}


@_converted
def stop(name, call=None):
    """
    Shut down a machine's operating system, and wait until it is down.

    :param str name: the machine
    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud -a stop vn001
    """
    driver.only_an_action(call, "stop")
    _hypervisors().stop(name)
    return {"Stopped": f"{name} was stopped"}


@_converted
def reboot(name, call=None):
    """
    Ask a machine's operating system to reboot.

    :param str name: the machine
    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud -a reboot vn001
    """
    driver.only_an_action(call, "reboot")
    _hypervisors().reboot(name)
    return {"Rebooted": f"{name} was asked to reboot"}


@_converted
def avail_images(call=None):
    """
    The images in the hosts' image pools, and which hosts have each.

    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud --list-images lab
    """
    driver.not_an_action(call, "avail_images")
    hypervisors = _hypervisors()
    images = {}
    for image in hypervisors.images(_answering(hypervisors)):
        images.setdefault(image.name, []).append(dataclasses.asdict(image))
    # Hosts that have different files under one name are listed one by one.
    return {name: found[0] if len(found) == 1 else found for name, found in images.items()}


@_converted
def avail_sizes(call=None):
    """
    The sizes of machines: libvirt has none of its own, so these are the profiles of the provider.

    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud --list-sizes lab
    """
    driver.not_an_action(call, "avail_sizes")
    return {
        name: {key: profile[key] for key in ("cpus", "memory", "disk") if key in profile}
        for name, profile in get_configured_provider()["profiles"].items()
    }


@_converted
def avail_locations(call=None):
    """
    The hosts, and what memory they have left for new machines.

    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud --list-locations lab
    """
    driver.not_an_action(call, "avail_locations")
    hypervisors = _hypervisors()
    return {host.name: dataclasses.asdict(host) for host in hypervisors.hosts(_answering(hypervisors))}


def _active_provider():
    try:
        return __active_provider_name__.value()
    except AttributeError:
        return __active_provider_name__


def _hypervisors(provider=None):
    """The hosts of a provider, given as salt-cloud does (``alias:driver``), or of the one at hand."""
    if provider:
        alias, _, driver = provider.partition(":")
        values = __opts__["providers"][alias][driver]
    else:
        values = get_configured_provider()
    return Hypervisors(ProviderConfig.read(values, "provider"), __opts__["cachedir"])


def _answering(hypervisors):
    """The hosts to list; an error if there is none, so that nothing is not mistaken for no machines."""
    hosts = hypervisors.reachable()
    if not hosts:
        raise Unreachable(f"none of {', '.join(hypervisors.config.hosts)} can be reached")
    return hosts


def _nodes():
    hypervisors = _hypervisors()
    return {machine.name: _shape(machine) for machine in hypervisors.machines(_answering(hypervisors))}


def _shape(machine):
    """A machine with the fields that salt-cloud has for all drivers, and its own."""
    shape = dataclasses.asdict(machine) | {
        "id": machine.uuid,
        "size": f"{machine.cpus} CPUs, {machine.memory} MiB",
        "state": str(machine.state),
        "private_ips": [machine.address],
        "public_ips": [],
    }
    return shape


def _identity(spec, vm_):
    """What the machine is told at boot, in the way its profile says its image understands."""
    minion = driver.minion(__opts__, vm_)
    kind = vm_.get("identity")
    if kind == "credentials":
        return identity.by_credentials(spec, minion, vm_.get("tunnel"))
    if kind == "nocloud":
        instance, more = f"{spec.name}-{uuid.uuid4()}", vm_.get("cloud_config")
        return identity.by_nocloud(spec, instance, minion, more, vm_.get("tunnel"))
    raise InvalidInput(f"{driver.what(vm_)}: identity: credentials or nocloud, not {kind!r}")
