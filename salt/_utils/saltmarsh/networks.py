"""How the controller and the nodes of a pool reach each other: what pillar says of it, and what can't be."""

from ipaddress import IPv4Address, IPv4Interface
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


class Tunnel(Frozen):
    """
    The network in which the controller and nodes meet that it can't reach otherwise.

    ``address`` is the controller's in there. Nodes send to ``endpoint`` and ``port``, from wherever they are.
    """

    address: Address = Field(description="an IPv4 address")
    prefix: int = Field(strict=True, ge=8, le=30, description="the length of the tunnel's prefix, 8 to 30")
    endpoint: Address = Field(description="an IPv4 address of the controller that nodes reach from outside")
    port: int = Field(51820, strict=True, ge=1, le=65535, description="a UDP port, 1 to 65535")

    @property
    def subnet(self):
        """The tunnel's network, as an IPv4Network."""
        return IPv4Interface(f"{self.address}/{self.prefix}").network


class Connection(Frozen):
    """
    How the nodes of a pool are reached.

    ``direct``: they are in the controller's network. ``floating``: by addresses that a router translates to their own.
    ``tunnel``: by addresses in the site's tunnel. ``addresses`` are those that the machines themselves have, in the
    order of the nodes; nodes that are reached directly have no others.
    """

    kind: Literal["direct", "floating", "tunnel"] = Field("direct", description="direct, floating or tunnel")
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
    if (tunnel := site.tunnel) is None:
        return
    if tunnel.subnet.overlaps(site.subnet):
        yield f"elastic:tunnel: {tunnel.subnet} and the network {site.subnet} have addresses in common"
    # The way to it would lead into the tunnel itself.
    if any(IPv4Address(tunnel.endpoint) in subnet for subnet in (site.subnet, tunnel.subnet)):
        yield (
            f"elastic:tunnel:endpoint: expected an address outside {site.subnet} and {tunnel.subnet}, which nodes "
            f"reach through the tunnel, got {tunnel.endpoint}"
        )


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
    if kind == "tunnel" and site.tunnel is None:
        yield f"elastic:tunnel: expected a mapping with the keys {', '.join(Tunnel.model_fields)}, got nothing"
        return
    subnet = {"direct": site.subnet, "tunnel": site.tunnel and site.tunnel.subnet}.get(kind)
    if subnet and (outside := [address for address in pool.addresses if not _inside(subnet, address)]):
        yield f"{key}:addresses: {nodeset(outside)} lies outside the {_WORDS[kind]} {subnet}"


def _inside(subnet, address):
    return subnet.network_address < IPv4Address(address) < subnet.broadcast_address


_WORDS = {"direct": "network", "tunnel": "tunnel"}
