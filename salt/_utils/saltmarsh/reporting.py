"""What there is, in words and numbers for an administrator."""

import time
from collections import Counter
from datetime import datetime

from saltmarsh import breaker, reconciling
from saltmarsh.comparing import explain
from saltmarsh.errors import SaltmarshError, SlurmError, Unreachable
from saltmarsh.model import State
from saltmarsh.slurm import ids_by_node

UNKNOWN = "unknown"
LOST = "lost"
TAKEN = "still taken: its cloud counts a suspended machine like one that runs"


def status(controller, names=None):
    """
    Every node that is not free (or each of ``names``), with what the ledger and Slurm say of it.

    :param Controller controller: what to ask
    :param names: only these, free ones too
    :returns: by name: pool, state, since, host, address, reason, slurm (its state there), jobs (ids); of one that is
        suspended memory: its state file, the file's size in bytes and its age in seconds, or that it is lost, and
        capacity where its provider can't use its room for another; trouble: why a node that is ready can't be used, and
        what else differs, if anything
    :rtype: dict
    :raises InvalidInput: a name that is in no pool
    """
    nodes = {node.name: node for node in controller.ledger.nodes(names)}
    wanted = list(nodes if names is None else names)
    running = {operation.id: operation for operation in controller.ledger.operations()}
    rows = {name: _row(nodes[name], running) if name in nodes else _free_row(controller.site, name) for name in wanted}
    ready = {name for name in wanted if name in nodes and nodes[name].state is State.READY}
    in_slurm, trouble = _in_slurm(controller, wanted, ready)
    memory = _memory(controller, [node for node in nodes.values() if node.state is State.SUSPENDED])
    for each in reconciling.last(controller).told:
        words = trouble.setdefault(each.finding.subject, [])
        words[:] = [
            *(word for word in words if word != each.finding.why),
            f"{each.finding.why} (since {_when(each.since)})",
        ]
    return {
        name: rows[name]
        | in_slurm[name]
        | memory.get(name, {})
        | ({"trouble": trouble[name]} if name in trouble else {})
        for name in wanted
    }


def _row(node, running):
    operation = running.get(node.operation)
    return {
        "pool": node.pool,
        "state": str(node.state),
        "since": _when(node.since),
        "host": node.host,
        "address": node.address,
        "reason": node.reason or (f"{operation.verb} {operation.id} is under way" if operation else ""),
    }


def _free_row(site, name):
    pool = site.pool_of(name)
    return {
        "pool": pool.name,
        "state": str(State.FREE),
        "since": None,
        "host": None,
        "address": pool.address_of(name),
        "reason": "",
    }


def _in_slurm(controller, names, ready):
    """What Slurm says of each node, and why it can't use ready ones; that it can't be asked is an answer, too."""
    if not names:
        return {}, {}
    try:
        known = controller.slurm.nodes(names)
        jobs = ids_by_node(controller.slurm.jobs(names))
    except (SlurmError, Unreachable) as err:
        return {name: {"slurm": f"{UNKNOWN}: {err}", "jobs": UNKNOWN} for name in names}, {}
    rows = {
        name: {"slurm": known[name].state if name in known else "not in Slurm's configuration", "jobs": jobs[name]}
        for name in names
    }
    return rows, {name: [why] for name in ready & known.keys() if (why := explain(known[name]))}


def differences(seen, grace):
    """
    What :func:`saltmarsh.reconciling.reconcile` has found.

    :param seen: what it returned
    :param float grace: as it was given
    :returns: by node, machine or host, everything that differs: why, since when, what mends it, and when
    :rtype: dict[str, list[dict]]
    """
    report = {}
    for each, due in seen:
        row = {"why": each.finding.why, "since": _when(each.since)}
        if each.finding.repair:
            row |= {"repair": str(each.finding.repair), "when": "now" if due else f"at {_when(each.since + grace)}"}
        report.setdefault(each.finding.subject, []).append(row)
    return report


def _memory(controller, nodes):
    """Where the memory of suspended nodes is; that it can't be seen is an answer, too."""
    together = {}
    for node in nodes:
        try:
            profile = controller.profile_of(node.name)
        except SaltmarshError:  # told below
            profile = None
        together.setdefault((node.pool, profile), []).append(node.name)
    found = {}
    for names in together.values():
        try:
            machines = controller.vmstates_of(names[0])
            saved = machines.state_files(names)
        except SaltmarshError as err:
            found |= {name: {"memory": f"{UNKNOWN}: {err}"} for name in names}
            continue
        for name in names:
            state = next((each for each in saved if each.name == name), None)
            found[name] = {"memory": LOST if state is None else state.trouble or _file(state)}
            if not machines.gives_back:
                found[name]["capacity"] = TAKEN
    return found


def _file(state):
    return {"file": state.path, "size": state.size, "age": round(time.time() - state.written)}


def pools(controller):
    """
    Every pool: what it is, how many of its nodes are in which state, and why it does not grow if it does not.

    :rtype: dict
    """
    report, stops = {}, breaker.stops(controller)
    for pool in controller.site.pools.values():
        nodes = controller.ledger.nodes(pool=pool.name)
        room = pool.room([node.state for node in nodes])
        counts = Counter(str(node.state) for node in nodes)
        report[pool.name] = {
            "nodes": str(pool.nodeset),
            "profile": pool.profile,
            **({"fallback": list(pool.fallback)} if pool.fallback else {}),
            "image": pool.image,
            "cpus": pool.cpus,
            "memory": pool.memory,
            "partition": pool.partition,
            "free": len(pool.nodes) - len(nodes),
            "room": room,
            "size": len(pool.nodes),
            **dict(sorted(counts.items())),
            **({"stopped": stops[pool.name].why} if pool.name in stops else {}),
        }
    return report


def history(controller, name):
    """
    What happened to a node, oldest first.

    :param str name: the node
    :rtype: list[dict]
    :raises InvalidInput: a name that is in no pool, and never was
    """
    rows = controller.ledger.history(name)
    if not rows:
        controller.site.pool_of(name)
    return [
        {
            "at": _when(row.at),
            "from": str(row.before),
            "to": str(row.after),
            "host": row.host,
            "reason": row.reason,
            "operation": row.operation,
        }
        for row in rows
    ]


def _when(seconds):
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
