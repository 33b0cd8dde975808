"""
What pillar promises: hosts, network and pools, read once, checked as a whole, and never changed.

Also the one reader of hostlists that come from outside (pillar and the command line).
"""

import re
from collections import Counter
from functools import cached_property
from ipaddress import IPv4Interface
from types import UnionType
from typing import Literal, get_args, get_origin

from pydantic import Field, ValidationError, field_validator

from saltmarsh import networks
from saltmarsh.errors import InvalidInput, PillarError
from saltmarsh.model import State, nodeset
from saltmarsh.networks import Connection, Network, Tunnel
from saltmarsh.pillarwords import (
    Address,
    Addresses,
    Directory,
    Frozen,
    Label,
    Names,
    Partition,
    WholeNumber,
    Word,
    node_names,
    short,
)


def parse_nodes(text):
    """
    The set of nodes that a hostlist names.

    :param str text: a hostlist, for example ``vn[001-004],vn016``; no groups, wildcards, steps or set operators
    :returns: the names
    :rtype: ClusterShell.NodeSet.NodeSet
    :raises InvalidInput: not a hostlist, a name that no node can have, or more than 100000 names
    """
    try:
        return nodeset(node_names(text))
    except ValueError as err:
        raise InvalidInput(f"{short(text)} is not a hostlist such as vn[001-004]: {err}") from err


def parse_count_or_nodes(value):
    """
    How many nodes, or which: the COUNT|HOSTLIST argument of the runner.

    :param value: a whole number above 0 or a hostlist, as Salt's command line or an API delivers it
    :returns: an int, or a NodeSet
    :raises InvalidInput: anything else
    """
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        value = int(value)
    if type(value) is int and value > 0:  # a bool is an int, too
        return value
    if isinstance(value, str) and re.match(r"[^0-9.+-]", value):
        return parse_nodes(value)
    raise InvalidInput(f"expected a number of nodes above 0 or a hostlist such as vn[001-004], got {short(value)}")


class Host(Frozen):
    """A machine with a fixed name and address: the controller, or a hypervisor."""

    name: Label = Field(description="a host name")
    address: Address = Field(description="an IPv4 address")


class Limits(Frozen):
    """
    How far a pool may go.

    ``overcommit_suspended`` is how many suspended nodes don't count towards ``max_nodes``, because their provider has
    room for others in their place.
    """

    max_nodes: WholeNumber | None = Field(None, description="a whole number of nodes above 0")
    boot_timeout: WholeNumber = Field(600, description="a whole number of seconds above 0")
    idle: WholeNumber = Field(600, description="a whole number of seconds above 0")
    overcommit_suspended: int = Field(0, strict=True, ge=0, description="a whole number of nodes")


class Lease(Frozen):
    """
    The jobs on bare metal under which nodes live there (``salt-run elastic.backfill``).

    ``memory`` is what a machine needs on its host beyond its own, in MiB; ``hysteresis`` is in seconds.
    """

    partition: Partition = Field("lease", description="the name of a Slurm partition")
    account: Word = Field("lease", description="the name of an account in Slurm")
    user: Word = Field("slurm", description="the name of a user that exists on the controller and on all hosts")
    memory: int = Field(256, strict=True, ge=0, description="a whole number of MiB")
    hysteresis: int = Field(3, strict=True, ge=0, description="a whole number of seconds")
    on_save_failure: Literal["keep", "kill"] = Field("keep", description="keep or kill")


class Pool(Frozen):
    """
    Node names and addresses that share a profile, an image, limits and Slurm attributes.

    ``nodes`` and ``addresses`` are in the order in which pillar lists them; the first node has the first address. They
    are the addresses by which nodes are reached: NodeAddr in Slurm, and what DNS says.
    ``memory`` is in MiB, ``limits.boot_timeout`` in seconds; ``limits.max_nodes`` None means all of them. Nodes of a
    pool that is ``on_demand`` come when Slurm has a job for them, and go when they were idle for ``limits.idle``
    seconds.
    """

    name: Label = Field(description="a host name")
    nodes: Names = Field(description="a hostlist such as vn[001-016]")
    addresses: Addresses = Field(
        description="a range of IPv4 addresses such as 10.77.0.101-116, or a list of ranges and addresses"
    )
    network: Connection = Connection()
    profile: Word = Field(description="the name of a salt-cloud profile")
    fallback: tuple[Word, ...] = Field(
        (), description="a list of salt-cloud profiles to try in this order when that one has no room"
    )
    image: Word = Field(description="the name of an image, without a directory")
    cpus: WholeNumber = Field(description="a whole number of CPUs above 0")
    memory: WholeNumber = Field(description="a whole number of MiB above 0")
    partition: Partition = Field(description="the name of a Slurm partition")
    features: tuple[Word, ...] = Field((), description="a list of Slurm features")
    weight: WholeNumber = Field(1, description="a whole number above 0, Slurm's weight of a node")
    on_demand: bool = Field(False, strict=True, description="True or False")
    limits: Limits = Limits()

    def __contains__(self, node):
        return node in self._address_by_node

    @property
    def profiles(self):
        """The profiles by which its machines are made, in order of preference."""
        return (self.profile, *self.fallback)

    @property
    def nodeset(self):
        """All names of the pool, as a NodeSet."""
        return nodeset(self.nodes)

    def address_of(self, node):
        """
        The address that belongs to a node of this pool.

        :param str node: the node's name
        :rtype: str
        :raises InvalidInput: the pool has no such node
        """
        if node not in self:
            raise InvalidInput(f"pool {self.name} has no node {node!r}, its nodes are {self.nodeset}")
        return self._address_by_node[node]

    def own_address_of(self, node):
        """
        The address that the node's machine itself has: its pool may be reached by others.

        :param str node: the node's name
        :rtype: str
        :raises InvalidInput: the pool has no such node
        """
        address = self.address_of(node)
        return self.network.addresses[self.addresses.index(address)] if self.network.addresses else address

    def room(self, states):
        """
        How many more nodes there may be.

        :param states: the states of those that are not free
        :rtype: int
        """
        free = len(self.nodes) - len(states)
        if self.limits.max_nodes is None:
            return free
        spared = min(states.count(State.SUSPENDED), self.limits.overcommit_suspended)
        return min(free, self.limits.max_nodes - len(states) + spared)

    @cached_property
    def _address_by_node(self):
        return dict(zip(self.nodes, self.addresses, strict=True))


class Site(Frozen):
    """Everything below ``elastic`` in pillar."""

    cluster: Label = Field(description="a name for the cluster")
    controller: Host
    network: Network
    tunnel: Tunnel | None = None
    hosts: dict[str, Host] = Field(description="hypervisors by name")
    state_dir: Directory = Field(
        "/var/lib/saltmarsh", description="the absolute path of a directory on a local disk of the master"
    )
    lease: Lease = Lease()
    pools: dict[str, Pool] = Field(min_length=1, description="one or more pools by name")

    @classmethod
    def from_pillar(cls, pillar):
        """
        Read and check the key ``elastic`` of pillar.

        :param dict pillar: the master's view of pillar
        :returns: the site, which can't be changed
        :rtype: Site
        :raises PillarError: one line per mistake, each with its pillar key and what was expected there
        """
        try:
            site = cls.model_validate(pillar.get("elastic"))
        except ValidationError as err:
            raise PillarError("\n".join(dict.fromkeys(map(_line, err.errors())))) from err
        if mistakes := list(_mistakes(site)):
            raise PillarError("\n".join(mistakes))
        return site

    @field_validator("hosts", "pools", mode="before")
    @classmethod
    def _name_by_key(cls, value):
        if not isinstance(value, dict):
            return value
        return {key: {"name": key, **entry} if isinstance(entry, dict) else entry for key, entry in value.items()}

    @property
    def subnet(self):
        """The controller's network, in which the nodes are that it reaches directly, as an IPv4Network."""
        return IPv4Interface(f"{self.controller.address}/{self.network.prefix}").network

    def pool(self, name=None):
        """
        The pool of this name; without a name, the only pool there is.

        :param str name: the pool's name, or None
        :rtype: Pool
        :raises InvalidInput: no such pool, or none named although there are several
        """
        known = ", ".join(self.pools)
        if name is None and len(self.pools) == 1:
            return next(iter(self.pools.values()))
        if name is None:
            raise InvalidInput(f"which pool? name one with pool=; pools: {known}")
        if name not in self.pools:
            raise InvalidInput(f"pool {name!r} does not exist; pools: {known}")
        return self.pools[name]

    def pool_of(self, node):
        """
        The pool to which a node belongs.

        :param str node: the node's name
        :rtype: Pool
        :raises InvalidInput: it belongs to none
        """
        for pool in self.pools.values():
            if node in pool:
                return pool
        pools = ", ".join(f"{pool.name} ({pool.nodeset})" for pool in self.pools.values())
        raise InvalidInput(f"node {node!r} belongs to no pool; pools: {pools}")


def _line(error):
    """One mistake that pydantic found, in the words of pillar."""
    loc, (kind, expected) = error["loc"], _place(error["loc"])
    if loc[:1] in [("hosts",), ("pools",)] and loc[2:] in [("name",), ("[key]",)]:
        loc, expected = loc[:2], "a host name"  # the key is the name, see Site._name_by_key
    key = ":".join(map(str, ("elastic", *loc)))
    if error["type"] == "extra_forbidden":
        return f"{key}: not a known key, expected one of {', '.join(kind.model_fields)}"
    got = "nothing" if error["type"] == "missing" else short(error["input"])
    why = str(error["ctx"]["error"]) if error["type"] == "value_error" else ""
    return f"{key}: expected {expected}, got {got}{why and f': {why}'}"


def _place(loc):
    """The type that belongs at a place in pillar, and what is expected there in words."""
    kind, expected = Site, ""
    for step in loc:
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif step in getattr(kind, "model_fields", ()):
            field = kind.model_fields[step]
            kind, expected = field.annotation, field.description
            if isinstance(kind, UnionType):  # it may be left out
                kind = get_args(kind)[0]
    if hasattr(kind, "model_fields"):
        expected = f"a mapping with the keys {', '.join(kind.model_fields)}"
    return kind, expected


def _mistakes(site):
    """What is wrong between values that are each right by themselves, one line per mistake."""
    for kind in ("hosts", "pools"):
        for key, entry in getattr(site, kind).items():
            if entry.name != key:
                yield f"elastic:{kind}:{key}:name: expected {key} (the key is the name), got {entry.name}"

    names = {site.controller.name: "the controller"} | {name: f"host {name}" for name in site.hosts}
    addresses = {}
    for host in site.hosts.values():
        if host.address in addresses:
            yield f"elastic:hosts:{host.name}:address: {host.address} belongs to {addresses[host.address]}"
        addresses.setdefault(host.address, f"host {host.name}")
    addresses.setdefault(site.controller.address, "the controller")
    addresses.setdefault(site.network.gateway, "the gateway")
    if site.tunnel:
        addresses.setdefault(site.tunnel.address, "the controller")
    for address in site.network.nameservers:
        addresses.setdefault(address, "a nameserver")

    yield from networks.mistakes(site)
    for pool in site.pools.values():
        key = f"elastic:pools:{pool.name}"
        if len(pool.nodes) != len(pool.addresses):
            yield (
                f"{key}:addresses: expected as many addresses as nodes, "
                f"got {len(pool.addresses)} addresses for {len(pool.nodes)} nodes"
            )
        yield from _clashes(f"{key}:nodes", pool.nodes, names, f"pool {pool.name}")
        yield from _clashes(f"{key}:addresses", pool.addresses, addresses, f"pool {pool.name}")
        yield from networks.pool_mistakes(site, pool)


def _clashes(key, items, owners, owner):
    """Report items that stand in a pool twice or belong to another owner; the rest becomes this owner's."""
    if repeated := [item for item, count in Counter(items).items() if count > 1]:
        yield f"{key}: {nodeset(repeated)} stands in it more than once"
    taken = {}
    for item in dict.fromkeys(items):
        if owners.setdefault(item, owner) != owner:
            taken.setdefault(owners[item], []).append(item)
    for other, theirs in taken.items():
        yield f"{key}: {nodeset(theirs)} belongs to {other}"
