"""One look at everything that knows of nodes: the ledger, Slurm, the providers, minion keys, DNS, the tunnel."""

import time
from dataclasses import dataclass, field, replace

from saltmarsh import breaker
from saltmarsh.breaker import Stop
from saltmarsh.errors import SaltmarshError
from saltmarsh.machine import Inventory, Seen
from saltmarsh.model import Node
from saltmarsh.pools import Site
from saltmarsh.slurmtypes import SlurmNode


@dataclass(frozen=True)
class Snapshot:
    """
    What was there at one time. What could not be asked is not "nothing": it is None, or text that says why.

    ``providers`` holds, by the provider's name, its inventory, or why there is none; ``provider_of`` the provider of
    each pool. ``changed`` are names whose row in the ledger is not what it was when the look began.
    """

    at: float
    site: Site
    nodes: dict[str, Node]
    slurm: dict[str, SlurmNode] | str
    providers: dict[str, Inventory | str]
    provider_of: dict[str, str]
    keys: frozenset[str]
    dns: frozenset[str]
    tunnel: frozenset[str] = frozenset()
    stops: dict[str, Stop] = field(default_factory=dict)  # by pool
    changed: frozenset[str] = frozenset()
    machines: dict[str, list[Seen]] = field(init=False, compare=False)  # by name
    saved: dict[str, int] = field(init=False, compare=False)  # as in Inventory
    strays: frozenset[str] = field(init=False, compare=False)  # as in Inventory
    taken: dict[str, str] = field(init=False, compare=False)  # as in Inventory

    def __post_init__(self):
        machines, saved, strays, taken = {}, {}, set(), {}
        for inventory in self.providers.values():
            if isinstance(inventory, Inventory):
                for machine in inventory.machines:
                    seen = machines.setdefault(machine.name, [])
                    if machine not in seen:  # pools that share one of their providers
                        seen.append(machine)
                saved |= inventory.saved
                strays |= inventory.strays
                taken |= inventory.taken
        object.__setattr__(self, "machines", machines)
        object.__setattr__(self, "saved", saved)
        object.__setattr__(self, "strays", frozenset(strays - machines.keys() - saved.keys()))
        object.__setattr__(self, "taken", taken)

    def doubt(self, pool, host=None):
        """
        Why it can't be said what a pool's provider has on a host (on any, if none is given); empty if it can.

        :param str pool: the pool's name
        :param str host: the host
        :rtype: str
        """
        inventory = self.providers.get(self.provider_of.get(pool))
        if inventory is None:
            return f"the provider of pool {pool} was not asked"
        if isinstance(inventory, str):
            return inventory
        if host is None:
            return "; ".join(inventory.silent.values())
        providers = self.provider_of[pool].split(", ")
        if host in inventory.silent or host in providers:
            return inventory.silent.get(host, "")
        # It may be a host of a provider that does not answer at all.
        return "; ".join(inventory.silent[name] for name in providers if name in inventory.silent)


def observe(controller, machines=True):
    """
    Look at everything: a few calls to each provider and one to Slurm, however many nodes there are.

    :param Controller controller: what to ask
    :param bool machines: whether to ask the providers, too
    :rtype: Snapshot
    :raises LedgerError: the ledger can't be read
    """
    before = _rows(controller)
    providers, provider_of = _providers(controller) if machines else ({}, {})
    snapshot = Snapshot(
        at=time.time(),
        site=controller.site,
        nodes=before,
        slurm=_slurm(controller.slurm),
        providers=providers,
        provider_of=provider_of,
        keys=controller.cloud.accepted_keys(),
        dns=controller.dns.names(),
        tunnel=controller.tunnel.names(),
        stops=breaker.stops(controller),
    )
    after = _rows(controller)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    return replace(snapshot, nodes=after, changed=frozenset(changed))


def _rows(controller):
    return {node.name: node for node in controller.ledger.nodes()}


def _providers(controller):
    """By the provider's name what it has, or why that is not known; and the provider of each pool."""
    providers, provider_of = {}, {}
    for pool in controller.site.pools.values():
        try:
            provider_of[pool.name] = name = ", ".join(map(controller.cloud.provider, pool.profiles))
            if name not in providers:
                providers[name] = _inventory(controller, pool)
        except SaltmarshError as err:
            providers[provider_of.setdefault(pool.name, pool.profile)] = str(err)
    return providers, provider_of


def _inventory(controller, pool):
    """What a pool's providers have; of several, one that can't be asked is like a host that does not answer."""
    if not pool.fallback:
        return controller.cloud.inventory(pool.profile)
    inventories = []
    for profile in pool.profiles:
        try:
            inventories.append(controller.cloud.inventory(profile))
        except SaltmarshError as err:
            inventories.append(Inventory((), {}, {controller.cloud.provider(profile): str(err)}))
    return Inventory(
        machines=tuple(machine for each in inventories for machine in each.machines),
        saved={name: size for each in inventories for name, size in each.saved.items()},
        silent={host: why for each in inventories for host, why in each.silent.items()},
        strays=frozenset().union(*(each.strays for each in inventories)),
        others=frozenset().union(*(each.others for each in inventories)),
    )


def _slurm(slurm):
    try:
        return slurm.nodes()
    except SaltmarshError as err:
        return str(err)
