"""
Salt-cloud driver for the compute providers that apache-libcloud reaches.

For machines by hand, with ``salt-cloud``; no pool can use it, because libcloud can give no machine a fixed address, and
can't suspend one. It can mark none either: give it an account of its own. See ``docs/howto/providers.md``.

:depends: apache-libcloud

.. code-block:: yaml

    elsewhere:
      driver: libcloud
      cluster: lab
      service: ec2
      arguments: {key: "...", secret: "...", region: eu-central-1}
"""

import dataclasses
import functools
import logging

import salt.config
import salt.utils.cloud

from saltmarsh import driver, identity

# Never "import libcloud" here: this module has that name, and its directory is on the path while it is loaded.
try:
    from saltmarsh.libcloud_link import Account, AccountConfig, NodeSpec

    MISSING = None
except ImportError as err:
    MISSING = str(err)

log = logging.getLogger(__name__)

__virtualname__ = "libcloud"


def __virtual__():
    if not get_configured_provider():
        return False, "no provider of the driver libcloud is configured"
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
    return salt.config.is_provider_configured(__opts__, _active_provider() or __virtualname__, ("cluster", "service"))


def get_dependencies():
    """
    Whether the Python packages this driver needs are there; warns if not.

    CLI Example:

    .. code-block:: bash

        salt-cloud --list-providers
    """
    if MISSING:
        log.warning("The cloud driver libcloud can't be used: %s", MISSING)
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
    :raises SaltCloudExecutionFailure: the provider can't be reached, or refused; nothing is left of it

    CLI Example:

    .. code-block:: bash

        salt-cloud -p elsewhere-small vm1
    """
    driver.fire(__opts__, vm_, "creating", "starting create")
    try:
        # Not the active provider: there is one for all threads, and they may create machines of several providers.
        account = _account(vm_["provider"])
        spec = NodeSpec.read(vm_, driver.what(vm_))
        told = identity.user_data(spec.name, minion=driver.minion(__opts__, vm_), cloud_config=vm_.get("cloud_config"))
        driver.fire(__opts__, vm_, "requesting", "requesting instance")
        machine = account.create(spec, told)
    except BaseException:
        driver.forget_key(__opts__, vm_)
        raise
    driver.fire(__opts__, vm_, "created", "created instance")
    return _shape(machine)


@_converted
def destroy(name, call=None):
    """
    Destroy one machine; salt-cloud then deletes its minion key.

    :param str name: the machine
    :param str call: how salt-cloud came here
    :raises SaltCloudExecutionFailure: it isn't proven that the machine is gone

    CLI Example:

    .. code-block:: bash

        salt-cloud -d vm1
    """
    driver.not_a_function(call)
    driver.fire(__opts__, {"name": name}, "destroying", "destroying instance")
    _account().destroy(name)
    driver.fire(__opts__, {"name": name}, "destroyed", "destroyed instance")
    return {"Destroyed": f"{name} was destroyed"}


@_converted
def list_nodes(call=None):
    """
    All machines of the account, with the fields that salt-cloud has for all drivers.

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
    All machines of the account by name and state.

    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud -f list_nodes_min elsewhere
    """
    driver.not_an_action(call, "list_nodes_min")
    return {name: {"state": node["state"]} for name, node in _nodes().items()}


@_converted
def list_nodes_full(call=None):
    """
    All machines of the account with all that is known of them.

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
    All machines of the account, with the fields of the option ``query.selection``.

    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud -S
    """
    return salt.utils.cloud.list_nodes_select(_nodes(), __opts__["query.selection"], call)


@_converted
def inventory(call=None):
    """
    All machines of the account in short.

    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud -f inventory elsewhere
    """
    driver.not_an_action(call, "inventory")
    return dataclasses.asdict(_account().inventory())


@_converted
def show_instance(name, call=None):
    """
    All that is known of one machine.

    :param str name: the machine
    :param str call: how salt-cloud came here
    :raises SaltCloudNotFound: there is none of that name

    CLI Example:

    .. code-block:: bash

        salt-cloud -a show_instance vm1
    """
    driver.only_an_action(call, "show_instance")
    return _shape(_account().show(name))


@_converted
def start(name, call=None):
    """
    Start a machine that is stopped.

    :param str name: the machine
    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud -a start vm1
    """
    driver.only_an_action(call, "start")
    _account().act(name, "start_node")
    return {"Started": f"{name} was started"}


@_converted
def stop(name, call=None):
    """
    Stop a machine.

    :param str name: the machine
    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud -a stop vm1
    """
    driver.only_an_action(call, "stop")
    _account().act(name, "stop_node")
    return {"Stopped": f"{name} was stopped"}


@_converted
def reboot(name, call=None):
    """
    Reboot a machine.

    :param str name: the machine
    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud -a reboot vm1
    """
    driver.only_an_action(call, "reboot")
    _account().act(name, "reboot_node")
    return {"Rebooted": f"{name} is rebooting"}


@_converted
def avail_images(call=None):
    """
    The images that the provider has.

    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud --list-images elsewhere
    """
    driver.not_an_action(call, "avail_images")
    return _account().listing("images")


@_converted
def avail_sizes(call=None):
    """
    The sizes that the provider has.

    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud --list-sizes elsewhere
    """
    driver.not_an_action(call, "avail_sizes")
    return _account().listing("sizes")


@_converted
def avail_locations(call=None):
    """
    The locations that the provider has.

    :param str call: how salt-cloud came here

    CLI Example:

    .. code-block:: bash

        salt-cloud --list-locations elsewhere
    """
    driver.not_an_action(call, "avail_locations")
    return _account().listing("locations")


def _active_provider():
    try:
        return __active_provider_name__.value()
    except AttributeError:
        return __active_provider_name__


def _account(provider=None):
    """The account of a provider, given as salt-cloud does (``alias:driver``), or of the one at hand."""
    alias = (provider or _active_provider() or _only_provider()).partition(":")[0]
    return Account(alias, AccountConfig.read(__opts__["providers"][alias][__virtualname__], f"provider {alias}"))


def _only_provider():
    return next(alias for alias, drivers in __opts__["providers"].items() if __virtualname__ in drivers)


def _nodes():
    return {machine.name: _shape(machine) for machine in _account().machines()}


def _shape(machine):
    """A machine with the fields that salt-cloud has for all drivers."""
    return dataclasses.asdict(machine) | {
        "state": str(machine.state),
        "private_ips": list(machine.private_ips),
        "public_ips": list(machine.public_ips),
    }
