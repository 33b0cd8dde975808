"""Pools in pillar: what is read, and what each mistake is told."""

import re

import pytest
import yaml
from ClusterShell.NodeSet import NodeSet
from hypothesis import given, settings
from hypothesis import strategies as st

from saltmarsh.errors import InvalidInput, PillarError
from saltmarsh.networks import Connection, Network, Tunnel
from saltmarsh.pools import Limits, Pool, Site, parse_count_or_nodes, parse_nodes


def test_the_first_node_has_the_first_address(site):
    pool = site.pools["virtual"]
    assert pool.nodes[:2] == ("vn001", "vn002")
    assert [pool.address_of(node) for node in ("vn001", "vn016")] == ["10.77.0.101", "10.77.0.116"]


def test_nodes_stay_in_the_order_of_pillar(pillar):
    pillar["elastic"]["pools"]["osg"]["nodes"] = "z[3,1-2],a1"
    pool = Site.from_pillar(pillar).pools["osg"]
    assert pool.nodes == ("z3", "z1", "z2", "a1")
    assert pool.address_of("a1") == "10.77.0.60"


def test_a_pool_knows_its_name_its_nodes_and_what_slurm_needs(site):
    pool = site.pools["virtual"]
    assert (pool.name, str(pool.nodeset)) == ("virtual", "vn[001-016]")
    assert (pool.cpus, pool.memory, pool.partition, pool.weight) == (1, 256, "virtual", 10)
    assert pool.features == ("vm", "osg")
    assert (pool.limits.max_nodes, pool.limits.boot_timeout) == (12, 300)


def test_what_a_pool_may_leave_out(site):
    pool = site.pools["osg"]
    assert (pool.features, pool.weight, pool.limits.max_nodes, pool.limits.boot_timeout) == ((), 1, None, 600)


def test_what_a_network_may_leave_out(pillar):
    del pillar["elastic"]["network"]["gateway"], pillar["elastic"]["network"]["domain"]
    network = Site.from_pillar(pillar).network
    assert (network.gateway, network.domain) == (None, None)


def test_hosts_know_their_names(site):
    assert [(host.name, host.address) for host in site.hosts.values()] == [("hv1", "10.77.0.11"), ("hv2", "10.77.0.12")]


def test_a_site_cannot_be_changed(site):
    with pytest.raises(ValueError, match="frozen"):
        site.pools["virtual"].memory = 512


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("10.77.0.101-116", "10.77.0.101", "10.77.0.116"),
        ("10.77.0.101-10.77.0.116", "10.77.0.101", "10.77.0.116"),
        ("10.77.0.[101-116]", "10.77.0.101", "10.77.0.116"),
        (["10.77.0.116", "10.77.0.101-114", "10.77.0.115"], "10.77.0.116", "10.77.0.115"),
    ],
)
def test_addresses_can_be_written_as(text, first, last, pillar):
    pillar["elastic"]["pools"]["virtual"]["addresses"] = text
    addresses = Site.from_pillar(pillar).pools["virtual"].addresses
    assert (addresses[0], addresses[-1], len(addresses)) == (first, last, 16)


def test_an_address_range_may_cross_an_octet(pillar):
    pillar["elastic"]["network"]["prefix"] = 16
    pillar["elastic"]["pools"]["virtual"]["addresses"] = "10.77.0.250-10.77.1.9"
    pillar["elastic"]["network"]["gateway"] = "10.77.9.9"
    assert Site.from_pillar(pillar).pools["virtual"].address_of("vn016") == "10.77.1.9"


def test_a_node_that_is_reached_directly_has_the_address_by_which_it_is_reached(site):
    assert site.pool("osg").own_address_of("osg4") == site.pool("osg").address_of("osg4") == "10.77.0.60"


def test_a_node_with_a_floating_address_has_another_one_itself_and_both_go_by_the_order_of_nodes(pillar):
    pillar["elastic"]["pools"]["osg"] |= {
        "addresses": "203.0.113.11-14",
        "network": {"kind": "floating", "addresses": ["192.168.5.2", "192.168.5.31-33"]},
    }
    pool = Site.from_pillar(pillar).pool("osg")
    assert (pool.address_of("osg2"), pool.own_address_of("osg2")) == ("203.0.113.12", "192.168.5.31")


TUNNEL = {"address": "10.78.0.1", "prefix": 24, "endpoint": "203.0.113.5"}


def test_nodes_in_the_tunnel_have_addresses_there_and_others_themselves(pillar):
    pillar["elastic"]["tunnel"] = TUNNEL
    own = {"kind": "tunnel", "addresses": "192.168.5.11-14"}
    pillar["elastic"]["pools"]["osg"] |= {"addresses": "10.78.0.51-54", "network": own}
    site = Site.from_pillar(pillar)
    assert (str(site.tunnel.subnet), site.tunnel.port) == ("10.78.0.0/24", 51820)
    assert site.pool("osg").own_address_of("osg4") == "192.168.5.14"


@pytest.mark.parametrize(
    ("changes", "addresses", "said"),
    [
        ({}, "10.79.0.51-54", "elastic:pools:osg:addresses: 10.79.0.[51-54] lies outside the tunnel 10.78.0.0/24"),
        ({}, "10.78.0.1-4", "elastic:pools:osg:addresses: 10.78.0.1 belongs to the controller"),
        (
            {"address": "10.77.9.1", "prefix": 16},
            "10.77.9.2-5",
            "tunnel: 10.77.0.0/16 and the network 10.77.0.0/24 have",
        ),
        (
            {"endpoint": "10.77.0.1"},
            "10.78.0.51-54",
            "tunnel:endpoint: expected an address outside 10.77.0.0/24 and 10.",
        ),
        (
            {"endpoint": "10.78.0.1"},
            "10.78.0.51-54",
            "tunnel:endpoint: expected an address outside 10.77.0.0/24 and 10.",
        ),
        ({"port": 0}, "10.78.0.51-54", "elastic:tunnel:port: expected a UDP port, 1 to 65535, got 0"),
    ],
)
def test_a_tunnel_that_can_not_be_is_refused(pillar, changes, addresses, said):
    pillar["elastic"]["tunnel"] = TUNNEL | changes
    own = {"kind": "tunnel", "addresses": "192.168.5.11-14"}
    pillar["elastic"]["pools"]["osg"] |= {"addresses": addresses, "network": own}
    with pytest.raises(PillarError) as raised:
        Site.from_pillar(pillar)
    assert said in str(raised.value)


MISTAKES = [
    # where, what stands there, what is said of it
    ("cluster", None, "elastic:cluster: expected a name for the cluster, got None"),
    ("controller:address", "ctl", "elastic:controller:address: expected an IPv4 address, got 'ctl'"),
    ("network:prefix", 33, "elastic:network:prefix: expected the length of the network's prefix, 8 to 30, got 33"),
    ("network:nameservers", [], "elastic:network:nameservers: expected a list of one or more IPv4 addresses, got []"),
    ("network:nameservers", ["::1"], "elastic:network:nameservers:0: expected a list of one or more IPv4 addresses"),
    ("network:domain", "Lab_", "elastic:network:domain: expected a DNS domain in lower case, got 'Lab_'"),
    ("network:gateway", "10.78.0.1", "elastic:network:gateway: 10.78.0.1 lies outside the network 10.77.0.0/24"),
    ("hosts", ["hv1"], "elastic:hosts: expected hypervisors by name, got ['hv1']"),
    ("hosts:HV1", {"address": "10.77.0.13"}, "elastic:hosts:HV1: expected a host name, got 'HV1'"),
    ("hosts:hv3", {"address": "10.77.0.11"}, "elastic:hosts:hv3:address: 10.77.0.11 belongs to host hv1"),
    ("hosts:hv1:name", "hv9", "elastic:hosts:hv1:name: expected hv1 (the key is the name), got hv9"),
    ("pools", {}, "elastic:pools: expected one or more pools by name, got {}"),
    ("pools:osg", None, "elastic:pools:osg: expected a mapping with the keys name, nodes, "),
    ("pools:osg:colour", "red", "elastic:pools:osg:colour: not a known key, expected one of name, nodes, addresses, "),
    ("pools:osg:limits:max", 3, "elastic:pools:osg:limits:max: not a known key, expected one of max_nodes, boot_"),
    ("pools:osg:nodes", "osg[1-5]", "osg:addresses: expected as many addresses as nodes, got 4 addresses for 5 nodes"),
    ("pools:osg:nodes", "osg[1-3,2]", "elastic:pools:osg:nodes: osg2 stands in it more than once"),
    ("pools:osg:nodes", "osg[1-2],vn[003-004]", "elastic:pools:virtual:nodes: vn[003-004] belongs to pool osg"),
    ("pools:osg:nodes", "osg[1-2],ctl,hv1", "elastic:pools:osg:nodes: ctl belongs to the controller"),
    ("pools:osg:nodes", "osg[1-2],ctl,hv1", "elastic:pools:osg:nodes: hv1 belongs to host hv1"),
    ("pools:osg:nodes", "OSG[1-4]", "elastic:pools:osg:nodes: expected a hostlist such as vn[001-016], got 'OSG[1-4]'"),
    ("pools:osg:nodes", 4, "elastic:pools:osg:nodes: expected a hostlist such as vn[001-016], got 4"),
    ("pools:osg:addresses", "10.77.0.0/24", "elastic:pools:osg:addresses: expected a range of IPv4 addresses such as "),
    ("pools:osg:addresses", "10.77.0.9-5", "'10.77.0.9-5' does not go from a lower to a higher address"),
    ("pools:osg:addresses", "10.0.0.1-10.255.0.1", "stands for more than 100000 addresses"),
    ("pools:osg:addresses", "10.77.0.254-257", "elastic:pools:osg:addresses: expected a range of IPv4 addresses"),
    ("pools:osg:addresses", [51, 52, 53, 54], "elastic:pools:osg:addresses: expected a range of IPv4 addresses"),
    ("pools:osg:addresses", [], "elastic:pools:osg:addresses: expected a range of IPv4 addresses"),
    ("pools:osg:addresses", ["10.77.0.51-53", "10.77.0.52"], "10.77.0.52 stands in it more than once"),
    ("pools:osg:addresses", "10.77.0.114-117", "virtual:addresses: 10.77.0.[114-116] belongs to pool osg"),
    ("pools:osg:addresses", "10.77.0.1-4", "elastic:pools:osg:addresses: 10.77.0.1 belongs to the controller"),
    ("pools:osg:addresses", "10.77.0.1-4", "elastic:pools:osg:addresses: 10.77.0.2 belongs to a nameserver"),
    ("pools:osg:addresses", "10.77.0.9-12", "elastic:pools:osg:addresses: 10.77.0.12 belongs to host hv2"),
    ("pools:osg:addresses", "10.77.0.251-254", "elastic:pools:osg:addresses: 10.77.0.254 belongs to the gateway"),
    ("pools:osg:addresses", "10.78.0.1-4", "osg:addresses: 10.78.0.[1-4] lies outside the network 10.77.0.0/24"),
    ("pools:osg:addresses", "10.77.0.[0,3-5]", "osg:addresses: 10.77.0.0 lies outside the network 10.77.0.0/24"),
    ("pools:osg:addresses", "10.77.0.252-255", "osg:addresses: 10.77.0.255 lies outside the network 10.77.0.0/24"),
    (
        "pools:osg:network",
        {"kind": "nat"},
        "elastic:pools:osg:network:kind: expected direct, floating or tunnel, got 'nat'",
    ),
    ("pools:osg:network", {"addresses": "192.168.5.2-5"}, "osg:network:addresses: expected nothing, a node that is "),
    (
        "pools:osg:network",
        {"kind": "floating"},
        "network:addresses: expected as many different addresses as nodes, got",
    ),
    (
        "pools:osg:network",
        {"kind": "floating", "addresses": ["192.168.5.2-4", "192.168.5.2"]},
        "osg:network:addresses: expected as many different addresses as nodes, got 3 for 4 nodes",
    ),
    (
        "pools:osg:network",
        {"kind": "tunnel", "addresses": "192.168.5.2-5"},
        "elastic:tunnel: expected a mapping with the keys address, prefix, endpoint, port, got nothing",
    ),
    ("pools:osg:image", "../node.qcow2", "osg:image: expected the name of an image, without a directory, got '../node"),
    ("pools:osg:profile", "", "elastic:pools:osg:profile: expected the name of a salt-cloud profile, got ''"),
    ("pools:osg:partition", "Default", "elastic:pools:osg:partition: expected the name of a Slurm partition, got"),
    ("pools:osg:cpus", 0, "elastic:pools:osg:cpus: expected a whole number of CPUs above 0, got 0"),
    ("pools:osg:memory", "256", "elastic:pools:osg:memory: expected a whole number of MiB above 0, got '256'"),
    ("pools:osg:memory", 256.0, "elastic:pools:osg:memory: expected a whole number of MiB above 0, got 256.0"),
    ("pools:osg:memory", True, "elastic:pools:osg:memory: expected a whole number of MiB above 0, got True"),
    ("pools:osg:features", "vm", "elastic:pools:osg:features: expected a list of Slurm features, got 'vm'"),
    ("pools:osg:features", ["a&b"], "elastic:pools:osg:features:0: expected a list of Slurm features, got 'a&b'"),
    ("pools:osg:weight", -1, "elastic:pools:osg:weight: expected a whole number above 0, Slurm's weight of a node"),
    ("pools:osg:limits", {"max_nodes": 0}, "osg:limits:max_nodes: expected a whole number of nodes above 0, got 0"),
    (
        "pools:osg:limits",
        {"boot_timeout": "9m"},
        "limits:boot_timeout: expected a whole number of seconds above 0, got",
    ),
]


@pytest.mark.parametrize(("where", "value", "said"), MISTAKES)
def test_a_mistake_names_its_key_and_what_was_expected(where, value, said, pillar):
    *path, last = where.split(":")
    entry = pillar["elastic"]
    for step in path:
        entry = entry.setdefault(step, {})
    entry[last] = value
    with pytest.raises(PillarError) as raised:
        Site.from_pillar(pillar)
    assert said in str(raised.value)


@pytest.mark.parametrize("key", ["nodes", "addresses", "profile", "image", "cpus", "memory", "partition"])
def test_a_pool_must_have(key, pillar):
    del pillar["elastic"]["pools"]["osg"][key]
    with pytest.raises(PillarError, match=f"^elastic:pools:osg:{key}: expected .*, got nothing$"):
        Site.from_pillar(pillar)


@pytest.mark.parametrize("pillar", [{}, {"elastic": None}, {"elastic": "yes"}])
def test_a_pillar_without_a_site_is_refused(pillar):
    with pytest.raises(PillarError, match=r"^elastic: expected a mapping with the keys cluster, controller, network, "):
        Site.from_pillar(pillar)


def test_several_mistakes_are_told_at_once_one_per_line(pillar):
    pillar["elastic"]["pools"]["osg"] |= {"cpus": 0, "memory": "2G", "size": 3}
    with pytest.raises(PillarError) as raised:
        Site.from_pillar(pillar)
    assert [line.split(": ")[0] for line in str(raised.value).splitlines()] == [
        "elastic:pools:osg:cpus",
        "elastic:pools:osg:memory",
        "elastic:pools:osg:size",
    ]


def test_a_pool_is_found_by_name(site):
    assert site.pool("osg") is site.pools["osg"]
    with pytest.raises(InvalidInput, match=r"^pool 'gpu' does not exist; pools: osg, virtual$"):
        site.pool("gpu")


def test_the_only_pool_need_not_be_named(site, pillar):
    with pytest.raises(InvalidInput, match=r"^which pool\? name one with pool=; pools: osg, virtual$"):
        site.pool()
    del pillar["elastic"]["pools"]["osg"]
    assert Site.from_pillar(pillar).pool().name == "virtual"


def test_the_pool_of_a_node_is_found(site):
    assert site.pool_of("vn016").name == "virtual"
    with pytest.raises(InvalidInput, match=r"^node 'vn017' belongs to no pool; pools: osg \(osg\[1-4\]\), virtual "):
        site.pool_of("vn017")


def test_a_pool_refuses_the_address_of_a_foreign_node(site):
    with pytest.raises(InvalidInput, match=r"^pool osg has no node 'vn001', its nodes are osg\[1-4\]$"):
        site.pool("osg").address_of("vn001")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("vn001", ["vn001"]),
        ("vn[001-003]", ["vn001", "vn002", "vn003"]),
        ("b2,a[1,3]", ["a1", "a3", "b2"]),
        ("r[1-2]n[9-10]", ["r1n9", "r1n10", "r2n9", "r2n10"]),
        ("vn[1-2]-gpu", ["vn1-gpu", "vn2-gpu"]),
    ],
)
def test_a_hostlist_names(text, names):
    assert sorted(parse_nodes(text)) == sorted(names)


BAD_HOSTLISTS = [
    *("", " ", "vn1 vn2", "vn1\n", "@all", "@*", "vn*", "vn?", "vn[1-4]!vn2", "vn[1-4]&vn2", "vn[0-8/2]", "VN1", "v_1"),
    *("vn[1-2", "vn1]", "vn[]", "vn[[1]]", "vn[a-b]", "vn[-1-2]", "vn[2-1]", "vn[1-016]", "vn[1-2][3-4]", "a,,b", ",a"),
    *("-a", "a-", "1", "1a", "vn.lab", "all", "default", "localhost", "a" * 64, "vn\u0661", "--help", "../vn1"),
    *("vn[1-999999999]", "vn[0-9999999999999999999999]", "vn[1-1000]x[1-1000]", ",".join(["vn[1-60000]"] * 2)),
    *(None, 7, ["vn1"]),
]


@pytest.mark.parametrize("text", BAD_HOSTLISTS, ids=repr)
def test_a_hostlist_that_is_none_is_refused_in_one_line(text):
    with pytest.raises(InvalidInput) as raised:
        parse_nodes(text)
    assert "is not a hostlist such as vn[001-004]: " in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 300


ranges = r"\[[0-9]{1,2}(-[0-9]{1,2})?(,[0-9]{1,2}(-[0-9]{1,2})?)?\]"


@settings(deadline=None)  # how long it takes says how busy the machine is
@given(
    st.from_regex(rf"[a-c]{{1,2}}({ranges})?(-x({ranges})?)?(,[a-c]{{1,2}}({ranges})?)?", fullmatch=True)
    | st.text(alphabet="vn019[]-,x", max_size=20)
)
def test_a_hostlist_is_refused_or_means_what_clustershell_says(text):
    try:
        nodes = parse_nodes(text)
    except InvalidInput:
        return
    assert nodes == NodeSet(text)


@pytest.mark.parametrize("value", [4, "4", "004"], ids=repr)
def test_a_count_is_a_number(value):
    assert parse_count_or_nodes(value) == 4


def test_what_is_no_count_is_a_hostlist():
    assert parse_count_or_nodes("vn[001-002]") == NodeSet("vn[001-002]")


NEITHER = [
    *(0, -1, "0", "-1", "+3", "", "1.5", 1.5, 2.0, float("nan"), True, False, None, [], [2], {}),
    *("1e3", "4x", "9" * 99),
]


@pytest.mark.parametrize("value", NEITHER, ids=repr)
def test_what_is_neither_count_nor_hostlist_is_refused_in_one_line(value):
    with pytest.raises(InvalidInput, match=r"^expected a number of nodes above 0 or a hostlist such as .*, got "):
        parse_count_or_nodes(value)


def test_the_lab_has_the_names_that_scripts_elsewhere_rely_on(checkout):
    site = Site.from_pillar(yaml.safe_load((checkout / "pillar" / "elastic.sls").read_text()))
    assert (site.controller.name, site.controller.address, str(site.subnet)) == ("ctl", "10.77.0.1", "10.77.0.0/24")
    assert {host.name: host.address for host in site.hosts.values()} == {"hv1": "10.77.0.11", "hv2": "10.77.0.12"}
    pool = site.pool("virtual")
    assert (str(pool.nodeset), pool.address_of("vn016")) == ("vn[001-016]", "10.77.0.116")
    assert (pool.cpus, pool.memory, pool.partition) == (1, 256, "virtual")


def test_the_example_of_the_manual_is_right_and_its_mistakes_are_told_as_it_says(checkout):
    manual = (checkout / "docs" / "howto" / "pools.md").read_text()
    pillar = yaml.safe_load(re.search(r"```yaml\n(.*?)```", manual, re.DOTALL)[1])
    Site.from_pillar(pillar)
    osg = pillar["elastic"]["pools"]["osg"]
    told = []
    for spoilt in ({"addresses": osg["addresses"][:2]}, {"memory": "8G"}):
        with pytest.raises(PillarError) as raised:
            Site.from_pillar({"elastic": pillar["elastic"] | {"pools": {"osg": osg | spoilt}}})
        told.append(str(raised.value))
    assert all(line in manual for line in told)


def test_the_manual_tells_every_key(checkout):
    manual = (checkout / "docs" / "howto" / "pools.md").read_text()
    keys = [*Site.model_fields, *(f"network:{key}" for key in Network.model_fields)]
    keys += [*Pool.model_fields, *(f"limits:{key}" for key in Limits.model_fields)]
    keys += [f"network:{key}" for key in Connection.model_fields] + [f"tunnel:{key}" for key in Tunnel.model_fields]
    assert [key for key in keys if f"| `{key}` |" not in manual] == ["network", "tunnel", "name", "network", "limits"]
