"""
Slurm's configuration, made from pillar alone: the same pillar gives the same bytes on every machine.

Nothing here talks to Slurm or writes a file. Facts are from slurm.conf(5) of 24.11 and measured with 24.11.5, see
docs/decisions/0004-cloud-node-states.md.
"""

import hashlib
import re
from collections import Counter
from pathlib import PurePath
from typing import Annotated, Any

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from saltmarsh.errors import PillarError
from saltmarsh.hostlist import fold
from saltmarsh.pillarwords import Label, Partition, Word
from saltmarsh.pools import Host, Site

FILES = ("slurm.conf", "cgroup.conf")
STANDIN = "standin.conf"  # beside them on the controller alone
POWER_PROGRAM = "/usr/local/libexec/saltmarsh/slurm-power"

# What pillar may change.
DEFAULTS = {
    "AuthType": "auth/munge",
    "CredType": "cred/munge",
    "SlurmUser": "slurm",
    "StateSaveLocation": "/var/lib/slurm/slurmctld",
    "SlurmdSpoolDir": "/var/lib/slurm/slurmd",
    "SlurmctldPidFile": "/run/slurmctld/slurmctld.pid",
    "SlurmdPidFile": "/run/slurm/slurmd.pid",
    "SlurmctldLogFile": "/var/log/slurm/slurmctld.log",
    "SlurmdLogFile": "/var/log/slurm/slurmd.log",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_Core_Memory",
    # How soon a node that shrinks leaves: at most this many seconds to notice, then SuspendTimeout.
    "SlurmctldParameters": "enable_configless,power_save_interval=1",
    "SuspendTimeout": "5",
    "ResumeTimeout": "60",
    "ReturnToService": "2",
}

# What the life of a pool's node rests on. Without the two programs every reconfigure makes nodes that are not there
# IDLE; without a SuspendTime on their partition Slurm refuses POWER_DOWN; the partition is excluded unless its pools
# are on demand, so that only shrink takes a node away; a rate would give back one node per second. Idleness takes no
# node away that is not simply idle: one that is suspended is drained.
FIXED = {
    "SuspendProgram": f"{POWER_PROGRAM}-down",
    "ResumeProgram": f"{POWER_PROGRAM}-up",
    "ResumeFailProgram": f"{POWER_PROGRAM}-failed",
    "SuspendExcStates": "DOWN,DRAIN,INVALID_REG,NOT_RESPONDING",
    "SuspendTime": "INFINITE",
    "SuspendRate": "0",
    "ResumeRate": "0",
}
_POOL_PARTITION = {"SuspendTime": "3600"}
_AFTER_BOOT = 60  # seconds: a grow ends, and says why, before Slurm gives the node up by itself
_OWN_KEYWORDS = {"ClusterName", "SlurmctldHost", "NodeName", "PartitionName", "DownNodes", "SuspendExcParts", *FIXED}

# What slurmd would run on the controller in the place of a node that is suspended.
_PROGRAMS = ("Epilog", "HealthCheckProgram", "PlugStackConfig", "Prolog", "RebootProgram")

_HEADER = "# Written by Salt from pillar (slurm.push_config). Changes made here are lost.\n"


def _keyword(value):
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", value):
        raise ValueError("expected a Slurm keyword")
    return value


def _value(value):
    """A value of a keyword as text; YAML has read YES and NO as booleans."""
    if isinstance(value, bool):
        return "YES" if value else "NO"
    if isinstance(value, list):
        return ",".join(map(_value, value))
    if not isinstance(value, (str, int, float)) or value == "":
        raise ValueError("expected text, a number or a list")
    text = str(value)
    # '#' begins a comment, '"' and '\' quote, a line break ends the line (slurm.conf(5)).
    if re.search(r'[#"\\\x00-\x1f\x7f]', text):
        raise ValueError("expected text without line breaks, quotes, backslashes and '#'")
    return f'"{text}"' if " " in text else text


def _hostlist(value):
    try:
        NodeSet(value, resolver=RESOLVER_NOGROUP)
    except NodeSetException as err:
        raise ValueError(f"expected a node or a hostlist: {err}") from err
    return value


_Keyword = Annotated[str, AfterValidator(_keyword)]
_Keywords = dict[_Keyword, Annotated[Any, BeforeValidator(_value)]]


def _port_range(value):
    low, _, high = value.partition("-") if isinstance(value, str) else ("", "", "")
    if not (low.isdecimal() and high.isdecimal() and 1024 <= int(low) < int(high) <= 65535):
        raise ValueError("expected a range of ports above 1023, such as 60001-63000")
    return value


class _Firewall(BaseModel):
    """What of the key ``firewall`` of pillar concerns Slurm."""

    model_config = ConfigDict(frozen=True)

    srun_ports: Annotated[str, BeforeValidator(_port_range)]


class _Settings(BaseModel):
    """The key ``slurm`` of pillar."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cluster_name: Word
    controller: Host
    standin: Label = "standin"
    config: _Keywords = {}
    cgroup: _Keywords = {}
    nodes: dict[Annotated[str, AfterValidator(_hostlist)], _Keywords] = {}
    partitions: dict[Partition, _Keywords]


def render(pillar):
    """
    The files of Slurm's configuration directory.

    :param dict pillar: the keys ``slurm``, if there are pools ``elastic``, and if there are firewalls ``firewall`` (see
        docs/howto/slurm.md)
    :returns: the text of each file by name
    :rtype: dict[str, str]
    :raises PillarError: one line per mistake, each with its pillar key and what was expected there
    """
    settings, pools = _read(pillar)
    return _files(settings, pools)


def render_idle(pillar):
    """
    The same configuration with every partition DOWN: jobs that run go on, no job starts.

    :param dict pillar: as for :func:`render`
    :rtype: dict[str, str]
    """
    settings, pools = _read(pillar)
    partitions = {name: _override(keywords, {"State": "DOWN"}) for name, keywords in settings.partitions.items()}
    return _files(settings.model_copy(update={"partitions": partitions}), pools)


def render_trial(pillar, directory):
    """
    The same configuration for a slurmctld that only proves that it can be read, beside the real one.

    Its state, log and process id are in a directory of its own. There is no accounting database, and every node has a
    literal address: in a network namespace of its own it reaches neither slurmdbd nor a name server.

    :param dict pillar: as for :func:`render`
    :param str directory: an empty directory that SlurmUser may write to
    :rtype: dict[str, str]
    """
    settings, pools = _read(pillar)
    own = {
        "StateSaveLocation": f"{directory}/state",
        "SlurmctldPidFile": f"{directory}/slurmctld.pid",
        "SlurmctldLogFile": f"{directory}/slurmctld.log",
    }
    dropped = {"accountingstoragetype", "accountingstorageenforce", "slurmctldprimaryonprog", "slurmctldprimaryoffprog"}
    config = {key: value for key, value in settings.config.items() if key.lower() not in dropped}
    address = {"NodeAddr": settings.controller.address}
    nodes = {name: _override(address, keywords) for name, keywords in settings.nodes.items()}
    return _files(settings.model_copy(update={"config": _override(config, own), "nodes": nodes}), pools)


def for_standin(files):
    """
    The file that the stand-in reads instead of slurm.conf: the same without the programs that slurmd runs.

    It would run them on the controller, in the place of a node that is suspended. And with an Epilog it tells slurmctld
    in its own name that a job has ended, which leaves the job COMPLETING (measured).

    :param dict files: the text of each file by name
    :returns: the text by name; nothing if there is no slurm.conf
    :rtype: dict[str, str]
    """
    if "slurm.conf" not in files:
        return {}
    without = re.sub(rf"(?im)^({'|'.join(_PROGRAMS)})=.*\n", "", files["slurm.conf"])
    return {STANDIN: f"{without}PlugStackConfig=/dev/null\n"}  # its default is a file, too


def digest(files):
    """
    What tells one configuration from another: the same on every machine that has the same files.

    :param dict files: the text of each file by name
    :returns: 64 hexadecimal digits
    :rtype: str
    """
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name} {hashlib.sha256(files[name].encode()).hexdigest()}\n".encode())
    return total.hexdigest()


def controller(pillar):
    """
    Where slurmctld runs.

    :rtype: Host
    :raises PillarError: as :func:`render`
    """
    return _read(pillar)[0].controller


def standin(pillar):
    """
    The node that answers for suspended ones: its slurmd runs on the controller, and it is in no partition.

    :rtype: str
    :raises PillarError: as :func:`render`
    """
    return _read(pillar)[0].standin


def local_copies(pillar):
    """
    The nodes that keep a copy of the configuration of their own: the ones in ``slurm:nodes``. VMs are configless.

    :rtype: ClusterShell.NodeSet.NodeSet
    :raises PillarError: as :func:`render`
    """
    return NodeSet.fromlist(list(_read(pillar)[0].nodes), resolver=RESOLVER_NOGROUP)


def slurm_user(pillar):
    """
    The user that slurmctld runs as.

    :rtype: str
    :raises PillarError: as :func:`render`
    """
    return _get(_override(DEFAULTS, _read(pillar)[0].config), "SlurmUser")


def node_names(pillar):
    """
    Every node of the configuration, the stand-in included.

    :rtype: set[str]
    :raises PillarError: as :func:`render`
    """
    return {standin(pillar), *local_copies(pillar), *pool_addresses(pillar)}


def pool_addresses(pillar):
    """
    The address of every node of every pool by name.

    :rtype: dict[str, str]
    :raises PillarError: as :func:`render`
    """
    return {
        name: address for pool in _read(pillar)[1] for name, address in zip(pool.nodes, pool.addresses, strict=True)
    }


def parked(pillar):
    """
    The nodes of pools that Slurm may not start by itself.

    :rtype: tuple[str, ...]
    :raises PillarError: as :func:`render`
    """
    return tuple(name for pool in _read(pillar)[1] if not pool.on_demand for name in pool.nodes)


def real_memory(memory):
    """
    What Slurm may count on in a VM of this size. Below what the VM's slurmd reports, or Slurm would drain the node.

    The kernel keeps for itself 40 MB, 1.6 % for its page structures, and 64 MB from about 3 GB on (measured with
    Debian 13's cloud kernel: 256 → 213, 512 → 464, 1024 → 967, 4096 → 3922 MiB of MemTotal, which is what slurmd
    reports).

    :param int memory: MiB given to the VM
    :returns: MiB
    :rtype: int
    """
    return memory - 64 - memory * 3 // 100


def _read(pillar):
    """The settings and the pools, checked."""
    settings = _valid(_Settings, "slurm", pillar)
    if "firewall" in pillar:
        if _get(settings.config, "SrunPortRange"):
            raise PillarError("slurm:config:SrunPortRange: expected nothing here, it is firewall:srun_ports")
        ports = {"SrunPortRange": _valid(_Firewall, "firewall", pillar).srun_ports}
        settings = settings.model_copy(update={"config": settings.config | ports})
    pools = sorted(Site.from_pillar(pillar).pools.values(), key=lambda pool: pool.name) if "elastic" in pillar else []
    if mistakes := list(_mistakes(settings, pools)):
        raise PillarError("\n".join(mistakes))
    return settings, pools


def _valid(model, key, pillar):
    try:
        return model.model_validate(pillar.get(key))
    except ValidationError as err:
        raise PillarError("\n".join(dict.fromkeys(_line(key, error) for error in err.errors()))) from err


def _files(settings, pools):
    return {"slurm.conf": _slurm_conf(settings, pools), "cgroup.conf": _HEADER + _lines(settings.cgroup)}


def _line(key, error):
    key = ":".join(map(str, (key, *(part for part in error["loc"] if part != "[key]"))))
    return f"{key}: {error['msg'].removeprefix('Value error, ')}"


def _slurm_conf(settings, pools):
    config = {
        "ClusterName": settings.cluster_name,
        "SlurmctldHost": f"{settings.controller.name}({settings.controller.address})",
        **_override(DEFAULTS, settings.config),
        **FIXED,
    }
    if excluded := {pool.partition for pool in pools if not pool.on_demand}:
        config["SuspendExcParts"] = ",".join(sorted(excluded))
    lines = [_HEADER + _lines(config), _record("NodeName", settings.standin, _standin_keywords(settings.controller))]
    for name in sorted(settings.nodes):
        lines.append(_record("NodeName", name, settings.nodes[name]))
    for pool in pools:
        lines.append(_record("NodeName", fold(pool.nodes), _pool_keywords(pool)))
    for name in sorted(settings.partitions):
        keywords = settings.partitions[name]
        nodes = _partition_nodes(name, _get(keywords, "Nodes"), settings, pools)
        extra = _partition_keywords([pool for pool in pools if pool.partition == name])
        lines.append(_record("PartitionName", name, _override(extra, _override(keywords, {"Nodes": nodes}))))
    return "".join(lines)


def _partition_keywords(own):
    if not any(pool.on_demand for pool in own):
        return _POOL_PARTITION if own else {}
    booted = max(pool.limits.boot_timeout for pool in own)
    return {"SuspendTime": own[0].limits.idle, "ResumeTimeout": booted + _AFTER_BOOT}


def _partition_nodes(name, given, settings, pools):
    """What stands after Nodes=. ALL would be the stand-in, too."""
    if _is_all(given):
        given, own = ",".join(sorted(settings.nodes)), pools
    else:
        own = [pool for pool in pools if pool.partition == name]
    return ",".join([*filter(None, [given]), *(fold(pool.nodes) for pool in own)])


def _is_all(nodes):
    return nodes is not None and nodes.upper() == "ALL"


def _standin_keywords(controller):
    return {"NodeHostname": controller.name, "NodeAddr": controller.address, "CPUs": 1, "RealMemory": 1}


def _pool_keywords(pool):
    return {
        "NodeAddr": fold(pool.addresses),
        "CPUs": pool.cpus,
        "RealMemory": real_memory(pool.memory),
        "Feature": ",".join(dict.fromkeys((pool.name, PurePath(pool.image).stem, *pool.features))),
        "Weight": pool.weight,
        "State": "CLOUD",
    }


def _lines(keywords):
    return "".join(f"{key}={keywords[key]}\n" for key in sorted(keywords, key=str.lower))


def _record(kind, name, keywords):
    return " ".join([f"{kind}={name}", *(f"{key}={value}" for key, value in keywords.items())]) + "\n"


def _override(keywords, others):
    """Keywords with others' values on top; Slurm's keywords don't differ by case."""
    taken = {key.lower() for key in others}
    return {key: value for key, value in keywords.items() if key.lower() not in taken} | others


def _get(keywords, keyword):
    return next((value for key, value in keywords.items() if key.lower() == keyword.lower()), None)


def _mistakes(settings, pools):
    """What is wrong between values that are each right by themselves, one line per mistake."""
    yield from _config_mistakes(settings.config)
    yield from _node_mistakes(settings, pools)
    yield from _partition_mistakes(settings, pools)


def _config_mistakes(config):
    own = {keyword.lower() for keyword in _OWN_KEYWORDS}
    for key in config:
        if key.lower() in own:
            yield f"slurm:config:{key}: expected nothing here, its value follows from the rest of pillar or is fixed"
    merged = _override(DEFAULTS, config)
    if _get(merged, "ReturnToService") != "2":
        yield "slurm:config:ReturnToService: expected 2, or a node that has grown stays DOWN"
    if "enable_configless" not in _get(merged, "SlurmctldParameters").split(","):
        yield "slurm:config:SlurmctldParameters: expected enable_configless among them, VMs fetch the configuration"
    if "%n" in _get(merged, "SlurmdSpoolDir"):
        yield "slurm:config:SlurmdSpoolDir: expected a path without %n, a configless slurmd can't resolve it"


def _node_mistakes(settings, pools):
    names, addresses = Counter(), Counter()
    for key, keywords in settings.nodes.items():
        own = NodeSet(key, resolver=RESOLVER_NOGROUP)
        names.update(own)
        if (value := _get(keywords, "NodeAddr")) is None:
            continue
        try:
            theirs = NodeSet(value, resolver=RESOLVER_NOGROUP)
        except NodeSetException as err:
            yield f"slurm:nodes:{key}:NodeAddr: expected an address or a list of them: {err}"
            continue
        addresses.update(theirs)
        if len(theirs) != len(own):
            yield f"slurm:nodes:{key}:NodeAddr: expected {len(own)} different addresses, got {len(theirs)}"
    for pool in pools:
        names.update(pool.nodes)
        addresses.update(pool.addresses)
        if real_memory(pool.memory) < 1:
            yield f"elastic:pools:{pool.name}:memory: expected at least 128 MiB, the kernel keeps part of it"
    controller = settings.controller
    if settings.standin in names:
        yield f"slurm:standin: {settings.standin} is a node in slurm:nodes or elastic:pools, expected a name of its own"
    if controller.name in names or controller.address in addresses:
        yield (
            f"slurm:controller: {controller.name} at {controller.address} is a node in slurm:nodes or elastic:pools, "
            f"but its slurmd is the stand-in {settings.standin}"
        )
    for what, counted in (("node", names), ("address", addresses)):
        if repeated := [item for item, count in counted.items() if count > 1]:
            yield f"slurm:nodes: {what} {fold(repeated)} stands more than once in slurm:nodes and elastic:pools"


def _partition_mistakes(settings, pools):
    known = NodeSet.fromlist(list(settings.nodes), resolver=RESOLVER_NOGROUP)
    for pool in pools:
        known.update(pool.nodeset)
        if pool.partition not in settings.partitions:
            yield f"slurm:partitions:{pool.partition}: expected this partition, pool {pool.name} is in it"
    for name in dict.fromkeys(pool.partition for pool in pools):
        own = [pool for pool in pools if pool.partition == name]
        if len({(pool.on_demand, pool.on_demand and pool.limits.idle) for pool in own}) > 1:
            yield (
                f"slurm:partitions:{name}: expected the same on_demand and limits:idle of all its pools "
                f"({', '.join(pool.name for pool in own)}), Slurm has them for a partition"
            )
    for name, keywords in settings.partitions.items():
        key = f"slurm:partitions:{name}"
        nodes = _get(keywords, "Nodes")
        if nodes is None:
            if name not in {pool.partition for pool in pools}:
                yield f"{key}:Nodes: expected nodes, no pool is in this partition"
            continue
        if _is_all(nodes):
            continue
        try:
            unknown = NodeSet(nodes, resolver=RESOLVER_NOGROUP) - known
        except NodeSetException as err:
            yield f"{key}:Nodes: expected a hostlist: {err}"
            continue
        if unknown:
            yield f"{key}:Nodes: {unknown} is neither in slurm:nodes nor in a pool"
    default = [name for name, keywords in settings.partitions.items() if _get(keywords, "Default") == "YES"]
    if len(default) > 1:
        yield f"slurm:partitions: expected one partition with Default: YES, got {', '.join(default)}"
