"""Remove nodes until nothing of them is left: machine, disk, minion key, DNS name, Slurm state; then free the names."""

import logging
from collections import defaultdict

from saltmarsh.errors import SlurmError, Unreachable
from saltmarsh.hostlist import fold_words
from saltmarsh.model import State, nodeset
from saltmarsh.slurm import NOT_GROWN

log = logging.getLogger(__name__)

# Slurm takes SuspendTimeout to give a node back.
RELEASE_SECONDS = 120


def remove(controller, pool, operation, reasons, say=log.info):
    """
    Remove nodes and free the names of those that are proven gone; the others become failed, with the reason.

    Of a node that is only claimed nothing has been made: its name is given back, and a machine of this name is not
    touched.

    :param Controller controller: what to act through
    :param Pool pool: their pool
    :param Operation operation: the operation that holds them
    :param dict reasons: by name, why it is removed
    :param say: called with lines of progress
    :returns: by name, why it is not proven gone; empty when all are
    :rtype: dict[str, str]
    :raises SaltmarshError: nothing could be done about it now
    """
    nodes = {node.name: node for node in controller.ledger.nodes(reasons)}
    claimed = {name for name, node in nodes.items() if node.state is State.CLAIMED}
    if claimed:
        _unclaim(controller, pool, operation, {name: nodes[name].address for name in claimed}, say)
    made = {name: node for name, node in nodes.items() if name not in claimed}
    return _destroy(controller, pool, operation, made, reasons, say) if made else {}


def _unclaim(controller, pool, operation, addresses, say):
    slurm = controller.slurm
    # Slurm has a node that is in use although the ledger had it free: it is not ours to end its jobs.
    expected = [name for name, node in slurm.nodes(addresses).items() if node.absent or node.wanted]
    slurm.release({name: addresses[name] for name in expected}, RELEASE_SECONDS)
    _free(controller, pool, operation, addresses.keys(), "given back", say)


def _destroy(controller, pool, operation, nodes, reasons, say):
    ledger = controller.ledger
    by_reason = defaultdict(set)
    for name, node in nodes.items():
        if node.state is not State.DESTROYING:
            by_reason[reasons[name]].add(name)
    for reason, names in by_reason.items():
        ledger.move(operation, names, State.DESTROYING, reason=reason)
    hosts = {name: node.host for name, node in nodes.items()}
    stuck = {name: why for name, why in controller.cloud.destroy(pool.profiles, hosts).items() if why}
    stuck |= _release(controller.slurm, {name: node.address for name, node in nodes.items() if name not in stuck})
    keys = controller.cloud.accepted_keys()
    stuck |= {name: "its minion key is still accepted" for name in nodes if name not in stuck and name in keys}
    if gone := nodes.keys() - stuck.keys():
        _free(controller, pool, operation, gone, "gone", say)
    stuck = {name: f"not proven gone: {why}" for name, why in stuck.items()}
    for name, why in stuck.items():
        ledger.move(operation, {name}, State.FAILED, reason=why)
    for line in fold_words(stuck):
        say(line)
    return stuck


def _release(slurm, addresses):
    """Give nodes back to Slurm; returns, by name, why one is not back."""
    if not addresses:
        return {}
    try:
        slurm.release(addresses, RELEASE_SECONDS)
        return {}
    except Unreachable as err:
        return dict.fromkeys(addresses, str(err))
    except SlurmError as err:
        try:
            known = slurm.nodes(addresses)
        except (SlurmError, Unreachable):
            return dict.fromkeys(addresses, str(err))
        return {name: str(err) for name, node in known.items() if not (node.absent and node.reason == NOT_GROWN)}


def _free(controller, pool, operation, names, words, say):
    controller.tunnel.remove(names)
    controller.dns.remove(names)
    if pool.on_demand:
        controller.slurm.offer(names)
    controller.ledger.move(operation, names, State.FREE)
    say(f"{nodeset(names)}: {words}")
