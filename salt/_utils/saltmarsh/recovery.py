"""Operations whose process died: whoever comes next takes them over, and finishes or undoes them."""

import logging

from saltmarsh import catching_up, growing, migrating, resuming, shrinking, standin, suspending
from saltmarsh.errors import Conflict, SaltmarshError

log = logging.getLogger(__name__)

_RECOVER = {
    "grow": growing.recover,
    "shrink": shrinking.recover,
    "suspend": suspending.recover,
    "resume": resuming.recover,
    "migrate": migrating.recover,
    "remind": standin.recover,
    "catch up": catching_up.recover,
}


def recover_abandoned(controller):
    """
    Take over the operations of dead processes. What can't be ended now is logged, and left for the next time.

    :param Controller controller: what to act through
    :returns: how many were ended
    :rtype: int
    """
    count = 0
    for operation in controller.ledger.abandoned():
        what = f"{operation.verb} {operation.id} of {operation.nodes}"
        try:
            adopted = controller.ledger.adopt(operation)
        except Conflict:
            continue  # somebody else was faster
        log.warning("%s: its process is gone, taking over", what)
        try:
            _RECOVER[operation.verb](controller, adopted)
            count += 1
        except SaltmarshError as err:
            log.error("%s can't be ended yet: %s", what, err)
            controller.ledger.abandon(adopted)
    _catch_up(controller)
    return count


def _catch_up(controller):
    """Slurm may be away; what a verb needs of it, the verb asks itself."""
    try:
        catching_up.catch_up(controller)
    except SaltmarshError as err:
        log.warning("not known whether hosts have suspended or restored nodes: %s", err)
