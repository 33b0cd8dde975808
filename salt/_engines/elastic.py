"""
The daemon in the master: the one place where nodes come and go by themselves.

It joins nodes that have started, in batches, takes over operations whose process died, and reconciles: it compares the
ledger, the providers, Slurm, minion keys and DNS, and mends what differs. So nodes of pools that are ``on_demand`` come
and go as Slurm wants them. Events only tell it to look: what it does follows from the ledger and from what the others
answer themselves.
"""

import logging
import threading
import time
from contextlib import ExitStack, closing

import salt.utils.event

from saltmarsh import bell, joining, reconciling, recovery, standin
from saltmarsh.controller import Controller, pillar_has_changed
from saltmarsh.errors import SaltmarshError
from saltmarsh.metrics import served

log = logging.getLogger(__name__)

NUDGE = "saltmarsh/nudge"
# Nodes that start together are joined together.
_SETTLE = 0.2
_MOMENT = 2
_RETRY = 10


def start(interval=15, grace=reconciling.GRACE, metrics=None):
    """
    Run for as long as the master runs.

    interval
        Seconds between looks at everything, whether or not an event asks for one.
    grace
        Seconds that a difference must have lasted before something is removed for it. Default: 900.
    metrics
        Address and port on which Prometheus finds metrics, for example ``127.0.0.1:9188``. Default: nowhere.

    CLI Example:

    .. code-block:: yaml

        engines:
          - elastic:
              interval: 15
    """
    while True:
        try:
            _serve(interval, grace, metrics)
        except SaltmarshError as err:
            # Pillar or the ledger is not usable: an administrator has to act, and is told again and again.
            log.error("engine elastic waits: %s", err)
        time.sleep(_RETRY)


def _serve(interval, grace, metrics):
    controller = Controller.open(__opts__)
    with (
        ExitStack() as held,
        closing(reconciling.Reconciler(controller, grace)) as reconciler,
        served(controller, metrics),
        salt.utils.event.get_master_event(__opts__, __opts__["sock_dir"], listen=True) as bus,
    ):
        bus.subscribe(NUDGE)
        joiner, look_at = None, 0.0
        while True:
            hinted = _hints(bus)
            if hinted and joiner:
                joiner.started(hinted)
            if bell.rung():
                reconciler.look(everything=False)
            if time.monotonic() >= look_at:
                if pillar_has_changed(__opts__, controller.site):
                    log.warning("engine elastic begins anew: pillar has changed")
                    return
                recovery.recover_abandoned(controller, _in_background)
                _remind(controller)
                joiner = joiner or _be_joiner(held, controller)
                if joiner:
                    joiner.look()
                reconciler.look()
                look_at = time.monotonic() + interval


def _be_joiner(held, controller):
    """Be the one that joins nodes; None while a grow is that which began without an engine: it joins all, too."""
    with ExitStack() as attempt:
        joiner = attempt.enter_context(joining.joiner(controller))
        if joiner:
            held.push(attempt.pop_all())
        return joiner


def _in_background(function, *arguments):
    threading.Thread(target=function, args=arguments, name=function.__name__, daemon=True).start()


def _remind(controller):
    try:
        standin.remind(controller)
    except SaltmarshError as err:
        log.error("Slurm can't be told now what it has forgotten of suspended nodes: %s", err)


def _hints(bus):
    """Names that events of one moment hint at; none after a second without events."""
    hinted = set()
    event = bus.get_event(tag=NUDGE, wait=1)
    moment = time.monotonic() + _MOMENT
    while event:
        nodes = event.get("nodes")
        hinted |= {name for name in nodes if isinstance(name, str)} if isinstance(nodes, list) else set()
        # However many come: whoever sends them without end must not keep this from its work.
        event = bus.get_event(tag=NUDGE, wait=_SETTLE) if time.monotonic() < moment else None
    return hinted
