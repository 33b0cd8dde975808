"""
What all hosts of a provider have, in a few calls to each: never one for each machine.

Part of the seam to libvirt, on top of :mod:`saltmarsh.hypervisor`.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import libvirt

from saltmarsh import statefiles
from saltmarsh.errors import ProviderError, Unreachable
from saltmarsh.libvirt_link import asking
from saltmarsh.machine import Inventory, PowerState, Seen
from saltmarsh.storage import marked, refresh

# Names and UUIDs come with a list, states do not: so there is a list for each.
_LISTS = {
    libvirt.VIR_CONNECT_LIST_DOMAINS_RUNNING: PowerState.RUNNING,
    libvirt.VIR_CONNECT_LIST_DOMAINS_PAUSED: PowerState.PAUSED,
    libvirt.VIR_CONNECT_LIST_DOMAINS_SHUTOFF: PowerState.STOPPED,
    libvirt.VIR_CONNECT_LIST_DOMAINS_OTHER: PowerState.UNKNOWN,
}
# Whether a domain is ours is asked once: it does not change, and nothing is done to a domain without asking again.
_known = {}  # by host, whether the domain with a UUID is ours
_sizes = {}  # by host, what was learned of its state files


def inventory(hypervisors):
    """
    This cluster's machines, its volumes and the state files on all hosts that answer, and which hosts do not.

    :param Hypervisors hypervisors: the provider's hosts
    :rtype: saltmarsh.machine.Inventory
    """
    connections, trouble = hypervisors.connect_to_reachable()
    away = [host for host in hypervisors.config.hosts if host not in connections]
    silent = {host: str(err) for host, err in zip(away, trouble, strict=True)}
    seen = {}
    with ThreadPoolExecutor(len(connections) or 1) as pool:
        asked = {host: pool.submit(_look, hypervisors, host, each) for host, each in connections.items()}
    for host, answer in asked.items():
        try:
            seen[host] = answer.result()
        except (ProviderError, Unreachable) as err:
            silent[host] = str(err)
    saved = {name: size for each in seen.values() for name, size in each.saved.items()}
    # Hosts may share their volumes, and whose a domain is that has such a name does not matter.
    alone = set().union(*(each.volumes for each in seen.values())) - saved.keys()
    alone = alone.difference(*(each.domains for each in seen.values()))
    if alone:
        alone &= _owners_now(hypervisors, {host: connections[host] for host in seen}, silent)
    machines = tuple(machine for each in seen.values() for machine in each.machines)
    others = set().union(*(each.domains for each in seen.values())).difference(machine.name for machine in machines)
    return Inventory(machines, saved, silent, frozenset(alone), frozenset(others))


@dataclass
class _Host:
    """What a host has."""

    machines: list[Seen]
    domains: set[str]  # the names of all of them, whosever they are
    saved: dict[str, int]
    volumes: set[str]  # the names of machines of which there are volumes with our mark


def _look(hypervisors, host, connection):
    config = hypervisors.config
    place = config.cluster, config.hosts[host].uri
    known, now = _known.get(place, {}), {}
    # The volumes first: a machine is there before them, and goes after them.
    found = _Host([], set(), {}, _owners(hypervisors, host, connection))
    with asking(host, connection, "can't list domains"):
        for flag, state in _LISTS.items():
            for domain in connection.listAllDomains(flag):
                uuid = domain.UUIDString()
                found.domains.add(domain.name())
                now[uuid] = known[uuid] if uuid in known else hypervisors.describe(host, domain) is not None
                if now[uuid]:
                    found.machines.append(Seen(domain.name(), host, state))
    _known[place] = now
    if config.state_dir:
        _sizes[place] = statefiles.sizes(host, connection, config, _sizes.get(place, {}))
        found.saved = statefiles.by_machine(_sizes[place])
    return found


def _owners(hypervisors, host, connection, look_again=False):
    config = hypervisors.config
    with asking(host, connection, f"can't list storage pool {config.disk_pool}"):
        pool = connection.storagePoolLookupByName(config.disk_pool)
        if look_again:
            refresh(pool)
        return marked(pool, config.cluster)


def _owners_now(hypervisors, connections, silent):
    """As :func:`_owners`, of all hosts; a host does not know by itself what has been deleted through another."""
    found = set()
    for host, connection in connections.items():
        try:
            found |= _owners(hypervisors, host, connection, look_again=True)
        except (ProviderError, Unreachable) as err:
            silent[host] = str(err)
    return found
