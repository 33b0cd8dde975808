"""
Nodes that the controller does not reach directly (docs/howto/networks.md), behind real routers and real firewalls.

A pool of kind ``floating`` is in a network of its own, to which the controller has no way. A router translates. One of
kind ``tunnel`` is behind a router that lets its nodes out to one address of the controller and nobody in. Salt's master
and minions, slurmctld, slurmds, munge and the name server are real; so are the firewalls and the tunnel, whose files
the minions write by their states. WireGuard is the one outside the kernel where this machine's kernel has none.
"""

import json
import os
import re
import shutil
import signal
import subprocess

import pytest
import yaml
from conftest import send, wait_until

from saltmarsh import identity, pools, slurm
from saltmarsh.tunnel import Peers

FLOATING = {"fn001": ("10.77.0.201", "192.168.5.11"), "fn002": ("10.77.0.202", "192.168.5.12")}
TUNNEL = {"tn001": ("10.78.0.11", "192.168.6.11"), "tn002": ("10.78.0.12", "192.168.6.12")}
LATE = {"tn003": ("10.78.0.13", "192.168.6.13")}
ENDPOINT = "198.51.100.1"
FILES = ("site", "elastic", "slurm", "firewall")  # of the lab's pillar
SRUN_PORTS = "60001-63000"
SITE = "srv/site"  # short: Salt has its sockets below
SALT = "/opt/saltmarsh/bin"

# A router with addresses in the controller's network, one for each node behind it, which it translates both ways. The
# outside has no way to the nodes' own addresses.
ROUTER = """
ip netns add cloud
ip link add cloud type veth peer name eth0 netns cloud
ip link set cloud master br0 up
ip -n cloud link add inside type bridge
ip -n cloud addr add 10.77.0.200/24 dev eth0
ip -n cloud addr add 192.168.5.1/24 dev inside
for link in lo eth0 inside; do ip -n cloud link set $link up; done
# A packet between two ports of the bridge goes through the router first, as where each has its own cable.
ip netns exec cloud sh -c 'cd /proc/sys/net; echo 1 > ipv4/ip_forward; echo 0 > bridge/bridge-nf-call-iptables'
ip netns exec cloud nft 'table ip nat {
  chain in { type nat hook prerouting priority dstnat; }
  chain out { type nat hook postrouting priority srcnat; }
}'
"""
BEHIND = """
ip netns add {name}
ip -n cloud link add {name} type veth peer name eth0 netns {name}
ip -n cloud link set {name} master inside up
ip -n {name} addr add {own}/24 dev eth0
ip -n {name} link set eth0 up
ip -n {name} link set lo up
ip -n {name} route add default via 192.168.5.1
ip -n cloud addr add {address}/24 dev eth0
ip netns exec cloud nft add rule ip nat in ip daddr {address} dnat to {own}
ip netns exec cloud nft add rule ip nat out ip saddr {own} snat to {address}
echo {address} {name} >> /etc/hosts
"""


# A router that lets out what is inside, and knows no way to the controller's network.
OFFICE = f"""
ip addr add {ENDPOINT}/24 dev br0
ip netns add office
ip link add office type veth peer name eth0 netns office
ip link set office master br0 up
ip -n office link add inside type bridge
ip -n office addr add 198.51.100.2/24 dev eth0
ip -n office addr add 192.168.6.1/24 dev inside
for link in lo eth0 inside; do ip -n office link set $link up; done
ip netns exec office sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
ip netns exec office nft 'table ip nat {{
  chain out {{ type nat hook postrouting priority srcnat; oif eth0 masquerade; }}
}}'
"""
IN_OFFICE = """
ip netns add {name}
ip -n office link add {name} type veth peer name eth0 netns {name}
ip -n office link set {name} master inside up
ip -n {name} addr add {own}/24 dev eth0
ip -n {name} link set eth0 up
ip -n {name} link set lo up
ip -n {name} route add default via 192.168.6.1
echo {address} {name} >> /etc/hosts
"""
# Each node has files of its own where states and cloud-init write, and its own WireGuard.
OWN = """
for directory in /etc/nftables.d /etc/wireguard /run/wireguard; do
    mkdir -p $directory /{site}/{name}$directory
    mount --bind /{site}/{name}$directory $directory
done
"""
ADDRESS = {"ctl": "10.77.0.1"} | {name: address for name, (address, _) in (FLOATING | TUNNEL | LATE).items()}
SOCKETS = "import socket, sys; kinds = {'tcp': socket.SOCK_STREAM, 'udp': socket.SOCK_DGRAM}\n"
# What listens already is a service itself.
ANSWER = f"""{SOCKETS}
import contextlib, selectors
there, accepted = selectors.DefaultSelector(), []
for kind, port in (each.split("/") for each in sys.argv[2:]):
    with contextlib.suppress(OSError):
        new = socket.socket(socket.AF_INET, kinds[kind])
        new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == "tcp")  # a slurmctld was there a moment ago
        new.bind((sys.argv[1], int(port)))
        if kind == "tcp":
            new.listen()
        there.register(new, selectors.EVENT_READ, kind)
print("listens", flush=True)
while True:
    for key, _ in there.select():
        if key.data == "tcp":
            accepted.append(key.fileobj.accept())  # whoever closes first keeps the port for a minute
        else:
            key.fileobj.sendto(b"here", key.fileobj.recvfrom(999)[1])
"""
ASK = f"""{SOCKETS}
from concurrent.futures import ThreadPoolExecutor
def ask(what):
    kind, port = what.split("/")
    asking = socket.socket(socket.AF_INET, kinds[kind])
    asking.settimeout(2)
    try:
        asking.connect((sys.argv[1], int(port)))
        if kind == "udp":
            asking.send(bytes.fromhex("feed 0100 0001 000000000000 0363746c00 0001 0001"))  # a question to DNS
            asking.recv(999)
    except OSError:
        return ""
    return what
print(*ThreadPoolExecutor(50).map(ask, sys.argv[2:]))
"""


@pytest.fixture
def pillar(pillar):
    """Two more pools, of nodes that are not reached directly, and firewalls."""
    return with_networks(pillar)


def addresses(nodes):
    return {name: address for name, (address, _) in nodes.items()}


def with_networks(pillar):
    elastic, partitions = pillar["elastic"], pillar["slurm"]["partitions"]
    elastic["tunnel"] = {"address": "10.78.0.1", "prefix": 24, "endpoint": ENDPOINT}
    for kind, nodes in (("floating", FLOATING), ("tunnel", TUNNEL | LATE)):
        elastic["pools"][kind] = {
            "nodes": ",".join(nodes),
            "addresses": list(addresses(nodes).values()),
            "network": {"kind": kind, "addresses": [own for _, own in nodes.values()]},
            "profile": kind,
            "image": "node.qcow2",
            "cpus": 1,
            "memory": 256,
            "partition": kind,
        }
        partitions[kind] = {"MaxTime": "INFINITE"}
    pillar.setdefault("firewall", {})["srun_ports"] = SRUN_PORTS
    return pillar


class Site:
    """The machine with networks beyond its own, and Salt."""

    def __init__(self, machine, states):
        self.machine = machine
        self._directory = machine.root / SITE
        shutil.copytree(states, self._directory / "salt")

    def shell(self, script):
        """Run commands on the controller."""
        self.machine.run("sh", "-e", "-c", script)

    def inside(self, name):
        """The command line that enters a node; the controller is "ctl"."""
        return [] if name == "ctl" else ["ip", "netns", "exec", name]

    def start_dns(self):
        """A name server on the controller for everybody: slurmd looks for the name of its own address, too."""
        names = ["--addn-hosts=/etc/hosts", "--no-hosts", "--no-resolv", "--listen-address=127.0.0.1,10.77.0.1"]
        self.machine.start("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--bind-interfaces", *names)
        (self.machine.root / "etc/resolv.conf").write_text("nameserver 10.77.0.1\n")

    def start_salt(self, pillar):
        """A master on the controller."""
        everybody, controller = {"*": ["all"]}, {"ctl": ["controller"]}
        self._write("pillar/top.sls", {"base": everybody | controller})
        self._write("pillar/all.sls", {key: pillar[key] for key in ("site", "firewall", "nfs")})
        self._write("pillar/controller.sls", {"roles": ["controller"], "elastic": pillar["elastic"]})
        self._write(
            "master/master",
            self._own("master") | {
                "interface": "10.77.0.1",
                "auto_accept": True,
                "worker_threads": 3,
                "timeout": 30,
                "file_roots": {"base": [f"/{SITE}/salt"]},
                "pillar_roots": {"base": [f"/{SITE}/pillar"]},
            },
        )  # fmt: skip
        self.machine.start(f"{SALT}/salt-master", "-c", f"/{SITE}/master")

    def start_minions(self, *names):
        """Minions that answer."""
        for name in names:
            self._write(f"{name}/minion", self._own(name) | {"id": name, "master": "10.77.0.1"})
            self.machine.start(*self.on(name, f"exec {SALT}/salt-minion -c /{SITE}/{name}"))
        wait_until(lambda: self.answering(names) == set(names), 60)

    def on(self, name, script):
        """The command line that runs a script on a machine, among its own files."""
        if name == "ctl":
            return ["sh", "-e", "-c", script]
        return [*self.inside(name), "unshare", "--mount", "sh", "-e", "-c", OWN.format(site=SITE, name=name) + script]

    def start_nfs(self):
        """The NFS server of the state, for clients of NFSv4.0, too: a kernel without NFS leaves only such ones."""
        self.apply("ctl", state=("/etc/ganesha/ganesha.conf", "nfs.server"))
        self.shell(
            "mkdir -p /run/ganesha /var/lib/nfs/ganesha; sed -i 's/Minor_Versions = /&0,/' /etc/ganesha/ganesha.conf"
        )
        self.machine.run("rpcbind", "-w")
        self.machine.start("ganesha.nfsd", "-F", "-L", f"/{SITE}/ganesha.log", "-f", "/etc/ganesha/ganesha.conf")

    def apply(self, *names, state):
        """Let minions apply one state of an SLS, and what it requires."""
        done = self.salt(names, "state.sls_id", *state)
        for name in names:
            assert all(each["result"] for each in done[name].values()), done

    def open_tunnel(self, name, told=None):
        """As the service does; a node is told by cloud-init, which writes the file with its mode."""
        if told:
            [file] = yaml.safe_load(identity.user_data(name, tunnel=told))["write_files"]
            path = self._directory / name / file["path"].removeprefix("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=int(file["permissions"], 8))
            path.write_text(file["content"])
        self.machine.run(*self.on(name, "exec wg-quick up saltmarsh"), stderr=subprocess.STDOUT)

    def _write(self, path, content):
        path = self._directory / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    def _own(self, name):
        return {"user": "root", "log_level": "warning", "root_dir": f"/{SITE}/{name}"}

    def salt(self, minions, function, *arguments, timeout=60):
        """What each of these minions answers."""
        ask = (
            "import json, sys, salt.client; config, *call = json.load(sys.stdin); "
            "print(json.dumps(salt.client.LocalClient(config).cmd(*call, tgt_type='list')))"
        )
        call = [f"/{SITE}/master/master", list(minions), function, arguments, timeout]
        said = self.machine.run(
            f"{SALT}/python", "-c", ask, input=json.dumps(call), check=False, stderr=subprocess.DEVNULL
        )
        return json.loads(said.splitlines()[-1]) if said else {}  # the line before may say that nobody is known

    def answering(self, minions):
        """Those of these minions that answer now."""
        return set(self.salt(minions, "test.ping", timeout=3))

    def firewall(self, *names):
        """Let minions write their rules as their states say, and load them as the service does."""
        self.apply(*names, state=("/etc/nftables.d/saltmarsh.nft", "firewall"))
        unit = (self._directory / "salt/firewall/files/saltmarsh-firewall.service").read_text()
        [start] = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
        for name in names:
            self.machine.run(*self.on(name, f"exec {start}"))

    def stop_slurmd(self, name):
        """End all that a node does for Slurm, and nothing else."""
        theirs = map(int, self.machine.run("ip", "netns", "pids", name).split())
        slurms = self.machine.processes("slurmd", "slurmd-wlm", "slurmstepd")
        send(signal.SIGKILL, {*theirs} & {*slurms})

    def reached(self, source, target, *ports, address=None):
        """Which of these ports of one machine, such as "tcp/22", another one reaches: something answers on all."""
        # What has several addresses must answer from the one that is asked.
        own = address or ADDRESS[target] if target == "ctl" else ""
        listening = subprocess.Popen(
            self.machine.enter(*self.inside(target), "python3", "-c", ANSWER, own, *ports),
            stdout=subprocess.PIPE, text=True, cwd="/",
        )  # fmt: skip
        try:
            assert listening.stdout.readline() == "listens\n"
            return set(
                self.machine.run(*self.inside(source), "python3", "-c", ASK, address or ADDRESS[target], *ports).split()
            )
        finally:
            listening.kill()
            listening.wait()


@pytest.fixture(scope="module")
def site(machine, checkout):
    """The controller, two nodes with floating addresses and two in the tunnel, each with a minion and its firewall."""
    site = Site(machine, checkout / "salt")
    site.shell(ROUTER + OFFICE)
    for template, nodes in ((BEHIND, FLOATING), (IN_OFFICE, TUNNEL | LATE)):
        for name, (address, own) in nodes.items():
            site.shell(template.format(name=name, address=address, own=own))
    site.start_dns()
    pillar = with_networks({key: value for file in FILES for key, value in read(checkout, file).items()})
    pillar["elastic"]["state_dir"] = str(machine.shared / "state")
    pillar["site"]["further_networks"] = ["10.78.0.0/24"]
    (machine.shared / "export").mkdir()
    pillar["nfs"]["exports"] = {
        str(machine.shared / "export"): {"pseudo": "/shared", "mount": "/shared", "access": "RW"}
    }
    pillar["firewall"]["accept"]["ssh"]["from"].append("10.78.0.1")
    site.start_salt(pillar)
    site.start_minions("ctl")
    site.start_nfs()
    site.apply("ctl", state=("/etc/wireguard/saltmarsh.conf", "tunnel.server"))
    site.apply("ctl", state=("net.ipv4.ip_forward", "tunnel.server"))
    site.open_tunnel("ctl")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("PATH", f"{machine.commands}:{os.environ['PATH']}")
    site.peers = Peers(machine.shared / "state/tunnel", pools.Site.from_pillar(pillar))
    for name, told in site.peers.add(addresses(TUNNEL)).items():
        site.open_tunnel(name, told)
    site.start_minions(*FLOATING, *TUNNEL)
    site.firewall("ctl", *FLOATING, *TUNNEL)
    yield site
    monkeypatch.undo()
    machine.lose(*FLOATING, *TUNNEL, *LATE)
    site.shell("wg-quick down saltmarsh; nft delete table inet saltmarsh")
    site.shell(f"for name in cloud office {' '.join(FLOATING | TUNNEL | LATE)}; do ip netns del $name; done")
    send(signal.SIGKILL, machine.processes("salt-master", "salt-minion", "dnsmasq", "rpcbind", "ganesha.nfsd"))


def read(checkout, file):
    return yaml.safe_load((checkout / f"pillar/{file}.sls").read_text())


@pytest.fixture
def grown(site, cluster):
    """All those nodes have grown."""
    nodes = FLOATING | TUNNEL
    slurm.expect(addresses(nodes))
    cluster.boot(*nodes)
    wait_until(lambda: all(node.registered for node in slurm.nodes(nodes).values()), 20)
    yield cluster
    for name in nodes:
        site.stop_slurmd(name)


ON_CONTROLLER = {"tcp/4505", "tcp/4506", "tcp/6817", "tcp/6818", "tcp/60001", "tcp/63000", "tcp/2049", "tcp/53",
                 "udp/53", "udp/123"}  # fmt: skip
ON_NODE = {"tcp/6818", "tcp/60001", "tcp/63000"}
NOWHERE = {"tcp/22", "tcp/25", "tcp/111", "tcp/6819", "tcp/8000", "tcp/60000", "tcp/63001", "udp/111", "udp/6817"}
EVERYTHING = ON_CONTROLLER | ON_NODE | NOWHERE


FAR = pytest.mark.parametrize(("first", "second"), [("fn001", "fn002"), ("tn001", "tn002")], ids=["floating", "tunnel"])
KINDS = pytest.mark.parametrize("kind", ["floating", "tunnel"])


@FAR
def test_a_node_reaches_on_the_controller_what_it_needs_and_nothing_else(site, first, second):
    assert site.reached(first, "ctl", *EVERYTHING) == ON_CONTROLLER


@FAR
def test_the_controller_reaches_slurmd_and_srun_on_a_node_and_what_pillar_allows_it(site, first, second):
    assert site.reached("ctl", first, *EVERYTHING) == ON_NODE | {"tcp/22"}


@FAR
def test_nodes_reach_slurmd_and_srun_on_each_other(site, first, second):
    assert site.reached(second, first, *EVERYTHING) == ON_NODE


def test_from_outside_the_tunnel_nothing_else_is_open_on_the_controller(site):
    assert site.reached("tn001", "ctl", *EVERYTHING, address=ENDPOINT) == set()


@FAR
def test_a_node_reads_and_writes_what_the_nfs_server_exports(site, first, second):
    (site.machine.shared / "export" / first).write_text("for nodes\n")
    (site.machine.shared / "export").chmod(0o777)
    there = "nfs://10.77.0.1/shared/{}?version=4"
    read = [*site.inside(first), "timeout", "20", "nfs-cat", there.format(first)]
    wait_until(lambda: site.machine.run(*read, check=False) == "for nodes", 20)
    site.machine.run(*site.inside(first), "timeout", "20", "nfs-cp", "/etc/hosts", there.format(f"{first}.copy"))
    copied = (site.machine.shared / "export" / f"{first}.copy").read_text()
    assert copied == (site.machine.root / "etc/hosts").read_text()


def test_minions_answer_on_connections_from_before_the_firewall(site):
    assert site.answering(["ctl", *FLOATING, *TUNNEL]) == {"ctl", *FLOATING, *TUNNEL}


@pytest.mark.parametrize("own", ["192.168.5.11", "192.168.6.11"])
def test_the_controller_has_no_way_to_the_nodes_own_addresses(site, own):
    with pytest.raises(subprocess.CalledProcessError):
        site.machine.run("ip", "route", "get", own)


def test_slurm_has_a_node_by_the_address_by_which_it_is_reached(grown):
    seen = slurm.nodes(FLOATING | TUNNEL)
    assert {name: node.address for name, node in seen.items()} == addresses(FLOATING | TUNNEL)


@KINDS
def test_srun_on_the_controller_speaks_with_its_tasks_on_all_nodes(grown, kind):
    said = grown.run("srun", "-p", kind, "-N2", "-D", "/", "sh", "-c", "read -r word; echo $(hostname) $word",
                     input="both ways\n", timeout=30)  # fmt: skip
    assert sorted(said.splitlines()) == [f"{kind[0]}n{number:03d} both ways" for number in (1, 2)]


@KINDS
def test_srun_in_a_job_starts_tasks_on_the_other_node(grown, kind):
    job = grown.submit("-p", kind, "-N2", script="srun -D / hostname")
    wait_until(lambda: grown.job(job) is None, 30)
    assert sorted((grown.shared / f"count.{job}").read_text().split()) == [
        f"{kind[0]}n{number:03d}" for number in (1, 2)
    ]


def test_a_node_enters_the_tunnel_with_its_own_key_until_it_is_revoked(site):
    [told] = site.peers.add(addresses(LATE)).values()
    site.open_tunnel("tn003", told)
    assert site.reached("tn003", "ctl", "tcp/2049") == {"tcp/2049"}
    # It has no firewall of its own: what the controller passes on to it is what the controller's lets through.
    assert site.reached("tn001", "tn003", *EVERYTHING) == ON_NODE
    site.peers.remove(LATE)
    assert site.reached("tn003", "ctl", "tcp/2049") == set()


def test_who_may_enter_the_tunnel_may_so_after_the_controller_has_opened_it_anew(site):
    site.shell("wg-quick down saltmarsh")
    site.open_tunnel("ctl")
    known = site.machine.run("wg", "show", "saltmarsh", "allowed-ips").split()
    assert sorted(known[1::2]) == ["10.78.0.11/32", "10.78.0.12/32"]


def test_nobody_but_root_can_read_a_key(site):
    found = site.machine.run(
        "find", f"/{SITE}", "/etc/wireguard", "-path", "*etc/wireguard/*", "-type", "f", "-printf", "%m %u %f\n"
    )
    assert set(found.splitlines()) == {"600 root saltmarsh.conf", "600 root saltmarsh.key"}
