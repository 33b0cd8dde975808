"""Operations whose process died: whoever comes next takes them over, and finishes or undoes them."""

import logging

from saltmarsh import growing, shrinking
from saltmarsh.errors import Conflict

log = logging.getLogger(__name__)

_RECOVER = {"grow": growing.recover, "shrink": shrinking.recover}


def recover_abandoned(controller):
    """
    Take over the operations of dead processes.

    :param Controller controller: what to act through
    :returns: how many
    :rtype: int
    """
    count = 0
    for operation in controller.ledger.abandoned():
        try:
            adopted = controller.ledger.adopt(operation)
        except Conflict:
            continue  # somebody else was faster
        gone = operation.owner.pid
        log.warning("%s %s of process %s, which is gone: taking over", operation.verb, operation.id, gone)
        _RECOVER[operation.verb](controller, adopted)
        count += 1
    return count
