"""Slurm's configuration as it follows from pillar."""

import copy
import re

import pytest
import yaml
from ClusterShell.NodeSet import NodeSet

from saltmarsh import slurmconf
from saltmarsh.errors import PillarError


@pytest.fixture
def pillar(pillar):
    """The site's pillar with a Slurm configuration, which a test may spoil."""
    slurm = yaml.safe_load("""
        cluster_name: lab
        controller: {name: ctl, address: 10.77.0.1}
        config:
          SlurmdTimeout: 30
          SchedulerParameters: [bf_interval=5, sched_interval=5]
        cgroup: {CgroupPlugin: disabled}
        nodes:
          hv1: {NodeAddr: 10.77.0.11, CPUs: 2, RealMemory: 6000, Feature: bare}
          hv2: {NodeAddr: 10.77.0.12, CPUs: 2, RealMemory: 6000, Feature: bare}
        partitions:
          metal: {Nodes: 'hv[1-2]', PriorityTier: 100}
          virtual: {Default: YES, MaxTime: INFINITE}
          osg: {Default: NO}
    """)
    return {**pillar, "slurm": slurm}


def lines(files, keyword):
    """The lines of slurm.conf that begin with a keyword, as dictionaries."""
    found = re.findall(rf"^{keyword}=.*$", files["slurm.conf"], re.MULTILINE)
    return [dict(item.split("=", 1) for item in line.split(" ")) for line in found]


def test_values_of_pillar_and_of_the_project_are_in_one_file(pillar):
    text = slurmconf.render(pillar)["slurm.conf"]
    for line in (
        "ClusterName=lab",
        "SlurmctldHost=ctl(10.77.0.1)",
        "SlurmdTimeout=30",
        "SchedulerParameters=bf_interval=5,sched_interval=5",
        "ReturnToService=2",
        "SlurmctldParameters=enable_configless,power_save_interval=1",
        "SuspendExcParts=osg,virtual",
        "NodeName=hv1 NodeAddr=10.77.0.11 CPUs=2 RealMemory=6000 Feature=bare",
        "PartitionName=metal PriorityTier=100 Nodes=hv[1-2]",
    ):
        assert f"\n{line}\n" in text


def test_cgroup_settings_are_a_file_of_their_own(pillar):
    assert slurmconf.render(pillar)["cgroup.conf"].splitlines()[1:] == ["CgroupPlugin=disabled"]


def test_a_pool_is_one_line_of_cloud_nodes(pillar):
    assert lines(slurmconf.render(pillar), "NodeName")[-1] == {
        "NodeName": "vn[001-016]",
        "NodeAddr": "10.77.0.[101-116]",
        "CPUs": "1",
        "RealMemory": "185",
        "Feature": "virtual,node,vm,osg",
        "Weight": "10",
        "State": "CLOUD",
    }


def test_a_pools_nodes_are_in_its_partition_which_slurm_does_not_suspend_by_itself(pillar):
    pillar["slurm"]["partitions"]["virtual"]["Nodes"] = "hv1"
    by_name = {line["PartitionName"]: line for line in lines(slurmconf.render(pillar), "PartitionName")}
    assert by_name["virtual"]["Nodes"] == "hv1,vn[001-016]"
    assert by_name["osg"]["Nodes"] == "osg[1-4]"
    assert by_name["osg"]["Default"] == "NO"
    assert "SuspendTime" in by_name["osg"]
    assert "SuspendTime" not in by_name["metal"]


def test_ten_thousand_nodes_keep_their_own_addresses(pillar):
    addresses = [f"10.{block}.{number}.1-250" for block in (78, 79) for number in range(20)]
    pillar["elastic"]["network"] = {"prefix": 8, "nameservers": ["10.77.0.2"]}
    pillar["elastic"]["pools"]["virtual"] |= {"nodes": "vn[00001-10000]", "addresses": addresses}
    line = lines(slurmconf.render(pillar), "NodeName")[-1]
    pairs = zip(NodeSet(line["NodeName"]), slurm_order(line["NodeAddr"]), strict=True)
    expected = [f"10.{block}.{number}.{last}" for block in (78, 79) for number in range(20) for last in range(1, 251)]
    assert list(pairs) == [(f"vn{at:05d}", address) for at, address in enumerate(expected, 1)]


def slurm_order(hostlist):
    """The addresses of a list of single addresses and ranges, in order."""
    for item in re.findall(r"[^,\[]+(?:\[[^]]*\])?", hostlist):
        yield from NodeSet(item)


def test_the_same_pillar_gives_the_same_bytes_whatever_the_order_of_its_keys(pillar):
    turned = copy.deepcopy(pillar)
    for key in ("config", "nodes", "partitions"):
        turned["slurm"][key] = dict(reversed(turned["slurm"][key].items()))
    turned["elastic"]["pools"] = dict(reversed(turned["elastic"]["pools"].items()))
    assert slurmconf.render(turned) == slurmconf.render(pillar)


def test_the_digest_tells_any_change_of_any_file(pillar):
    files = slurmconf.render(pillar)
    others = [{**files, name: files[name] + "#"} for name in files]
    others.append({"slurm.conf": files["slurm.conf"]})
    assert len({slurmconf.digest(each) for each in [files, *others]}) == 4
    assert slurmconf.digest(dict(reversed(files.items()))) == slurmconf.digest(files)


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "YES"), (False, "NO"), (0, "0"), (1.5, "1.5"), (["a=1", "b"], "a=1,b"), ("two words", '"two words"')],
)
def test_a_value_is_written_as_slurm_reads_it(pillar, value, text):
    pillar["slurm"]["config"]["SlurmctldParameters"] = "enable_configless"
    pillar["slurm"]["config"]["CommunicationParameters"] = value
    assert f"\nCommunicationParameters={text}\n" in slurmconf.render(pillar)["slurm.conf"]


def test_keywords_don_t_differ_by_case(pillar):
    pillar["slurm"]["config"]["selecttypeparameters"] = "CR_CPU"
    text = slurmconf.render(pillar)["slurm.conf"]
    assert re.findall(r"(?i)^selecttypeparameters=.*$", text, re.MULTILINE) == ["selecttypeparameters=CR_CPU"]


def test_without_pools_there_is_bare_metal_alone(pillar):
    del pillar["elastic"], pillar["slurm"]["partitions"]["virtual"], pillar["slurm"]["partitions"]["osg"]
    files = slurmconf.render(pillar)
    assert "CLOUD" not in files["slurm.conf"]
    assert slurmconf.pool_addresses(pillar) == {}
    assert slurmconf.node_names(pillar) == {"hv1", "hv2", "standin"}


def test_nodes_with_a_copy_are_the_bare_metal(pillar):
    pillar["slurm"]["nodes"] = {"cn[001-100]": {"CPUs": 4}}
    pillar["slurm"]["partitions"]["metal"]["Nodes"] = "ALL"
    assert str(slurmconf.local_copies(pillar)) == "cn[001-100]"


@pytest.mark.parametrize(("keys", "name"), [({}, "standin"), ({"standin": "answers"}, "answers")])
def test_the_stand_in_is_a_node_on_the_controller(pillar, keys, name):
    pillar["slurm"] |= keys
    assert lines(slurmconf.render(pillar), "NodeName")[0] == {
        "NodeName": name,
        "NodeHostname": "ctl",
        "NodeAddr": "10.77.0.1",
        "CPUs": "1",
        "RealMemory": "1",
    }
    assert slurmconf.standin(pillar) == name
    assert name in slurmconf.node_names(pillar)
    assert name not in slurmconf.local_copies(pillar)
    assert name not in slurmconf.pool_addresses(pillar)


def test_the_stand_in_runs_no_program_of_the_nodes_it_answers_for(pillar):
    programs = ["Epilog", "healthcheckprogram", "PlugStackConfig", "Prolog", "RebootProgram"]
    pillar["slurm"]["config"] |= {**dict.fromkeys(programs, "/usr/sbin/reboot"), "PrologFlags": "Alloc"}
    files = slurmconf.render(pillar)
    [(name, text)] = slurmconf.for_standin(files).items()
    assert name == "standin.conf"
    assert files["slurm.conf"].count("/usr/sbin/reboot") == len(programs)
    assert "/usr/sbin/reboot" not in text
    rest = [line for line in files["slurm.conf"].splitlines() if "/usr/sbin/reboot" not in line]
    assert text.splitlines() == [*rest, "PlugStackConfig=/dev/null"]


def test_without_a_slurm_conf_there_is_nothing_for_the_stand_in():
    assert slurmconf.for_standin({}) == {}


@pytest.mark.parametrize("word", ["ALL", "all"])
def test_a_partition_of_all_nodes_is_without_the_stand_in(pillar, word):
    pillar["slurm"]["partitions"] |= {"every": {"Nodes": word}, "virtual": {"Nodes": word, "Default": True}}
    pillar["slurm"]["nodes"]["cn[001-100]"] = {"CPUs": 4}
    nodes = {line["PartitionName"]: line["Nodes"] for line in lines(slurmconf.render(pillar), "PartitionName")}
    assert nodes["every"] == nodes["virtual"] == "cn[001-100],hv1,hv2,osg[1-4],vn[001-016]"
    assert set(NodeSet(nodes["every"])) == slurmconf.node_names(pillar) - {"standin"}


def test_idle_means_no_job_starts_anywhere(pillar):
    pillar["slurm"]["partitions"]["metal"]["State"] = "UP"
    idle = lines(slurmconf.render_idle(pillar), "PartitionName")
    assert [line["State"] for line in idle] == ["DOWN", "DOWN", "DOWN"]
    rest = re.sub(r" State=(DOWN|UP)", "", slurmconf.render(pillar)["slurm.conf"])
    assert re.sub(r" State=DOWN", "", slurmconf.render_idle(pillar)["slurm.conf"]) == rest


def test_a_trial_has_nothing_of_the_real_slurmctld(pillar):
    pillar["slurm"]["config"] |= {
        "AccountingStorageType": "accounting_storage/slurmdbd",
        "SlurmctldPrimaryOnProg": "/usr/local/sbin/take-address",
    }
    del pillar["slurm"]["nodes"]["hv2"]["NodeAddr"]
    text = slurmconf.render_trial(pillar, "/tmp/trial")["slurm.conf"]
    for line in ("StateSaveLocation=/tmp/trial/state", "SlurmctldLogFile=/tmp/trial/slurmctld.log"):
        assert f"\n{line}\n" in text
    for word in ("slurmdbd", "take-address", "/run/slurmctld"):
        assert word not in text
    assert "NodeName=hv2 CPUs=2 RealMemory=6000 Feature=bare NodeAddr=10.77.0.1" in sorted_words(text)


def sorted_words(text):
    """The text with NodeAddr= last in each line."""
    return re.sub(r"(?m)^(NodeName=hv2) (NodeAddr=\S+) (.*)$", r"\1 \3 \2", text)


@pytest.mark.parametrize(("given", "reported"), [(256, 213), (512, 464), (1024, 967), (4096, 3922)])
def test_slurm_counts_on_less_memory_than_a_vm_of_that_size_reports(given, reported):
    assert 0.8 * reported < slurmconf.real_memory(given) <= reported


def at(pillar, path):
    """The mapping at a path of pillar, and the last key."""
    *steps, last = path.split(":")
    for step in steps:
        pillar = pillar[step]
    return pillar, last


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("slurm", None, "slurm: "),
        ("slurm:cluster_name", "two words", "slurm:cluster_name: "),
        ("slurm:controller:address", "ctl", "slurm:controller:address: "),
        ("slurm:nonsense", 1, "slurm:nonsense: "),
        ("slurm:config:Bad Keyword", 1, "slurm:config:Bad Keyword: expected a Slurm keyword"),
        ("slurm:config:Epilog", None, "slurm:config:Epilog: expected text, a number or a list"),
        ("slurm:config:Epilog", {"a": 1}, "slurm:config:Epilog: expected text, a number or a list"),
        ("slurm:config:Epilog", "", "slurm:config:Epilog: expected text, a number or a list"),
        ("slurm:config:Epilog", "a\nNodeName=x", "slurm:config:Epilog: expected text without line breaks"),
        ("slurm:config:Epilog", "a # b", "slurm:config:Epilog: expected text without line breaks"),
        ("slurm:config:Epilog", 'a" NodeName="x', "slurm:config:Epilog: expected text without line breaks"),
        ("slurm:config:NodeName", "x", "slurm:config:NodeName: expected nothing here"),
        ("slurm:config:resumeprogram", "/x", "slurm:config:resumeprogram: expected nothing here"),
        ("slurm:config:ReturnToService", 1, "slurm:config:ReturnToService: expected 2"),
        ("slurm:config:SlurmctldParameters", "x", "slurm:config:SlurmctldParameters: expected enable_configless"),
        ("slurm:config:SlurmdSpoolDir", "/var/spool/%n", "slurm:config:SlurmdSpoolDir: expected a path without %n"),
        ("slurm:nodes:hv[1-", {}, "slurm:nodes:hv[1-: expected a node or a hostlist"),
        ("slurm:nodes:hv[1-3]", {}, "slurm:nodes: node hv[1-2] stands more than once"),
        ("slurm:nodes:vn001", {}, "slurm:nodes: node vn001 stands more than once"),
        ("slurm:nodes:hv1:NodeAddr", "10.77.0.12", "slurm:nodes: address 10.77.0.12 stands more than once"),
        ("slurm:nodes:hv1:NodeAddr", "10.77.0.101", "slurm:nodes: address 10.77.0.101 stands more than once"),
        (
            "slurm:nodes:hv1:NodeAddr",
            "10.77.0.[5-6]",
            "slurm:nodes:hv1:NodeAddr: expected 1 different addresses, got 2",
        ),
        ("slurm:standin", "vn001", "slurm:standin: vn001 is a node in slurm:nodes or elastic:pools"),
        ("slurm:standin", "hv1", "slurm:standin: hv1 is a node in slurm:nodes or elastic:pools"),
        ("slurm:standin", "default", "slurm:standin: 'default' is no host name"),
        ("slurm:nodes:ctl", {}, "slurm:controller: ctl at 10.77.0.1 is a node in slurm:nodes or elastic:pools"),
        ("slurm:nodes:hv1:NodeAddr", "10.77.0.1", "slurm:controller: ctl at 10.77.0.1 is a node in slurm:nodes or"),
        ("slurm:partitions:empty", {}, "slurm:partitions:empty:Nodes: expected nodes, no pool is in this partition"),
        ("slurm:partitions:metal:Nodes", "hv[1-3]", "slurm:partitions:metal:Nodes: hv3 is neither in slurm:nodes nor"),
        ("slurm:partitions:metal:Nodes", "hv[1-", "slurm:partitions:metal:Nodes: expected a hostlist"),
        ("slurm:partitions:metal:Default", True, "slurm:partitions: expected one partition with Default: YES, got "),
        ("elastic:pools:virtual:partition", "vms", "slurm:partitions:vms: expected this partition, pool virtual is in"),
        ("elastic:pools:virtual:memory", 64, "elastic:pools:virtual:memory: expected at least 128 MiB"),
        ("elastic:pools:virtual:cpus", 0, "elastic:pools:virtual:cpus: "),
    ],
)
def test_a_mistake_is_named_with_its_key(pillar, path, value, message):
    mapping, last = at(pillar, path)
    mapping[last] = value
    with pytest.raises(PillarError) as caught:
        slurmconf.render(pillar)
    assert any(line.startswith(message) for line in str(caught.value).splitlines()), caught.value


def test_the_ports_that_firewalls_open_for_srun_are_the_ones_it_uses(pillar):
    assert "SrunPortRange" not in slurmconf.render(pillar)["slurm.conf"]
    pillar["firewall"] = {"srun_ports": "60001-63000", "accept": {}}
    assert "\nSrunPortRange=60001-63000\n" in slurmconf.render(pillar)["slurm.conf"]
    pillar["slurm"]["config"]["srunportrange"] = "50000-51000"
    with pytest.raises(PillarError, match=r"^slurm:config:SrunPortRange: expected nothing here, it is firewall:srun_"):
        slurmconf.render(pillar)


@pytest.mark.parametrize("ports", [None, 60001, "", "63000", "63000-60001", "80-90", "60001-65536", "a-b", "1-2-3"])
def test_srun_needs_a_range_of_ports(pillar, ports):
    pillar["firewall"] = {"srun_ports": ports}
    with pytest.raises(PillarError, match=r"^firewall:srun_ports: expected a range of ports above 1023, such as 6000"):
        slurmconf.render(pillar)


def test_all_mistakes_are_told_at_once(pillar):
    pillar["slurm"]["config"] |= {"ReturnToService": 0, "SlurmdSpoolDir": "/x/%n"}
    pillar["slurm"]["partitions"]["metal"]["Nodes"] = "nosuch"
    with pytest.raises(PillarError) as caught:
        slurmconf.render(pillar)
    assert len(str(caught.value).splitlines()) == 3


def test_the_manuals_example_is_acceptable_together_with_that_of_pools(checkout):
    pillar = {}
    for page in ("pools", "slurm"):
        text = (checkout / "docs/howto" / f"{page}.md").read_text()
        pillar |= yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert "NodeName=hv[1-2] NodeAddr=10.77.0.[11-12]" in slurmconf.render(pillar)["slurm.conf"]


def test_the_manual_names_every_keyword_that_the_project_sets(checkout):
    text = (checkout / "docs/howto/slurm.md").read_text()
    named = set(re.findall(r"`([A-Za-z]+)`", text))
    assert {*slurmconf.DEFAULTS, *slurmconf.FIXED} <= named


def test_the_labs_pillar_is_acceptable(checkout):
    files = ("elastic.sls", "slurm.sls")
    pillar = {
        key: value for file in files for key, value in yaml.safe_load((checkout / "pillar" / file).read_text()).items()
    }
    assert str(slurmconf.local_copies(pillar)) == "hv[1-2]"


def test_slurm_may_start_nodes_of_a_pool_that_is_on_demand_and_of_no_other(pillar):
    pillar["elastic"]["pools"]["osg"] |= {"on_demand": True, "limits": {"idle": 90, "boot_timeout": 240}}
    files = slurmconf.render(pillar)
    partitions = {line["PartitionName"]: line for line in lines(files, "PartitionName")}
    assert (partitions["osg"]["SuspendTime"], partitions["osg"]["ResumeTimeout"]) == ("90", "300")
    assert "ResumeTimeout" not in partitions["virtual"]
    assert "\nSuspendExcParts=virtual\n" in files["slurm.conf"]
    assert slurmconf.parked(pillar) == tuple(f"vn{number:03d}" for number in range(1, 17))
    pillar["elastic"]["pools"]["virtual"]["on_demand"] = True
    assert "SuspendExcParts" not in slurmconf.render(pillar)["slurm.conf"]
    assert slurmconf.parked(pillar) == ()


def test_pools_of_one_partition_agree_on_what_slurm_may_do(pillar):
    pools = pillar["elastic"]["pools"]
    pools["virtual"]["partition"] = "osg"
    pillar["slurm"]["partitions"]["virtual"]["Nodes"] = "hv1"
    slurmconf.render(pillar)
    pools["osg"]["on_demand"] = True
    with pytest.raises(PillarError, match=r"^slurm:partitions:osg: expected the same on_demand and limits:idle of all"):
        slurmconf.render(pillar)
    pools["virtual"]["on_demand"] = True
    slurmconf.render(pillar)
    pools["virtual"]["limits"] = {"idle": 7}
    with pytest.raises(PillarError, match=r"limits:idle of all its pools \(osg, virtual\)"):
        slurmconf.render(pillar)
