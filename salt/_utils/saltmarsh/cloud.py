"""
salt-cloud, in process: maps rendered for exactly the nodes that are wanted, and its drivers asked by name.

Nothing else in the project calls salt-cloud. Errors of a driver are per machine, as one line each.
"""

from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import salt.cloud
import salt.utils.context
from salt.exceptions import SaltCloudSystemExit, SaltException

from saltmarsh.errors import InvalidInput, ProviderError, Unreachable

# Measured: 16 threads are faster than salt-cloud's processes, which need 500 KB of memory for each machine.
_WORKERS = 16
# salt-key(1) calls them accepted, unaccepted, denied, rejected.
_KEY_DIRECTORIES = ("minions", "minions_pre", "minions_denied", "minions_rejected")


class Cloud:
    """
    The providers and profiles of this master.

    :param str config: salt-cloud's main configuration file
    """

    def __init__(self, config):
        self._client = salt.cloud.CloudClient(path=config)

    def check_profile(self, profile):
        """
        Make sure that a profile is there.

        :raises InvalidInput: it is not, or its provider is not
        """
        known = self._client.opts["profiles"]
        if profile not in known:
            raise InvalidInput(
                f"salt-cloud has no profile {profile!r} (cloud.profiles.d); profiles: {', '.join(sorted(known))}"
            )

    def check_host(self, profile, host):
        """
        Make sure that a host of a profile's provider answers.

        :raises Unreachable: it does not
        """
        with self._driver(profile, "avail_locations") as locations:
            try:
                answering = locations()
            except (SaltException, SaltCloudSystemExit) as err:
                raise Unreachable(f"host {host}: {_one_line(err)}") from err
        if host not in answering:
            raise Unreachable(f"host {host} does not answer")

    def create(self, rendered_map, report):
        """
        Run a map: create its machines, several at a time.

        salt-cloud makes the minion keys and accepts them by file; a driver leaves nothing of a machine that failed.

        :param dict rendered_map: as of :func:`render_map`
        :param report: called with a name and its outcome as soon as it is known
        :returns: by name, the driver's description of the machine (a dict), or a line saying why there is none (a str)
        :raises ProviderError: salt-cloud would not create exactly these machines; none was made
        """
        wanted = {name for entries in rendered_map.values() for entry in entries for name in entry}
        mapper = salt.cloud.Map(self._client._opts_defaults(map_data=rendered_map))
        plan = mapper.map_data()
        if wanted != set(plan["create"]):
            refused = ", ".join(sorted(wanted - set(plan["create"]))) or "others too"
            raise ProviderError(f"salt-cloud would not create exactly the nodes asked for: {refused} exist already")

        def create(name):
            # A request for acceptance that waits under this name, whosever it is, would keep the node's own key out.
            self._forget_key(name)
            try:
                return mapper.create(plan["create"][name]) or "the driver gave no reason, see the master's log"
            except (SaltException, SaltCloudSystemExit) as err:
                return _one_line(err)

        outcomes = {}
        with ThreadPoolExecutor(min(_WORKERS, len(wanted))) as pool:
            futures = {pool.submit(create, name): name for name in sorted(wanted)}
            for future in as_completed(futures):
                name = futures[future]
                outcomes[name] = future.result()
                report(name, outcomes[name])
        return outcomes

    def destroy(self, profile, hosts):
        """
        Destroy machines, several at a time; one that does not exist is no error.

        :param str profile: the profile by which they were made
        :param dict hosts: by machine, the host on which it is, or None where that is not known
        :returns: by name, None where it is proven gone, otherwise one line saying why it is not
        :rtype: dict[str, str | None]
        """

        def destroy(name):
            known = {"host": hosts[name]} if hosts[name] else {}
            try:
                driver_destroy(name, call="action", **known)
            except (SaltException, SaltCloudSystemExit) as err:
                return _one_line(err)
            self._forget_key(name)
            return None

        # The driver is told its provider once for all threads: set and reset per call, it would vanish under another's
        # feet.
        with self._driver(profile, "destroy") as driver_destroy, ThreadPoolExecutor(min(_WORKERS, len(hosts))) as pool:
            return dict(zip(hosts, pool.map(destroy, hosts), strict=True))

    def accepted_keys(self):
        """
        The ids of the minions that the master accepts.

        :rtype: frozenset[str]
        """
        return frozenset(path.name for path in Path(self._client.opts["pki_dir"], "minions").iterdir())

    @contextmanager
    def _driver(self, profile, function):
        """A function of the driver behind a profile, which knows its provider as long as the context lasts."""
        self.check_profile(profile)
        provider = self._client.opts["profiles"][profile]["provider"]
        clouds = salt.cloud.Cloud(self._client._opts_defaults()).clouds
        called = clouds[f"{provider.partition(':')[2]}.{function}"]
        with salt.utils.context.func_globals_inject(called, __active_provider_name__=provider):
            yield called

    def _forget_key(self, name):
        for directory in _KEY_DIRECTORIES:
            Path(self._client.opts["pki_dir"], directory, name).unlink(missing_ok=True)


def render_map(pool, addresses, host=None):
    """
    The salt-cloud map for nodes of a pool; written to a file, plain ``salt-cloud -m`` runs it, too.

    :param saltmarsh.pools.Pool pool: the pool
    :param dict addresses: the address of each node by name
    :param str host: the hypervisor on which they shall be; None leaves it to the driver
    :returns: a map without secrets
    :rtype: dict
    """
    shared = {"image": pool.image, "cpus": pool.cpus, "memory": pool.memory} | ({"host": host} if host else {})
    return {pool.profile: [{name: {"address": address, **shared}} for name, address in addresses.items()]}


def _one_line(err):
    return " ".join(str(err).split())
