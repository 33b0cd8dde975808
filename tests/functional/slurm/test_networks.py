"""
Nodes that the controller does not reach directly (docs/howto/networks.md), behind real routers and real firewalls.

A pool of kind ``floating`` is in a network of its own, to which the controller has no way. A router translates. Salt's
master and minions, slurmctld, slurmds and munge are real; so are the firewalls, whose rules the minions write by their
states.
"""

import json
import os
import re
import shutil
import signal
import subprocess

import pytest
import yaml
from conftest import wait_until

from saltmarsh import slurm

FLOATING = {"fn001": ("10.77.0.201", "192.168.5.11"), "fn002": ("10.77.0.202", "192.168.5.12")}
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


ADDRESS = {"ctl": "10.77.0.1"} | {name: address for name, (address, _) in FLOATING.items()}
KINDS = "import socket, sys; kinds = {'tcp': socket.SOCK_STREAM, 'udp': socket.SOCK_DGRAM}\n"
# What listens already is a service itself.
ANSWER = f"""{KINDS}
import contextlib, selectors
there, accepted = selectors.DefaultSelector(), []
for kind, port in (each.split("/") for each in sys.argv[1:]):
    with contextlib.suppress(OSError):
        new = socket.socket(socket.AF_INET, kinds[kind])
        new.bind(("", int(port)))
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
ASK = f"""{KINDS}
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
    """One more pool, of nodes with floating addresses, and firewalls."""
    pillar["elastic"]["pools"]["floating"] = {
        "nodes": "fn[001-002]",
        "addresses": "10.77.0.201-202",
        "network": {"kind": "floating", "addresses": "192.168.5.11-12"},
        "profile": "floating",
        "image": "node.qcow2",
        "cpus": 1,
        "memory": 256,
        "partition": "floating",
    }
    pillar["slurm"]["partitions"]["floating"] = {"MaxTime": "INFINITE"}
    pillar["firewall"] = {"srun_ports": SRUN_PORTS}
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

    def start_salt(self, pillar, *minions):
        """A master on the controller, and minions that answer."""
        top = {"base": {"*": ["all"], "ctl": ["controller"]}}
        self._write("pillar/top.sls", top)
        self._write("pillar/all.sls", pillar)
        self._write("pillar/controller.sls", {"roles": ["controller"]})
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
        for name in minions:
            self._write(
                f"{name}/minion",
                self._own(name) | {"id": name, "master": "10.77.0.1", "master_alive_interval": 0},
            )
            # Of what states write, each has its own.
            self.machine.start(
                *self.inside(name), "unshare", "--mount", "sh", "-c",
                "mkdir -p /etc/nftables.d && mount --bind $0/etc /etc/nftables.d && exec $1/salt-minion -c $0",
                f"/{SITE}/{name}", SALT,
            )  # fmt: skip
        wait_until(lambda: self.answering(minions) == set(minions), 60)

    def _write(self, path, content):
        path = self._directory / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    def _own(self, name):
        (self._directory / name / "etc").mkdir(parents=True)
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
        return json.loads(said or "{}")

    def answering(self, minions):
        """Those of these minions that answer now."""
        return set(self.salt(minions, "test.ping", timeout=3))

    def firewall(self, *names):
        """Let minions write their rules as their states say, and load them as the service does."""
        done = self.salt(names, "state.sls_id", "/etc/nftables.d/saltmarsh.nft", "firewall")
        for name in names:
            assert all(state["result"] for state in done[name].values()), done
        unit = (self._directory / "salt/firewall/files/saltmarsh-firewall.service").read_text()
        [start] = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
        for name in names:
            rules = f"/{SITE}/{name}/etc/saltmarsh.nft"
            self.machine.run(*self.inside(name), *start.replace("/etc/nftables.d/saltmarsh.nft", rules).split())

    def reached(self, source, target, *ports):
        """Which of these ports of one machine, such as "tcp/22", another one reaches: something answers on all."""
        listening = subprocess.Popen(
            self.machine.enter(*self.inside(target), "python3", "-c", ANSWER, *ports),
            stdout=subprocess.PIPE, text=True, cwd="/",
        )  # fmt: skip
        try:
            assert listening.stdout.readline() == "listens\n"
            return set(self.machine.run(*self.inside(source), "python3", "-c", ASK, ADDRESS[target], *ports).split())
        finally:
            listening.kill()
            listening.wait()


@pytest.fixture(scope="module")
def site(machine, checkout):
    """The controller and two nodes with floating addresses, each with a minion and its firewall."""
    site = Site(machine, checkout / "salt")
    site.shell(ROUTER)
    for name, (address, own) in FLOATING.items():
        site.shell(BEHIND.format(name=name, address=address, own=own))
    site.start_dns()
    pillar = {key: value for file in ("site", "firewall") for key, value in read(checkout, file).items()}
    site.start_salt(pillar, "ctl", *FLOATING)
    site.firewall("ctl", *FLOATING)
    yield site
    machine.lose(*FLOATING)
    site.shell("nft delete table inet saltmarsh; for name in cloud fn001 fn002; do ip netns del $name; done")
    for pid in machine.processes("salt-master", "salt-minion", "dnsmasq"):
        os.kill(pid, signal.SIGKILL)


def read(checkout, file):
    return yaml.safe_load((checkout / f"pillar/{file}.sls").read_text())


@pytest.fixture
def floating(site, cluster):
    """Nodes with floating addresses that have grown."""
    addresses = {name: address for name, (address, _) in FLOATING.items()}
    slurm.expect(addresses)
    cluster.boot(*FLOATING)
    wait_until(lambda: all(node.registered for node in slurm.nodes(FLOATING).values()), 20)
    yield cluster
    cluster.lose(*FLOATING)


ON_CONTROLLER = {"tcp/4505", "tcp/4506", "tcp/6817", "tcp/6818", "tcp/60001", "tcp/63000", "tcp/2049", "tcp/53",
                 "udp/53", "udp/123"}  # fmt: skip
ON_NODE = {"tcp/6818", "tcp/60001", "tcp/63000"}
NOWHERE = {"tcp/22", "tcp/25", "tcp/111", "tcp/6819", "tcp/8000", "tcp/60000", "tcp/63001", "udp/111", "udp/6817"}
EVERYTHING = ON_CONTROLLER | ON_NODE | NOWHERE


def test_a_node_reaches_on_the_controller_what_it_needs_and_nothing_else(site):
    assert site.reached("fn001", "ctl", *EVERYTHING) == ON_CONTROLLER


def test_the_controller_reaches_slurmd_and_srun_on_a_node_and_what_pillar_allows_it(site):
    assert site.reached("ctl", "fn001", *EVERYTHING) == ON_NODE | {"tcp/22"}


def test_nodes_reach_slurmd_and_srun_on_each_other(site):
    assert site.reached("fn002", "fn001", *EVERYTHING) == ON_NODE


def test_minions_answer_on_connections_from_before_the_firewall(site):
    assert site.answering(["ctl", *FLOATING]) == {"ctl", *FLOATING}


def test_the_controller_has_no_way_to_the_nodes_own_addresses(site):
    with pytest.raises(subprocess.CalledProcessError):
        site.machine.run("ip", "route", "get", "192.168.5.11")


def test_slurm_has_a_node_by_its_floating_address(floating):
    assert {name: node.address for name, node in slurm.nodes(FLOATING).items()} == {
        name: address for name, (address, _) in FLOATING.items()
    }


def test_srun_on_the_controller_speaks_with_its_tasks_on_all_nodes(floating):
    said = floating.run("srun", "-p", "floating", "-N2", "-D", "/", "sh", "-c", "read -r word; echo $(hostname) $word",
                        input="both ways\n", timeout=30)  # fmt: skip
    assert sorted(said.splitlines()) == ["fn001 both ways", "fn002 both ways"]


def test_srun_in_a_job_starts_tasks_on_the_other_node(floating):
    job = floating.submit("-p", "floating", "-N2", script="srun -D / hostname")
    wait_until(lambda: floating.job(job) is None, 30)
    assert sorted((floating.shared / f"count.{job}").read_text().split()) == ["fn001", "fn002"]
