"""How the controller and the nodes of a pool reach each other: what pillar says of it, and what can't be."""

from ipaddress import IPv4Address
from typing import Literal

from pydantic import Field

from saltmarsh.model import nodeset
from saltmarsh.pillarwords import Address, Addresses, Domain, Frozen


class Network(Frozen):
    """The network that the controller and the nodes share that it reaches directly."""

    prefix: int = Field(strict=True, ge=8, le=30, description="the length of the network's prefix, 8 to 30")
    gateway: Address | None = Field(None, description="an IPv4 address")
    nameservers: tuple[Address, ...] = Field(min_length=1, description="a list of one or more IPv4 addresses")
    domain: Domain | None = Field(None, description="a DNS domain in lower case")


class Connection(Frozen):
    """
    How the nodes of a pool are reached.

    ``direct``: they are in the controller's network. ``floating``: by addresses that a router translates to their own.
    ``addresses`` are those that the machines themselves have, in the
    order of the nodes; nodes that are reached directly have no others.
    """

    kind: Literal["direct", "floating"] = Field("direct", description="direct or floating")
    addresses: Addresses = Field(
        (), description="a range of IPv4 addresses such as 192.168.5.11-26, or a list of ranges and addresses"
    )


def mistakes(site):
    """
    What is wrong with the networks that a whole site has in common, one line per mistake.

    :param saltmarsh.pools.Site site: the site
    """
    if site.network.gateway and not _inside(site.subnet, site.network.gateway):
        yield f"elastic:network:gateway: {site.network.gateway} lies outside the network {site.subnet}"


def pool_mistakes(site, pool):
    """
    What is wrong with how a pool is reached, one line per mistake.

    :param saltmarsh.pools.Site site: the site
    :param saltmarsh.pools.Pool pool: one of its pools
    """
    key, kind, own = f"elastic:pools:{pool.name}", pool.network.kind, pool.network.addresses
    if kind == "direct" and own:
        yield f"{key}:network:addresses: expected nothing, a node that is reached directly has no other address"
    if kind != "direct" and not len(own) == len(set(own)) == len(pool.nodes):
        yield (
            f"{key}:network:addresses: expected as many different addresses as nodes, "
            f"got {len(set(own))} for {len(pool.nodes)} nodes"
        )
    if kind == "direct" and (outside := [address for address in pool.addresses if not _inside(site.subnet, address)]):
        yield f"{key}:addresses: {nodeset(outside)} lies outside the network {site.subnet}"


def _inside(subnet, address):
    return subnet.network_address < IPv4Address(address) < subnet.broadcast_address
