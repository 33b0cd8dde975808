"""Take nodes away until nothing is left of machine, disk, minion key, DNS name and Slurm state; then free the name."""

import logging
from collections import defaultdict

from saltmarsh.errors import SaltmarshError
from saltmarsh.model import State

log = logging.getLogger(__name__)

# Slurm takes SuspendTimeout to give a node back.
RELEASE_SECONDS = 120


def remove(controller, pool, operation, reasons, say=log.info):
    """
    Remove nodes and free the names of those that are proven gone; the others become failed, with the reason.

    :param Controller controller: what to act through
    :param Pool pool: their pool
    :param Operation operation: the operation that holds them
    :param dict reasons: by name, why it is removed
    :param say: called with lines of progress
    :returns: by name, why it is not proven gone; empty when all are
    :rtype: dict[str, str]
    """
    ledger = controller.ledger
    nodes = ledger.nodes(reasons)
    by_reason = defaultdict(set)
    for node in nodes:
        if node.state is not State.DESTROYING:
            by_reason[reasons[node.name]].add(node.name)
    for reason, names in by_reason.items():
        ledger.move(operation, names, State.DESTROYING, reason=reason)
    destroyed = controller.cloud.destroy(pool.profile, {node.name: node.host for node in nodes})
    stuck = {name: why for name, why in destroyed.items() if why}
    gone = reasons.keys() - stuck.keys()
    try:
        controller.slurm.release({node.name: node.address for node in nodes if node.name in gone}, RELEASE_SECONDS)
    except SaltmarshError as err:
        stuck |= dict.fromkeys(gone, str(err))
        gone = set()
    stuck |= dict.fromkeys(gone & controller.cloud.accepted_keys(), "its minion key is still accepted")
    gone -= stuck.keys()
    controller.dns.remove(gone)
    if gone:
        ledger.move(operation, gone, State.FREE)
        say(f"{', '.join(sorted(gone))}: gone")
    for name, why in stuck.items():
        ledger.move(operation, {name}, State.FAILED, reason=f"not proven gone: {why}")
        say(f"{name}: not proven gone: {why}")
    return stuck
