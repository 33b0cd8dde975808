"""What a monitoring system wants to know, as Prometheus reads it: counted when it asks, from what is kept anyway."""

import logging
from collections import Counter
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily

from saltmarsh import breaker, reconciling
from saltmarsh.errors import InvalidInput
from saltmarsh.model import State

log = logging.getLogger(__name__)


class Metrics:
    """
    A collector for one site; asks only the ledger and files beside it.

    :param Controller controller: what to ask
    """

    def __init__(self, controller):
        self._controller = controller

    def describe(self):
        """Nothing is asked before somebody reads."""
        return []

    def collect(self):
        """
        Everything, as of now.

        :rtype: Iterator[prometheus_client.Metric]
        """
        yield self._nodes()
        yield from self._operations()
        yield from self._pools()
        yield from self._reconcile()

    def _nodes(self):
        family = GaugeMetricFamily("saltmarsh_nodes", "Nodes by pool and state.", labels=["pool", "state"])
        counts = Counter((node.pool, node.state) for node in self._controller.ledger.nodes())
        for pool in self._controller.site.pools.values():
            taken = sum(counts[pool.name, state] for state in State)
            for state in State:
                count = len(pool.nodes) - taken if state is State.FREE else counts[pool.name, state]
                family.add_metric([pool.name, str(state)], count)
        return family

    def _operations(self):
        ended = SummaryMetricFamily(
            "saltmarsh_operation_seconds",
            "Operations that have ended, and how long they took.",
            labels=["verb", "done"],
        )
        running = GaugeMetricFamily("saltmarsh_operations_running", "Operations under way.", labels=["verb"])
        for verb, done, count, seconds in self._controller.ledger.totals():
            ended.add_metric([verb, "yes" if done else "no"], count, seconds)
        for verb, count in Counter(each.verb for each in self._controller.ledger.operations()).items():
            running.add_metric([verb], count)
        return ended, running

    def _pools(self):
        stopped = GaugeMetricFamily("saltmarsh_pool_stopped", "Whether a pool does not grow.", labels=["pool"])
        limit = GaugeMetricFamily("saltmarsh_pool_limit", "How many nodes a pool may have.", labels=["pool"])
        failures = CounterMetricFamily(
            "saltmarsh_node_failures", "Nodes that did not become ready, by what was met.", labels=["pool", "kind"]
        )
        stops = breaker.stops(self._controller)
        for pool in self._controller.site.pools.values():
            stopped.add_metric([pool.name], int(pool.name in stops))
            limit.add_metric([pool.name], pool.limits.max_nodes or len(pool.nodes))
        for (pool, kind), count in breaker.failures(self._controller).items():
            failures.add_metric([pool, kind], count)
        return stopped, limit, failures

    def _reconcile(self):
        last = reconciling.last(self._controller)
        differs = GaugeMetricFamily("saltmarsh_differences", "What differs, by what mends it.", labels=["repair"])
        for repair, count in Counter(each.finding.repair for each in last.told).items():
            differs.add_metric([repair.name.lower() if repair else "none"], count)
        at = GaugeMetricFamily("saltmarsh_reconcile_timestamp_seconds", "When reconcile last looked.", value=last.at)
        took = GaugeMetricFamily("saltmarsh_reconcile_seconds", "How long its last look took.", value=last.seconds)
        suspended = GaugeMetricFamily(
            "saltmarsh_suspended_bytes",
            "What the memory of suspended nodes took on disk at that look.",
            labels=["pool", "host"],
        )
        for (pool, host), size in last.suspended.items():
            suspended.add_metric([pool, host], size)
        return differs, at, took, suspended


def registry(controller):
    """
    A registry with the metrics of a site, and nothing else.

    :rtype: prometheus_client.CollectorRegistry
    """
    made = CollectorRegistry()
    made.register(Metrics(controller))
    return made


@contextmanager
def served(controller, place):
    """
    Serve metrics over HTTP until the end of the block.

    :param Controller controller: what to ask
    :param str place: ``address:port``; None serves nothing
    :raises InvalidInput: it is neither
    """
    if place is None:
        yield
        return
    address, colon, port = str(place).rpartition(":")
    if not (address and colon and port.isdigit()):
        raise InvalidInput(
            f"engine elastic: metrics: expected an address and a port such as 127.0.0.1:9188, got {place!r}"
        )
    try:
        server, thread = start_http_server(int(port), address, registry(controller))
    except OSError as err:
        # Nodes come and go all the same.
        log.error("metrics can't be served at %s: %s", place, err)
        yield
        return
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
