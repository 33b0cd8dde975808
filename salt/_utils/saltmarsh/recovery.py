"""Operations whose process died: whoever comes next takes them over, and finishes or undoes them."""

import logging

from saltmarsh import catching_up, checkpointing, growing, mending, migrating, resuming, shrinking, standin, suspending
from saltmarsh.errors import Conflict, SaltmarshError

log = logging.getLogger(__name__)

_RECOVER = {
    "grow": growing.recover,
    "shrink": shrinking.recover,
    "suspend": suspending.recover,
    "resume": resuming.recover,
    "migrate": migrating.recover,
    "checkpoint": checkpointing.recover,
    "restore": checkpointing.recover,
    "discard": checkpointing.recover,
    "remind": standin.recover,
    mending.VERB: mending.recover,
    "catch up": catching_up.recover,
}


def recover_abandoned(controller, begin=None):
    """
    Take over the operations of dead processes. What can't be ended now is logged, and left for the next time.

    :param Controller controller: what to act through
    :param begin: called with a function and its arguments to go on in the background with nodes for which a job waits;
        without it, all that is not ready is removed
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
            if begin and operation.verb == "grow" and (names := growing.waited_for(controller, adopted)):
                begin(_carry_on, controller, adopted, names)
            else:
                _RECOVER[operation.verb](controller, adopted)
            count += 1
        except SaltmarshError as err:
            log.error("%s can't be ended yet: %s", what, err)
            controller.ledger.abandon(adopted)
    _catch_up(controller)
    return count


def _carry_on(controller, operation, names):
    try:
        growing.carry_on(controller, operation, names)
    except SaltmarshError as err:
        log.error("grow %s of %s, taken over: %s", operation.id, operation.nodes, err)


def _catch_up(controller):
    """Slurm may be away; what a verb needs of it, the verb asks itself."""
    try:
        catching_up.catch_up(controller)
    except SaltmarshError as err:
        log.warning("not known whether hosts have suspended or restored nodes: %s", err)
