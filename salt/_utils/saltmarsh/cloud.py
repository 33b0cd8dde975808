"""
salt-cloud, in process: maps rendered for exactly the nodes that are wanted, and its drivers asked by name.

Nothing else in the project calls salt-cloud. Errors of a driver are per machine, as one line each.
"""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import salt.cloud
import salt.utils.context
from salt.exceptions import SaltException

from saltmarsh.errors import BadConfiguration, InvalidInput, ProviderError, SaltmarshError, Unreachable
from saltmarsh.hypervisor import Hypervisors
from saltmarsh.machine import Inventory, PowerState, ProviderConfig, Seen
from saltmarsh.model import nodeset
from saltmarsh.server import CloudConfig
from saltmarsh.servers import Servers
from saltmarsh.serverstates import ServerStates
from saltmarsh.vmstate import VmStates

# Measured: 16 threads are faster than salt-cloud's processes, which need 500 KB of memory for each machine.
_WORKERS = 16
# salt-key(1) calls them accepted, unaccepted, denied, rejected.
_KEY_DIRECTORIES = ("minions", "minions_pre", "minions_denied", "minions_rejected")


class Cloud:
    """
    The providers and profiles of this master.

    :param str config: salt-cloud's main configuration file
    :param Minions minions: through which machines are asked whose provider can't be
    """

    def __init__(self, config, minions=None):
        self._minions = minions
        self._client = salt.cloud.CloudClient(path=config)

    def check(self, pool, host=None):
        """
        Make sure that what a pool's machines are made of is there.

        :param saltmarsh.pools.Pool pool: the pool
        :param str host: a hypervisor that must answer as well, or one of the pool's providers
        :returns: the profiles whose providers answer, in the pool's order; with ``host``, the one that has it
        :rtype: list[str]
        :raises InvalidInput: salt-cloud has no such profile or image, or can't use the profile's provider
        :raises BadConfiguration: a provider answers, and refuses
        :raises Unreachable: no provider can be asked, or the host doesn't answer
        """
        fit, silent = [], []
        for profile in self.profiles_with(pool.profiles, host):
            try:
                self._check(pool, profile, host)
                fit.append(profile)
            except Unreachable as err:
                silent.append(err)
        if not fit:
            raise Unreachable("; ".join(map(str, silent)))
        return fit

    def profiles_with(self, profiles, host):
        """
        Those profiles whose provider has a host, or is it; all of them where the host is not known.

        :param profiles: names of profiles
        :param str host: a hypervisor, a provider, or None
        :rtype: list[str]
        """
        with_it = [profile for profile in profiles if host in self._hosts(self._provider(profile))]
        return with_it or list(profiles)

    def _check(self, pool, profile, host):
        provider = self._provider(profile)
        if provider.endswith(":libcloud"):
            raise InvalidInput(
                f"pool {pool.name}: provider {_alias(provider)} has the driver libcloud, which can't give a machine "
                "its pool's address, nor suspend it: no pool can use it"
            )
        images = self._ask(provider, "avail_images")
        if pool.image not in images:
            there = ", ".join(sorted(images)) or "none"
            raise InvalidInput(
                f"pool {pool.name}: image {pool.image} is not there; images of {_alias(provider)}: {there}"
            )
        if host not in (None, _alias(provider)) and host not in (answering := self._ask(provider, "avail_locations")):
            others = ", ".join(sorted(answering)) or "none"
            raise Unreachable(f"host {host} does not answer; hosts of {_alias(provider)} that do: {others}")

    def inventory(self, profile):
        """
        What the provider of a profile has of this cluster, and what could not be asked.

        :param str profile: a profile
        :rtype: saltmarsh.machine.Inventory
        :raises InvalidInput: salt-cloud has no such profile, or can't use its provider
        :raises Unreachable: the provider can't be asked
        """
        provider = self._provider(profile)
        found = self._ask(provider, "inventory")
        try:
            machines = tuple(Seen(each["name"], each["host"], PowerState(each["state"])) for each in found["machines"])
            strays, others = frozenset(found["strays"]), frozenset(found["others"])
            return Inventory(machines, dict(found["saved"]), dict(found["silent"]), strays, others)
        except (KeyError, TypeError, ValueError) as err:
            raise Unreachable(f"provider {_alias(provider)}: its inventory makes no sense: {err!r}") from err

    def provider(self, profile):
        """
        The name of a profile's provider.

        :rtype: str
        :raises InvalidInput: salt-cloud has no such profile
        """
        return _alias(self._provider(profile))

    def plan(self, rendered_map):
        """
        What salt-cloud would do with a map; does nothing.

        :param dict rendered_map: as of :func:`render_map`
        :returns: for :meth:`create`: by name, all that salt-cloud knows of the machine
        :raises ProviderError: it would not create exactly these machines, for example because one exists already
        :raises Unreachable: a provider can't be asked
        """
        wanted = {name for entries in rendered_map.values() for entry in entries for name in entry}
        for profile in rendered_map:
            provider = self._provider(profile)
            if there := wanted & set(self._ask(provider, "list_nodes_min")):
                raise ProviderError(
                    f"{nodeset(there)}: exists already at {_alias(provider)}, though the ledger has no such node; "
                    "destroy it there (salt-cloud -d), or name other nodes"
                )
        planned = _Map(self._client._opts_defaults(map_data=copy.deepcopy(rendered_map))).map_data()["create"]
        if planned.keys() != wanted:
            raise ProviderError(f"salt-cloud would create {nodeset(planned)} instead of {nodeset(wanted)}")
        return planned

    def create(self, planned, report):
        """
        Create machines, several at a time.

        salt-cloud makes the minion keys and accepts them by file; a driver leaves nothing of a machine that failed.
        When this is interrupted, or ``report`` raises, no more are begun, and it returns when those under way are done.

        :param dict planned: as of :meth:`plan`
        :param report: called with a name as soon as it is known what became of it, and with the driver's description of
            the machine (a dict), or one line saying why there is none (a str; a :class:`Refusal` of the driver)
        """

        def create(name):
            try:
                # A request for acceptance that waits under this name, whosever it is, would keep its own key out.
                self._forget_key(name)
                return self._cloud.create(planned[name]) or "the driver gave no reason, see the master's log"
            except (SaltException, OSError) as err:
                return Refusal.of(err)

        with self._all_active(planned), ThreadPoolExecutor(min(_WORKERS, len(planned))) as pool:
            futures = {pool.submit(create, name): name for name in planned}
            try:
                for future in as_completed(futures):
                    report(futures[future], future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def destroy(self, profiles, hosts):
        """
        Destroy machines, several at a time; one that does not exist is no error.

        :param profiles: the profiles by which they may have been made
        :param dict hosts: by name, the host on which it is, or None where that is not known
        :returns: by name, None where it is proven gone, otherwise one line saying why it is not
        :rtype: dict[str, str | None]
        :raises InvalidInput: salt-cloud has no such profile, or can't use its provider
        """
        at = {}
        for name, host in hosts.items():
            for profile in self.profiles_with(profiles, host):
                at.setdefault(self._provider(profile), []).append(name)
        outcomes = dict.fromkeys(hosts)
        for provider, names in at.items():
            for name, why in self._destroy(provider, {name: hosts[name] for name in names}).items():
                outcomes[name] = outcomes[name] or why
        return outcomes

    def _destroy(self, provider, hosts):
        driver_destroy = self._function(provider, "destroy")

        def destroy(name):
            known = {"host": hosts[name]} if hosts[name] else {}
            try:
                driver_destroy(name, call="action", **known)
                self._forget_key(name)
            except (SaltException, OSError) as err:
                return _one_line(err)
            return None

        with _active(driver_destroy, provider), ThreadPoolExecutor(min(_WORKERS, len(hosts))) as pool:
            return dict(zip(hosts, pool.map(destroy, hosts), strict=True))

    def remove_strays(self, profiles, name):
        """
        Remove the volumes of a machine that there is not, see :class:`saltmarsh.machine.Inventory`.

        :param profiles: the profiles by which it may have been made; those whose provider has no such volumes don't
            matter
        :param str name: the machine
        :raises Unreachable: they could not be removed, or must not be
        """
        for provider in dict.fromkeys(map(self._provider, profiles)):
            if f"{provider.partition(':')[2]}.remove_strays" in self._cloud.clouds:
                self._ask(provider, "remove_strays", kwargs={"name": name})

    def vmstates(self, profile):
        """
        What suspends a profile's machines and brings them back.

        :param str profile: the profile by which they were made
        :rtype: saltmarsh.vmstate.VmStates
        :raises InvalidInput: salt-cloud has no such profile, or its provider's driver can't suspend machines
        """
        alias, _, driver = self._provider(profile).partition(":")
        values = self._client.opts["providers"][alias][driver]
        if driver == "openstack":
            servers = Servers(alias, CloudConfig.read(values, f"provider {alias}"))
            return ServerStates(servers, self._minions)
        if driver != "libvirt":
            raise InvalidInput(f"provider {alias} has the driver {driver}, which can't suspend machines")
        config = ProviderConfig.read(values, f"provider {alias}")
        locks = self._client.opts["cachedir"]
        return VmStates(Hypervisors(config, locks), locks)

    def accepted_keys(self):
        """
        The ids of the minions that the master accepts.

        :rtype: frozenset[str]
        """
        return frozenset(path.name for path in Path(self._client.opts["pki_dir"], "minions").iterdir())

    @cached_property
    def _cloud(self):
        return salt.cloud.Cloud(self._client._opts_defaults())

    def _provider(self, profile):
        """The provider of a profile, as salt-cloud writes it: ``alias:driver``."""
        known = self._client.opts["profiles"]
        if profile not in known:
            there = ", ".join(sorted(known)) or "none"
            raise InvalidInput(f"salt-cloud has no profile {profile!r} (cloud.profiles.d); profiles: {there}")
        return known[profile]["provider"]

    def _hosts(self, provider):
        """The names of a provider's hosts as they are configured, and its own."""
        alias, _, driver = provider.partition(":")
        return {alias, *self._client.opts["providers"][alias][driver].get("hosts", ())}

    def _function(self, provider, name):
        """A function of a provider's driver."""
        name = f"{provider.partition(':')[2]}.{name}"
        drivers = self._cloud.clouds
        if name not in drivers:
            raise InvalidInput(f"provider {_alias(provider)} can't be used: {drivers.missing_fun_string(name)}")
        return drivers[name]

    def _ask(self, provider, name, **kwargs):
        """What a driver's function answers: salt-cloud itself would take one that failed for an empty answer."""
        function = self._function(provider, name)
        try:
            with _active(function, provider):
                return function(**kwargs)
        except SaltException as err:
            kind = BadConfiguration if isinstance(err.__cause__, BadConfiguration) else Unreachable
            raise kind(f"provider {_alias(provider)}: {_one_line(err)}") from err

    @contextmanager
    def _all_active(self, planned):
        """salt-cloud itself makes the provider of each machine the active one, and puts back what it has found."""
        (provider,) = {machine["provider"] for machine in planned.values()}
        with _active(self._function(provider, "create"), provider):
            yield

    def _forget_key(self, name):
        for directory in _KEY_DIRECTORIES:
            Path(self._client.opts["pki_dir"], directory, name).unlink(missing_ok=True)


class Refusal(str):
    """One line that says why there is no machine; ``kind`` is the class of the driver's error, or None if not known."""

    kind = None

    @classmethod
    def of(cls, err):
        """What is said of an error of a driver, which has converted it to one that salt-cloud knows."""
        made = cls(_one_line(err))
        made.kind = type(err.__cause__) if isinstance(err.__cause__, SaltmarshError) else None
        return made


class _Map(salt.cloud.Map):
    """A map whose providers have been asked already; Salt's own asks them in forked processes."""

    def map_providers_parallel(self, query="list_nodes", cached=False):
        return {}


def render_map(pool, addresses, host=None, profile=None):
    """
    The salt-cloud map for nodes of a pool; written to a file, plain ``salt-cloud -m`` runs it, too.

    :param saltmarsh.pools.Pool pool: the pool
    :param dict addresses: the address by which each node is reached, by name
    :param str host: the hypervisor on which they shall be; None leaves it to the driver
    :param str profile: one of the pool's profiles; by default the first
    :returns: a map without secrets
    :rtype: dict
    """
    shared = {"image": pool.image, "cpus": pool.cpus, "memory": pool.memory} | ({"host": host} if host else {})
    nodes = [{name: _own_values(pool, name, address) | shared} for name, address in addresses.items()]
    return {profile or pool.profile: nodes}


def _own_values(pool, name, address):
    """What the machine of one node is told besides what it shares with others."""
    own, kind = {"address": pool.own_address_of(name)}, pool.network.kind
    if kind == "floating":
        own["floating_address"] = address
    if kind != "direct":
        # For the states: the ready gate would take a floating address for somebody else's.
        own["grains"] = {"saltmarsh_network": kind}
    return own


class _Active:
    """
    The active provider, which is a global of its driver: threads that need the same one share it, others wait.

    Otherwise one thread could ask another one's provider whether its machine is gone.
    """

    def __init__(self):
        self._changed = threading.Condition()
        self._provider = None
        self._threads = 0
        self._injected = None

    @contextmanager
    def __call__(self, function, provider):
        """
        A provider made the active one for a driver's functions.

        :param function: one of them
        :param str provider: ``alias:driver``
        """
        with self._changed:
            self._changed.wait_for(lambda: self._provider in (None, provider))
            if self._provider is None:
                self._injected = salt.utils.context.func_globals_inject(function, __active_provider_name__=provider)
                self._injected.__enter__()
                self._provider = provider
            self._threads += 1
        try:
            yield
        finally:
            with self._changed:
                self._threads -= 1
                if not self._threads:
                    self._injected.__exit__(None, None, None)
                    self._provider = None
                    self._changed.notify_all()


_active = _Active()


def _alias(provider):
    return provider.partition(":")[0]


def _one_line(err):
    return " ".join(str(err).split())
