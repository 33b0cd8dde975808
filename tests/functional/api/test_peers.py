"""What a minion can do through the master without logging in: what its role says; a node's minion has none."""

import json
import subprocess

import pytest
import salt.channel.client
import salt.exceptions
import salt.utils.cloud
from apisite import BIN


class Minion:
    """A minion with a key that the master has accepted; whoever has its machine has this."""

    def __init__(self, site, minion_id):
        self._site = site
        self._config = site.directory / f"minion-{minion_id}"
        pki = self._config / "etc/salt/pki/minion"
        pki.mkdir(parents=True)
        private, public = salt.utils.cloud.gen_keys(2048)
        (pki / "minion.pem").touch(mode=0o400)
        (pki / "minion.pem").write_text(private)
        (pki / "minion.pub").write_text(public)
        (site.directory / "root/etc/salt/pki/master/minions" / minion_id).write_text(public)
        ports = {"master_port": site.settings["ret_port"], "publish_port": site.settings["publish_port"]}
        settings = {"id": minion_id, "root_dir": str(self._config), "master": "127.0.0.1", **ports}
        (self._config / "minion").write_text(json.dumps(settings))

    def call(self, *argv):
        """Call a function of an execution module; returns its answer."""
        done = subprocess.run(
            [BIN / "salt-call", "-c", self._config, "--out=json", *argv],
            stdout=subprocess.PIPE, stderr=self._site.log, text=True, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)["local"]


@pytest.fixture(scope="module")
def controller(served):
    return Minion(served, "ctl")


@pytest.fixture(scope="module")
def node(served):
    return Minion(served, "vn001")


def test_the_controllers_minion_has_its_role(controller, bus):
    assert controller.call("publish.runner", "elastic.pools")["virtual"]["free"] == 16
    assert controller.call("publish.runner", "elastic.status", "arg=[vn001]")["vn001"]["state"] == "free"
    said = controller.call("publish.runner", "elastic.timeline", "arg=[/tmp/x.svg]")["error"]
    assert said == "out='/tmp/x.svg': only salt-run on the controller writes files"


@pytest.mark.parametrize("function", ["elastic.shrink", "elastic.poolsx", "elastic_api.revoke", "salt.cmd"])
def test_the_controllers_minion_has_nothing_else(controller, bus, function):
    mark = bus.mark()
    assert controller.call("publish.runner", function, "arg=[vn001]") == {}
    assert bus.functions_since(mark) == []


@pytest.mark.parametrize("name", ["ctl1", "xctl"])
def test_a_name_that_is_almost_the_controllers_is_another(served, name):
    assert Minion(served, name).call("publish.runner", "elastic.pools") == {}


def test_a_node_can_call_nothing_of_the_master(node, bus):
    mark = bus.mark()
    for function in ("elastic.pools", "elastic.resume", "salt.cmd"):
        assert node.call("publish.runner", function) == {}
    assert bus.functions_since(mark) == []


def test_a_node_can_call_nothing_of_other_minions(node, bus):
    mark = bus.mark()
    for function in ("cmd.run", "slurm.config_hash", "x509.sign_remote_certificate"):
        assert node.call("publish.publish", "*", function, "timeout=1") == {}
    assert bus.functions_since(mark) == []


def test_events_of_a_node_are_hints_and_no_more(node, bus):
    """The one reaction is a look at the node that fires, and not at the one that the event names."""
    mark = bus.mark()
    data = '{"id": "vn002", "node": "vn002", "nodes": ["vn002"], "fun": "elastic.shrink", "tgt": "*"}'
    for tag in ("salt/netapi/hook/shrink", "salt/run/1/new", "salt/key", "elastic/shrink", "salt/minion/vn002/start"):
        assert node.call("event.fire_master", data, tag) is True
    bus.wait(mark, "runner.elastic.nudge")
    run = [event["data"] for event in bus.since(mark) if event["tag"].startswith("salt/run/2")]
    assert {event["fun"] for event in run} == {"runner.elastic.nudge"}
    assert "vn002" not in repr([event["fun_args"] for event in run])


def test_salts_own_port_lets_nobody_do_more_than_the_api(served, bus):
    """Who can reach it can speak to the master without salt-api."""
    monitor = served.client()
    login = {"eauth": "file", "username": "monitor", "password": served.password("monitor")}
    assert monitor.login("monitor").status == 200
    options = served.settings | {"master_uri": f"tcp://127.0.0.1:{served.settings['ret_port']}", "id": "x"}
    mark = bus.mark()
    with salt.channel.client.ReqChannel.factory(options, crypt="clear") as channel:
        for credentials in (
            {},
            {"user": "root", "key": "x"},
            {"token": "0" * 64},
            {"eauth": "auto", "username": "x"},
            login,
        ):
            for load in (
                {"cmd": "runner", "fun": "elastic.shrink", "kwarg": {"kwarg": {"what": "vn001"}}},
                {"cmd": "wheel", "fun": "key.list_all"},
                {"cmd": "publish", "fun": "test.ping", "tgt": "*", "arg": [], "user": "root", "ret": "", "jid": ""},
            ):
                assert "error" in channel.send(load | credentials | {"kwargs": credentials}), (load, credentials)
    assert bus.functions_since(mark) == []
