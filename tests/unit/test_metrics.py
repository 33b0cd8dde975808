"""What Prometheus reads: counted from what is kept, whichever process has done it."""

import json
import re
import socket
import urllib.request

import pytest
import yaml
from prometheus_client import generate_latest

from saltmarsh import metrics
from saltmarsh.errors import InvalidInput, NoCapacity, OperationFailed
from saltmarsh.growing import grow
from saltmarsh.reconciling import reconcile
from saltmarsh.resuming import resume
from saltmarsh.shrinking import shrink
from saltmarsh.suspending import suspend


def values(controller):
    """Every sample by its name and labels, as Prometheus reads it."""
    text = generate_latest(metrics.registry(controller)).decode()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


def test_nodes_are_counted_by_pool_and_state(controller):
    grow(controller, 3, "osg")
    found = values(controller)
    assert found['saltmarsh_nodes{pool="osg",state="ready"}'] == 3
    assert found['saltmarsh_nodes{pool="osg",state="free"}'] == 1
    assert found['saltmarsh_nodes{pool="virtual",state="free"}'] == 16
    assert (found['saltmarsh_pool_limit{pool="osg"}'], found['saltmarsh_pool_limit{pool="virtual"}']) == (4, 12)


def test_operations_are_counted_with_their_seconds_by_how_they_ended(controller, provider):
    grow(controller, 1, "osg")
    shrink(controller, 1, "osg")
    provider.fail("create", "osg1", "no room", NoCapacity)
    with pytest.raises(OperationFailed):
        grow(controller, 1, "osg")
    found = values(controller)
    assert found['saltmarsh_operation_seconds_count{done="yes",verb="grow"}'] == 1
    assert found['saltmarsh_operation_seconds_count{done="no",verb="grow"}'] == 1
    assert found['saltmarsh_operation_seconds_count{done="yes",verb="shrink"}'] == 1
    assert 0 < found['saltmarsh_operation_seconds_sum{done="yes",verb="grow"}'] < 60
    assert found['saltmarsh_node_failures_total{kind="NoCapacity",pool="osg"}'] == 1
    assert found['saltmarsh_pool_stopped{pool="osg"}'] == 1
    assert found['saltmarsh_pool_stopped{pool="virtual"}'] == 0


def test_operations_under_way_are_counted(controller):
    controller.ledger.claim("grow", controller.site.pool("osg"), count=1)
    assert values(controller)['saltmarsh_operations_running{verb="grow"}'] == 1


def test_what_reconcile_has_found_and_when_is_told(controller, provider):
    assert values(controller)["saltmarsh_reconcile_timestamp_seconds"] == 0
    provider.add("osg1")
    provider.add("web1")
    reconcile(controller)
    found = values(controller)
    assert found['saltmarsh_differences{repair="remove"}'] == 1
    assert found['saltmarsh_differences{repair="none"}'] == 1
    assert found["saltmarsh_reconcile_timestamp_seconds"] > 1e9
    assert 0 < found["saltmarsh_reconcile_seconds"] < 60


def test_what_suspended_nodes_take_on_disk_is_told_by_pool_and_host(controller, provider, vmstates):
    grow(controller, 2, "osg")
    grow(controller, 1, "virtual", host="hv2")
    suspend(controller, ["osg1", "osg2", "vn001"], by="alice", why="a test")
    reconcile(controller)
    sizes = {state.name: state.size for state in vmstates.state_files()}
    found = values(controller)
    assert found['saltmarsh_suspended_bytes{host="hv1",pool="osg"}'] == sizes["osg1"] + sizes["osg2"] > 0
    assert found['saltmarsh_suspended_bytes{host="hv2",pool="virtual"}'] == sizes["vn001"]
    provider.fail("host", "hv2", "no route")
    resume(controller, ["osg1"])
    reconcile(controller)
    found = values(controller)
    assert found['saltmarsh_suspended_bytes{host="hv1",pool="osg"}'] == sizes["osg2"]
    assert found['saltmarsh_suspended_bytes{host="hv2",pool="virtual"}'] == sizes["vn001"]


def test_nobody_outside_is_asked(controller, slurm, provider):
    slurm.reachable = False
    provider.fail("list", "all", "no route")
    slurm.calls.clear()
    values(controller)
    assert slurm.calls == []


def test_they_are_served_over_http_until_the_end(controller):
    with metrics.served(controller, "127.0.0.1:19188"):
        with urllib.request.urlopen("http://127.0.0.1:19188/metrics") as answer:
            assert b"saltmarsh_nodes{" in answer.read()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen("http://127.0.0.1:19188/metrics")
    with metrics.served(controller, None):
        pass


def test_a_port_that_is_taken_keeps_nobody_from_work(controller, caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with metrics.served(controller, f"127.0.0.1:{taken.getsockname()[1]}"):
            pass
    assert "metrics can't be served at 127.0.0.1:" in caplog.text


@pytest.mark.parametrize("place", ["9188", "here", ":9188", "127.0.0.1:"])
def test_a_place_without_address_or_port_is_refused(controller, place):
    with pytest.raises(InvalidInput, match="expected an address and a port"):
        with metrics.served(controller, place):
            pass


def test_dashboard_alerts_and_manual_name_what_there_is(controller, checkout, provider):
    provider.fail("create", "osg1", "no room", NoCapacity)
    with pytest.raises(OperationFailed):
        grow(controller, 1, "osg")
    controller.ledger.claim("grow", controller.site.pool("osg"), count=1)
    provider.add("web1")
    grow(controller, 1, "virtual")
    suspend(controller, ["vn001"], by="alice", why="a test")
    reconcile(controller)
    there = {name.partition("{")[0] for name in values(controller)}
    panels = json.loads((checkout / "docs/monitoring/dashboard.json").read_text())["panels"]
    rules = yaml.safe_load((checkout / "docs/monitoring/alerts.yml").read_text())["groups"][0]["rules"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]] + [rule["expr"] for rule in rules]
    named = {name for text in asked for name in re.findall(r"saltmarsh_[a-z_]+", text)}
    assert named == there
    manual = (checkout / "docs/howto/monitoring.md").read_text()
    assert there <= set(re.findall(r"saltmarsh_[a-z_]+", manual))
