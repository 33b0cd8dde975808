"""
Salt-cloud driver for machines in OpenStack clouds.

One provider is one project in one cloud. A machine gets a port with its own address first; it is told its name and its
minion keys by user data on a config drive. Everything that is made for it bears the cluster's mark, and goes away with
it. See ``docs/howto/providers.md``.

:depends: openstacksdk

.. code-block:: yaml

    engage1:
      driver: openstack
      cluster: lab
      cloud: engage1
"""

import dataclasses
import functools
import logging

import salt.config
import salt.utils.cloud

from saltmarsh import driver, identity

# Never "import openstack" here: this module has that name, and its directory is on the path while it is loaded.
try:
    from saltmarsh.server import CloudConfig, ServerSpec
    from saltmarsh.servers import Servers

    MISSING = None
except ImportError as err:
    MISSING = str(err)

log = logging.getLogger(__name__)

__virtualname__ = "openstack"


def __virtual__():
    if not get_configured_provider():
        return False, "no provider of the driver openstack is configured"
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
    return salt.config.is_provider_configured(__opts__, _active_provider() or __virtualname__, ("cluster",))


def get_dependencies():
    """
    Whether the Python packages this driver needs are there; warns if not.

    CLI Example:

    .. code-block:: bash

        salt-cloud --list-providers
    """
    if MISSING:
        log.warning("The cloud driver openstack can't be used: %s", MISSING)
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
    Create one machine and wait until it runs; salt-cloud calls this for each machine of a profile or a map.

    :param dict vm_: provider, profile and map entry, merged by salt-cloud; see ``docs/howto/providers.md``
    :returns: a dictionary as of :func:`show_instance`
    :raises SaltCloudConfigError: the profile or the map entry is not acceptable
    :raises SaltCloudExecutionFailure: the cloud can't be reached, has no room, or refused; nothing is left of it

    CLI Example:

    .. code-block:: bash

        salt-cloud -p virtual-engage1 vn001
        salt-cloud -m cloud.maps.d/example.map
    """
    driver.fire(__opts__, vm_, "creating", "starting create")
    try:
        # Not the active provider: there is one for all threads, and they may create machines of several providers.
        servers = _servers(vm_["provider"])
        spec = ServerSpec.read(driver.with_address(vm_), driver.what(vm_))
        minion, more = driver.minion(__opts__, vm_), vm_.get("cloud_config")
        told = identity.user_data(spec.name, spec.domain, minion, more, vm_.get("tunnel"))
        driver.fire(__opts__, vm_, "requesting", "requesting instance")
        machine = servers.create(spec, told)
    except BaseException:
        driver.forget_key(__opts__, vm_)
        raise
    driver.fire(__opts__, vm_, "created", "created instance")
    return _shape(machine)


@_converted
def destroy(name, call=None, host=None):
    """
    Destroy one machine: its server, port, volume and floating address; salt-cloud then deletes its minion key.

    :param str name: the machine
    :param str call: how salt-cloud came here
    :param str host: the provider, for callers that know; otherwise the one at hand
    :raises SaltCloudExecutionFailure: it isn't proven that the machine is gone

    CLI Example:

    .. code-block:: bash

        salt-cloud -d vn001
    """
    driver.not_a_function(call)
    driver.fire(__opts__, {"name": name}, "destroying", "destroying instance")
    _servers(host).destroy(name)
    driver.fire(__opts__, {"name": name}, "destroyed", "destroyed instance")
    return {"Destroyed": f"{name} was destroyed"}


@_converted
def list_nodes(call=None):
    """
    This cluster's machines, with the fields that salt-cloud has for all drivers.

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

        salt-cloud -f list_nodes_min engage1
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
    This cluster's machines in short, and the names of those that are suspended.

    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud -f inventory engage1
    """
    driver.not_an_action(call, "inventory")
    return dataclasses.asdict(_servers().inventory())


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
    return _shape(_servers().show(name))


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
    _servers().act(name, "start_server", "ACTIVE")
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
    _servers().act(name, "stop_server", "SHUTOFF")
    return {"Stopped": f"{name} was stopped"}


@_converted
def reboot(name, call=None):
    """
    Reboot a machine, and wait until it runs again.

    :param str name: the machine
    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud -a reboot vn001
    """
    driver.only_an_action(call, "reboot")
    _servers().act(name, "reboot_server", "ACTIVE")
    return {"Rebooted": f"{name} was rebooted"}


@_converted
def suspend(name, call=None):
    """
    Write a machine's memory to its hypervisor's disk. The cloud goes on counting it as used.

    Slurm is not told: for a node use ``salt-run elastic.suspend``.

    :param str name: the machine
    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud -a suspend vn001
    """
    driver.only_an_action(call, "suspend")
    _servers().act(name, "suspend_server", "SUSPENDED")
    return {"Suspended": f"{name} was suspended"}


@_converted
def resume(name, call=None):
    """
    Bring back a machine that is suspended.

    :param str name: the machine
    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud -a resume vn001
    """
    driver.only_an_action(call, "resume")
    _servers().act(name, "resume_server", "ACTIVE")
    return {"Resumed": f"{name} was resumed"}


@_converted
def avail_images(call=None):
    """
    The images that the cloud has for this project.

    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud --list-images engage1
    """
    driver.not_an_action(call, "avail_images")
    return _servers().images()


@_converted
def avail_sizes(call=None):
    """
    The flavors that the cloud has for this project.

    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud --list-sizes engage1
    """
    driver.not_an_action(call, "avail_sizes")
    return _servers().sizes()


@_converted
def avail_locations(call=None):
    """
    The availability zones of the cloud.

    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud --list-locations engage1
    """
    driver.not_an_action(call, "avail_locations")
    return _servers().zones()


def _active_provider():
    try:
        return __active_provider_name__.value()
    except AttributeError:
        return __active_provider_name__


def _servers(provider=None):
    """The machines of a provider, given as salt-cloud does (``alias:driver``), or of the one at hand."""
    alias = (provider or _active_provider() or _only_provider()).partition(":")[0]
    return Servers(alias, CloudConfig.read(__opts__["providers"][alias][__virtualname__], f"provider {alias}"))


def _only_provider():
    return next(alias for alias, drivers in __opts__["providers"].items() if __virtualname__ in drivers)


def _nodes():
    return {machine.name: _shape(machine) for machine in _servers().machines()}


def _shape(machine):
    """A machine with the fields that salt-cloud has for all drivers, and its own."""
    return dataclasses.asdict(machine) | {
        "id": machine.uuid,
        "state": str(machine.state),
        "private_ips": [machine.address],
        "public_ips": [machine.public_address] if machine.public_address else [],
    }
