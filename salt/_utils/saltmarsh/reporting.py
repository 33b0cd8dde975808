"""What there is, in words and numbers for an administrator."""

from collections import Counter
from datetime import datetime

from saltmarsh.errors import Unreachable
from saltmarsh.model import State

UNKNOWN = "unknown"


def status(controller, names=None):
    """
    Every node that is not free (or each of ``names``), with what the ledger and Slurm say of it.

    :param Controller controller: what to ask
    :param names: only these, free ones too
    :returns: by name: pool, state, since, host, address, reason, slurm (its state there), jobs (ids)
    :rtype: dict
    """
    site = controller.site
    pool_of = {name: site.pool_of(name) for name in names} if names else {}
    nodes = {node.name: node for node in controller.ledger.nodes(names)}
    wanted = list(names) if names else list(nodes)
    try:
        in_slurm = controller.slurm.nodes(wanted) if wanted else {}
        jobs = controller.slurm.jobs(wanted) if wanted else ()
    except Unreachable as err:
        in_slurm, jobs = None, None
        trouble = str(err)
    report = {}
    for name in wanted:
        node = nodes.get(name)
        if in_slurm is None:
            slurm_state, job_ids = f"{UNKNOWN}: {trouble}", UNKNOWN
        else:
            slurm_state = in_slurm[name].state if name in in_slurm else "not in Slurm's configuration"
            job_ids = [job.id for job in jobs if name in job.nodes]
        pool = site.pools[node.pool] if node and node.pool in site.pools else pool_of.get(name)
        report[name] = {
            "pool": node.pool if node else pool.name,
            "state": str(node.state if node else State.FREE),
            "since": _when(node.since) if node else None,
            "host": node.host if node else None,
            "address": node.address if node else pool.address_of(name),
            "reason": node.reason if node else "",
            "slurm": slurm_state,
            "jobs": job_ids,
        }
    return report


def pools(controller):
    """
    Every pool: what it is, and how many of its nodes are in which state.

    :rtype: dict
    """
    report = {}
    for pool in controller.site.pools.values():
        nodes = controller.ledger.nodes(pool=pool.name)
        counts = Counter(str(node.state) for node in nodes)
        report[pool.name] = {
            "nodes": str(pool.nodeset),
            "profile": pool.profile,
            "image": pool.image,
            "cpus": pool.cpus,
            "memory": pool.memory,
            "partition": pool.partition,
            "free": len(pool.nodes) - len(nodes),
            "size": len(pool.nodes),
            **dict(sorted(counts.items())),
        }
    return report


def history(controller, name):
    """
    What happened to a node, oldest first.

    :param str name: the node
    :rtype: list[dict]
    """
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
        for row in controller.ledger.history(name)
    ]


def _when(seconds):
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
