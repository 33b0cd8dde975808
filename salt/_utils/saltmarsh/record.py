"""
What a host knows of nodes while it acts without the controller: as much of a ledger as suspend and resume use.

It is made from what there is (machines, marks, state files), lives as long as one act of one process, and is written
nowhere: the marks on the machines and in the state files are what lasts. The ledger catches up with them
(:mod:`saltmarsh.catching_up`).
"""

import logging
import time
from dataclasses import replace

from saltmarsh.errors import Conflict
from saltmarsh.ledger import KEEP
from saltmarsh.machine import PowerState
from saltmarsh.model import Node, Operation, Owner, State, nodeset

log = logging.getLogger(__name__)


class Record:
    """
    Nodes as they are, with the functions of :class:`saltmarsh.ledger.Ledger` that suspend and resume use.

    :param nodes: the nodes that an act may concern
    """

    def __init__(self, nodes):
        self._nodes = {node.name: node for node in nodes}

    def nodes(self, names=None, *, pool=None, states=None):
        """As Ledger.nodes."""
        chosen = [self._nodes[name] for name in (self._nodes if names is None else names) if name in self._nodes]
        return tuple(
            node for node in chosen if (pool is None or node.pool == pool) and (states is None or node.state in states)
        )

    def begin(self, verb, pool, names, *, expect, to, reason=""):
        """As Ledger.begin."""
        names = list(names)
        if wrong := [name for name in names if name not in self._nodes or self._nodes[name].state not in expect]:
            raise Conflict(f"expected {' or '.join(sorted(expect))}: {nodeset(wrong)}")
        operation = Operation(0, verb, pool or "", nodeset(names), Owner.current(), time.time())
        self.move(operation, names, to, reason=reason)
        return operation, self.nodes(names)

    def move(self, operation, names, to, *, host=KEEP, reason=""):
        """As Ledger.move."""
        for name in names:
            node = self._nodes[name]
            self._nodes[name] = replace(
                node,
                state=to,
                since=time.time(),
                host=node.host if host is KEEP else host,
                reason=node.reason if reason is KEEP else reason,
                operation=operation.id,
            )
        log.info("%s: %s%s", nodeset(names), to, "" if reason is KEEP else f": {reason}")

    def finish(self, operation, outcome="done"):
        """As Ledger.finish."""
        for name in operation.nodes:
            self._nodes[name] = replace(self._nodes[name], operation=None)
        log.info("%s of %s: %s", operation.verb, operation.nodes, outcome)

    def abandon(self, operation):
        """As Ledger.abandon: whoever looks next finds the marks."""
        self.finish(operation, "left halfway")


def seen(site, name, look, host):
    """
    A node as it is found.

    :param Site site: for its pool and address
    :param str name: the node
    :param Look look: what there is of its machine on any host
    :param str host: where a suspended one would come back
    :returns: ready, suspended, or failed if it is marked and on a host nevertheless; None if it is not there
    :rtype: Node | None
    """
    pool = site.pool_of(name)
    if look.machine is not None and look.machine.state in (PowerState.RUNNING, PowerState.PAUSED):
        state = State.FAILED if look.suspension else State.READY
        return Node(name, pool.name, pool.address_of(name), state, time.time(), look.machine.host, "found so")
    if look.machine is None and look.state is not None:
        return Node(name, pool.name, pool.address_of(name), State.SUSPENDED, look.state.written, host, "found so")
    return None
