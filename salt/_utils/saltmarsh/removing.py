"""Take nodes away until nothing of them is left: machine, disk, minion key, DNS name, Slurm state; then free the name."""

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
    by_reason = defaultdict(set)
    for node in ledger.nodes(reasons):
        if node.state is not State.DESTROYING:
            by_reason[reasons[node.name]].add(node.name)
    for reason, names in by_reason.items():
        ledger.move(operation, names, State.DESTROYING, reason=reason)
    stuck = {name: why for name, why in controller.cloud.destroy(pool.profile, sorted(reasons)).items() if why}
    gone = reasons.keys() - stuck.keys()
    try:
        controller.slurm.release({name: pool.address_of(name) for name in gone}, RELEASE_SECONDS)
    except SaltmarshError as err:
        stuck |= dict.fromkeys(gone, str(err))
        gone = set()
    stuck |= {name: "its minion key is still accepted" for name in gone & controller.cloud.accepted_keys()}
    gone -= stuck.keys()
    controller.dns.remove(gone)
    if gone:
        ledger.move(operation, gone, State.FREE)
        say(f"{', '.join(sorted(gone))}: gone")
    for name, why in stuck.items():
        ledger.move(operation, {name}, State.FAILED, reason=f"not proven gone: {why}")
        say(f"{name}: not proven gone: {why}")
    return stuck
