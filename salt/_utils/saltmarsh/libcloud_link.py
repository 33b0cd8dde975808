"""
Machines at whatever provider apache-libcloud reaches; the only file that knows libcloud.

What libcloud has for all providers is little: create, destroy, list, and power. There is no address of one's own
choice, no suspend, and no mark on a machine that all providers keep: so the account must be this cluster's alone, and a
machine goes by its name.
"""

import contextlib
import os
import threading
import time
from dataclasses import dataclass
from typing import Any

try:
    import libcloud.common.exceptions as http
    import libcloud.common.types as common
    import requests
    from libcloud.compute.providers import get_driver
    from libcloud.compute.types import NodeState
except ModuleNotFoundError as _err:
    # Salt puts the directory of its cloud drivers on the path while it loads them, and one of them has this name.
    raise ImportError("apache-libcloud is not installed for this Python") from _err

from pydantic import Field

from saltmarsh.errors import (
    BadConfiguration,
    Conflict,
    InUse,
    InvalidInput,
    NotFound,
    NotInTime,
    ProviderError,
    SaltmarshError,
    Throttled,
    Unreachable,
)
from saltmarsh.machine import Checked, Count, Inventory, Name, PowerState, Seen

_POLL = 2.0
# TypeError: an argument, of the provider's or the profile's, that a driver does not have.
_ERRORS = (
    *(common.LibcloudError, http.BaseHTTPError, requests.RequestException, OSError),
    *(NotImplementedError, TypeError),
)
_POWER = {
    NodeState.PENDING: PowerState.BUILDING,
    NodeState.STARTING: PowerState.BUILDING,
    NodeState.RUNNING: PowerState.RUNNING,
    NodeState.REBOOTING: PowerState.RUNNING,
    NodeState.PAUSED: PowerState.PAUSED,
    NodeState.SUSPENDED: PowerState.SUSPENDED,
    NodeState.STOPPING: PowerState.STOPPING,
    NodeState.STOPPED: PowerState.STOPPED,
    NodeState.ERROR: PowerState.CRASHED,
}


class AccountConfig(Checked):
    """
    A salt-cloud provider of the driver ``libcloud``.

    ``service`` is libcloud's name of the provider (``ec2``, ``gce``, ...), ``arguments`` is what its driver is made
    with. ``create_timeout`` is in seconds.
    """

    cluster: Name
    service: str
    arguments: dict[str, Any] = Field(default={}, repr=False)
    create_timeout: Count = 600


class NodeSpec(Checked):
    """
    One machine as it is asked for: names or ids of the provider's, and what else its driver is to be told.

    ``user_data_argument`` is the argument by which this driver takes what the machine is told at boot.
    """

    name: Name
    image: str
    size: str
    location: str | None = None
    create_arguments: dict[str, Any] = Field(default={}, repr=False)
    user_data_argument: str | None = None


@dataclass(frozen=True)
class Node:
    """A machine as libcloud knows it."""

    name: str
    id: str
    state: PowerState
    image: str
    size: str
    private_ips: tuple[str, ...]
    public_ips: tuple[str, ...]


class Account:
    """
    The machines of one account at one provider. Cheap to make; safe to use from several threads.

    :param str provider: the provider's name, for messages
    :param AccountConfig config: how it is reached
    """

    def __init__(self, provider, config):
        self.provider = provider
        self.config = config

    def machines(self):
        """
        All machines of the account.

        :rtype: list[Node]
        :raises Unreachable: the provider doesn't answer
        """
        return sorted(map(_node, self._listed()), key=lambda node: node.name)

    def inventory(self):
        """All machines in short, as a :class:`saltmarsh.machine.Inventory`."""
        return Inventory(tuple(Seen(node.name, self.provider, node.state) for node in self.machines()))

    def show(self, name):
        """
        One machine.

        :rtype: Node
        :raises NotFound: there is none of that name
        :raises Conflict: there are several
        """
        return _node(self._find(name))

    def create(self, spec, user_data):
        """
        Make a machine, and wait until it runs. If it can't be made, what there is of it is removed again.

        :param NodeSpec spec: the machine
        :param str user_data: what it is told at boot
        :rtype: Node
        :raises InUse: there is a machine of that name
        :raises NotInTime: it did not run within ``create_timeout``
        :raises BadConfiguration, Throttled, Unreachable, ProviderError: as the provider says
        """
        if any(node.name == spec.name for node in self._listed()):
            raise InUse(f"{self.provider}: there is a machine {spec.name} already")
        given = dict(spec.create_arguments) | {
            "image": self._choose("images", spec.image),
            "size": self._choose("sizes", spec.size),
        }
        if spec.location:
            given["location"] = self._choose("locations", spec.location)
        if spec.user_data_argument:
            given[spec.user_data_argument] = user_data
        try:
            made = self._ask(f"can't make {spec.name}", "create_node", name=spec.name, **given)
            if made.name != spec.name:
                self._remove(made)
                raise BadConfiguration(f"{self.provider} names its machines itself ({made.name}, not {spec.name})")
            return _node(self._running(made))
        except SaltmarshError:
            self.destroy(spec.name)
            raise

    def destroy(self, name):
        """
        Remove a machine, and see that it is gone; one that isn't there is no error.

        :raises Conflict: there are several of that name
        :raises Unreachable: the provider doesn't answer, so it isn't known to be gone
        """
        with contextlib.suppress(NotFound):
            self._remove(self._find(name))

    def act(self, name, verb):
        """
        Do something to a machine.

        :param str verb: ``start_node``, ``stop_node``, ``reboot_node``
        :raises InvalidInput: libcloud can't do that at this provider
        :raises ProviderError: the provider refused
        """
        what = f"can't {verb.removesuffix('_node')} {name}"
        if not self._ask(what, verb, self._find(name)):
            raise ProviderError(f"{self.provider}: {what}")

    def listing(self, kind):
        """
        What there is to choose from, a mapping of ids by name.

        :param str kind: ``images``, ``sizes`` or ``locations``
        """
        return {each.name: {"id": each.id} for each in self._ask(f"can't list {kind}", f"list_{kind}")}

    def _listed(self):
        return [node for node in self._ask("can't list machines", "list_nodes") if node.state != NodeState.TERMINATED]

    def _find(self, name):
        found = [node for node in self._listed() if node.name == name]
        if not found:
            raise NotFound(f"{self.provider}: no machine {name}")
        if len(found) > 1:
            raise Conflict(f"{self.provider}: {len(found)} machines of the name {name}")
        return found[0]

    def _remove(self, node):
        self._ask(f"can't remove {node.name}", "destroy_node", node)
        deadline = time.monotonic() + self.config.create_timeout
        while any(each.id == node.id for each in self._listed()):
            if time.monotonic() > deadline:
                raise NotInTime(f"{self.provider}: {node.name} is still there")
            time.sleep(_POLL)

    def _choose(self, kind, name):
        found = [each for each in self._ask(f"can't list {kind}", f"list_{kind}") if name in (each.name, each.id)]
        if len(found) != 1:
            raise BadConfiguration(f"{self.provider}: {len(found)} {kind} are called {name}")
        return found[0]

    def _running(self, node):
        deadline = time.monotonic() + self.config.create_timeout
        while True:
            (now,) = [each for each in self._listed() if each.id == node.id] or [node]
            if now.state == NodeState.RUNNING:
                return now
            if now.state == NodeState.ERROR:
                raise ProviderError(f"{self.provider}: can't make {node.name}: it is in the state {now.state}")
            if time.monotonic() > deadline:
                raise NotInTime(f"{self.provider}: can't make {node.name}: still {now.state}")
            time.sleep(_POLL)

    def _ask(self, failure, function, *args, **kwargs):
        try:
            return getattr(_driver(self.config), function)(*args, **kwargs)
        except _ERRORS as err:
            text = " ".join(str(err).split()) or type(err).__name__
            raise _kind(err)(f"{self.provider}: {failure}: {text}") from err


def _driver(config):
    """The one driver of this process for an account; a process that was forked has its own."""
    with _drivers_lock:
        key = (os.getpid(), config.model_dump_json())
        if key not in _drivers:
            try:
                kind = get_driver(config.service)
            except AttributeError as err:
                raise BadConfiguration(f"libcloud has no compute provider {config.service!r}") from err
            _drivers[key] = kind(**config.arguments)
        return _drivers[key]


def _kind(err):
    """What kind of error an exception is."""
    if isinstance(err, NotImplementedError):
        return InvalidInput
    if isinstance(err, (common.InvalidCredsError, TypeError)):
        return BadConfiguration
    status = getattr(err, "http_code", None) or getattr(err, "code", None)
    kinds = {400: BadConfiguration, 401: BadConfiguration, 403: BadConfiguration, 404: NotFound, 429: Throttled}
    if status in kinds:
        return kinds[status]
    if status in (502, 503, 504) or isinstance(err, OSError):  # requests' errors are OSErrors, too
        return Unreachable
    return ProviderError


def _node(node):
    return Node(
        name=node.name,
        id=str(node.id),
        state=_POWER.get(node.state, PowerState.UNKNOWN),
        image=getattr(node.image, "name", "") or "",
        size=getattr(node.size, "name", "") or "",
        private_ips=tuple(node.private_ips),
        public_ips=tuple(node.public_ips),
    )


_drivers = {}
_drivers_lock = threading.Lock()
