"""
The daemon in the master that makes the nodes of leases (``salt-run elastic.backfill``).

A lease that runs and whose node is not there gets one, on the lease's host. Nodes that are suspended are none of its
business: their hosts restore them.
"""

import logging
import time

from saltmarsh.backfilling import Backfill
from saltmarsh.controller import Controller
from saltmarsh.errors import SaltmarshError

log = logging.getLogger(__name__)

_RETRY = 10


def start(interval=2):
    """
    Run for as long as the master runs.

    interval
        Seconds between looks at the leases.

    CLI Example:

    .. code-block:: yaml

        engines:
          - backfill:
              interval: 2
    """
    while True:
        try:
            backfill = Backfill(Controller.open(__opts__))
            while True:
                backfill.look()
                time.sleep(interval)
        except SaltmarshError as err:
            # Slurm may be away; pillar or the ledger may not be usable: an administrator has to act then.
            log.error("engine backfill waits: %s", err)
        time.sleep(_RETRY)
