"""
What all hosts of a provider have, in a few calls to each: never one for each machine.

Part of the seam to libvirt, on top of :mod:`saltmarsh.hypervisor`.
"""

from concurrent.futures import ThreadPoolExecutor

import libvirt

from saltmarsh import statefiles
from saltmarsh.errors import ProviderError, Unreachable
from saltmarsh.libvirt_link import asking
from saltmarsh.machine import Inventory, PowerState, Seen

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
    This cluster's machines and the state files on all hosts that answer, and which hosts do not.

    :param Hypervisors hypervisors: the provider's hosts
    :rtype: saltmarsh.machine.Inventory
    """
    connections, trouble = hypervisors.connect_to_reachable()
    away = [host for host in hypervisors.config.hosts if host not in connections]
    silent = {host: str(err) for host, err in zip(away, trouble, strict=True)}
    machines, saved = [], {}
    with ThreadPoolExecutor(len(connections) or 1) as pool:
        asked = {host: pool.submit(_look, hypervisors, host, each) for host, each in connections.items()}
    for host, answer in asked.items():
        try:
            seen, sizes = answer.result()
        except (ProviderError, Unreachable) as err:
            silent[host] = str(err)
        else:
            machines += seen
            saved |= sizes
    return Inventory(tuple(machines), saved, silent)


def _look(hypervisors, host, connection):
    config = hypervisors.config
    place = config.cluster, config.hosts[host].uri
    known, now = _known.get(place, {}), {}
    seen = []
    with asking(host, connection, "can't list domains"):
        for flag, state in _LISTS.items():
            for domain in connection.listAllDomains(flag):
                uuid = domain.UUIDString()
                now[uuid] = known[uuid] if uuid in known else hypervisors.describe(host, domain) is not None
                if now[uuid]:
                    seen.append(Seen(domain.name(), host, state))
    _known[place] = now
    if not config.state_dir:
        return seen, {}
    _sizes[place] = statefiles.sizes(host, connection, config, _sizes.get(place, {}))
    return seen, statefiles.by_machine(_sizes[place])
