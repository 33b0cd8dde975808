"""
What a machine is told when it boots: its name, its address, its minion's configuration and keys, its master's key.

Two ways. *Credentials*: systemd takes them from the firmware, before anything else runs; the golden image's tmpfiles
put the ``salt.*`` ones in place. *NoCloud*: a small disk that cloud-init of any stock image reads. Pure values: what is
made here is carried to the machine by its provider.
"""

import io
from dataclasses import dataclass, field

import pycdlib
import salt.utils.yaml

_TUNNEL_FILE = "/etc/wireguard/saltmarsh.conf"
_OPEN_TUNNEL = ["systemctl", "enable", "--now", "wg-quick@saltmarsh.service"]


@dataclass(frozen=True)
class Credential:
    """A named value for systemd (systemd.system-credentials(7)); a secret one is kept out of every command line."""

    name: str
    value: str = field(repr=False)
    secret: bool = False


@dataclass(frozen=True)
class Minion:
    """
    What makes a Salt minion this minion and no other.

    ``config`` is its configuration file as a mapping. With ``master_key`` (the master's public key) it trusts no other
    master, not even on the first contact.
    """

    config: dict = field(repr=False)
    private_key: str = field(repr=False)
    public_key: str
    master_key: str


@dataclass(frozen=True)
class Identity:
    """What a provider hands to a machine: credentials, or a seed (the bytes of an ISO 9660 image), or nothing."""

    credentials: tuple[Credential, ...] = ()
    seed: bytes | None = field(default=None, repr=False)


def by_credentials(spec, minion=None, tunnel=None):
    """
    The identity of a machine whose image is made for systemd credentials (systemd 256 or later).

    :param spec: its :class:`saltmarsh.machine.MachineSpec`
    :param Minion minion: its minion; none if it has none
    :param str tunnel: its end of the tunnel, as a file for wg-quick(8); None if it needs none
    :returns: an :class:`Identity`
    """
    given = [Credential("system.hostname", spec.name), Credential("network.network.10-eth0", _networkd(spec))]
    if minion:
        given += [
            Credential("salt.minion.pem", minion.private_key, secret=True),
            Credential("salt.minion.pub", minion.public_key),
            Credential("salt.master.pub", minion.master_key),
            # A profile may put anything into a minion's configuration, passwords too.
            Credential("salt.minion.conf", _yaml(minion.config), secret=True),
        ]
    if tunnel:
        given.append(Credential("salt.tunnel.conf", tunnel, secret=True))
    return Identity(credentials=tuple(given))


def by_nocloud(spec, instance_id, minion=None, cloud_config=None, tunnel=None):
    """
    The identity of a machine whose image has cloud-init (its data source NoCloud, label CIDATA).

    :param spec: its :class:`saltmarsh.machine.MachineSpec`
    :param str instance_id: new for each machine that is made, even under the same name: cloud-init goes by it
    :param Minion minion: its minion; none if it has none
    :param dict cloud_config: more cloud-config for the image at hand, for example how it gets a salt-minion;
        its ``write_files`` are written after the minion's
    :param str tunnel: as of :func:`by_credentials`
    :returns: an :class:`Identity`
    """
    return Identity(
        seed=_iso(
            {
                "meta-data": _yaml({"instance-id": instance_id, "local-hostname": spec.name}),
                "user-data": user_data(spec.name, spec.network.domain, minion, cloud_config, tunnel),
                "network-config": _yaml(_netplan(spec)),
            }
        )
    )


def user_data(name, domain=None, minion=None, cloud_config=None, tunnel=None):
    """
    What cloud-init is told as its user data: the name, the minion, and the tunnel, which is opened first.

    :param str name: of the machine
    :param str domain: its DNS domain
    :param Minion minion: its minion; none if it has none
    :param dict cloud_config: as of :func:`by_nocloud`
    :param str tunnel: as of :func:`by_credentials`
    :returns: text in cloud-config's format
    :rtype: str
    """
    files = []
    if minion:
        files = [
            _file("/etc/salt/pki/minion/minion.pem", minion.private_key, "0600"),
            _file("/etc/salt/pki/minion/minion.pub", minion.public_key, "0644"),
            _file("/etc/salt/pki/minion/minion_master.pub", minion.master_key, "0644"),
            # Not /etc/salt/minion: that one belongs to the package.
            _file("/etc/salt/minion.d/saltmarsh.conf", _yaml(minion.config), "0600"),
        ]
    config = dict(cloud_config or {})
    if tunnel:
        files.append(_file(_TUNNEL_FILE, tunnel, "0600"))
        config["runcmd"] = [_OPEN_TUNNEL, *config.get("runcmd", [])]
    config |= {
        "hostname": name,
        "fqdn": f"{name}.{domain}" if domain else name,
        "prefer_fqdn_over_hostname": False,
        "write_files": files + list(config.get("write_files", [])),
    }
    return "#cloud-config\n" + _yaml(config)


def _networkd(spec):
    """A systemd.network(5) file: the one address, and nothing that would ask the network for more."""
    lines = ["[Match]", f"MACAddress={spec.mac}", "", "[Network]", f"Address={spec.address}/{spec.network.prefix}"]
    if spec.network.gateway:
        lines.append(f"Gateway={spec.network.gateway}")
    lines += [f"DNS={server}" for server in spec.network.nameservers]
    if spec.network.domain:
        lines.append(f"Domains={spec.network.domain}")
    lines += ["DHCP=no", "LinkLocalAddressing=no", "IPv6AcceptRA=no", "LLMNR=no", "MulticastDNS=no"]
    return "\n".join(lines) + "\n"


def _netplan(spec):
    """Network configuration version 2 of cloud-init."""
    eth0 = {
        "match": {"macaddress": spec.mac},
        "set-name": "eth0",
        "dhcp4": False,
        "dhcp6": False,
        "addresses": [f"{spec.address}/{spec.network.prefix}"],
    }
    if spec.network.gateway:
        everything = "0.0.0.0/0" if spec.address.version == 4 else "::/0"
        eth0["routes"] = [{"to": everything, "via": str(spec.network.gateway)}]
    nameservers = {}
    if spec.network.nameservers:
        nameservers["addresses"] = [str(server) for server in spec.network.nameservers]
    if spec.network.domain:
        nameservers["search"] = [spec.network.domain]
    if nameservers:
        eth0["nameservers"] = nameservers
    return {"version": 2, "ethernets": {"eth0": eth0}}


def _file(path, content, permissions):
    return {"path": path, "content": content, "owner": "root:root", "permissions": permissions}


def _yaml(value):
    return salt.utils.yaml.safe_dump(value, default_flow_style=False)


def _iso(files):
    """An ISO 9660 image labelled CIDATA; Rock Ridge and Joliet carry the names, which ISO 9660 itself can't spell."""
    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, vol_ident="CIDATA", joliet=3, rock_ridge="1.09")
    for number, (name, text) in enumerate(files.items()):
        content = text.encode()
        image.add_fp(io.BytesIO(content), len(content), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
    out = io.BytesIO()
    image.write_fp(out)
    image.close()
    return out.getvalue()
