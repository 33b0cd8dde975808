"""
The daemon in the master that keeps the leases of pools and makes their nodes (``salt-run elastic.backfill``).

A lease that is lost, or cancelled by somebody, has another one submitted in its place. A lease that runs and whose node
is not there gets one, on the lease's host. Nodes that are suspended are none of its business: their hosts restore them.
"""

import logging
import time

from saltmarsh.backfilling import Backfill
from saltmarsh.controller import Controller, pillar_has_changed
from saltmarsh.errors import SaltmarshError

log = logging.getLogger(__name__)

_RETRY = 10
_PILLAR = 15  # seconds between looks at pillar


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
            _serve(interval)
        except SaltmarshError as err:
            # Slurm may be away; pillar or the ledger may not be usable: an administrator has to act then.
            log.error("engine backfill waits: %s", err)
        time.sleep(_RETRY)


def _serve(interval):
    controller = Controller.open(__opts__)
    backfill = Backfill(controller)
    read_at = time.monotonic() + _PILLAR
    while True:
        if time.monotonic() >= read_at:
            if pillar_has_changed(__opts__, controller.site):
                log.warning("engine backfill begins anew: pillar has changed")
                return
            read_at = time.monotonic() + _PILLAR
        backfill.look()
        time.sleep(interval)
