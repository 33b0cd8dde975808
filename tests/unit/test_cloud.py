"""The seam to salt-cloud, with a real driver whose machines are files."""

import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import neighbours
import pytest
import salt.utils.cloud

from saltmarsh import cloud as module
from saltmarsh.cloud import render_map
from saltmarsh.errors import InvalidInput, ProviderError, Unreachable
from saltmarsh.pools import Site

KEYS = ("minions", "minions_pre", "minions_denied", "minions_rejected")


@pytest.fixture
def cloud(controller):
    return controller.cloud


@pytest.fixture
def pool(controller):
    return controller.site.pool("osg")


@pytest.fixture
def make(cloud, pool):
    """Make machines; returns what is reported of each."""

    def run(*names, host=None):
        outcomes = {}
        rendered = render_map(pool, {name: pool.address_of(name) for name in names}, host)
        cloud.create(cloud.plan(rendered), outcomes.__setitem__)
        return outcomes

    return run


# Planning


def test_a_plan_has_what_profile_pool_and_map_say(cloud, pool):
    planned = cloud.plan(render_map(pool, {"osg1": "10.77.0.51"}, "hv2"))
    said = {
        "profile": "osg",
        "provider": "stub:stub",
        "image": "node.qcow2",
        "cpus": 2,
        "memory": 2048,
        "address": "10.77.0.51",
        "host": "hv2",
    }
    assert {key: planned["osg1"][key] for key in said} == said


def test_a_machine_with_a_floating_address_is_told_both_and_its_minion_that_it_is_translated(controller, pillar):
    pillar["elastic"]["pools"]["osg"] |= {
        "addresses": "203.0.113.11-14",
        "network": {"kind": "floating", "addresses": "192.168.5.11-14"},
    }
    pool = Site.from_pillar(pillar).pool("osg")
    controller.cloud._client.opts["profiles"]["osg"]["grains"] = {"rack": 7}
    planned = controller.cloud.plan(render_map(pool, {"osg2": "203.0.113.12"}))["osg2"]
    assert (planned["address"], planned["floating_address"]) == ("192.168.5.12", "203.0.113.12")
    config = salt.utils.cloud.minion_config(controller.cloud._client.opts, planned)
    assert config["grains"] == {"rack": 7, "saltmarsh_network": "floating"}


def test_a_plan_does_nothing_and_leaves_the_map_as_it_was(cloud, provider, pool):
    rendered = render_map(pool, {"osg1": "10.77.0.51"})
    cloud.plan(rendered)
    assert rendered == render_map(pool, {"osg1": "10.77.0.51"})
    assert provider.machines() == {}


def test_a_plan_for_machines_that_exist_is_refused(cloud, provider, pool):
    provider.add("osg1")
    provider.add("osg2")
    with pytest.raises(ProviderError, match=r"^osg\[1-2\]: exists already at stub, "):
        cloud.plan(render_map(pool, {name: pool.address_of(name) for name in pool.nodes}))


def test_a_provider_that_can_not_be_asked_is_not_one_without_machines(cloud, provider, pool):
    provider.fail("list", "all", "hv1:\n  connection refused")
    with pytest.raises(Unreachable, match=r"^provider stub: hv1: connection refused$"):
        cloud.plan(render_map(pool, {"osg1": "10.77.0.51"}))


# Creating


def test_each_machine_is_reported_with_its_description_or_one_line(make, provider):
    provider.fail("create", "osg2", "hv1:\n  no room")
    outcomes = make("osg1", "osg2", "osg3")
    assert str(outcomes.pop("osg2")) == "hv1: no room"
    assert {name: outcome["host"] for name, outcome in outcomes.items()} == {"osg1": "hv1", "osg3": "hv1"}
    assert set(provider.machines()) == {"osg1", "osg3"}


def test_an_error_of_the_system_is_reported_of_its_machine(make, provider):
    (provider.keys / "osg2").mkdir()
    outcomes = make("osg1", "osg2")
    assert outcomes["osg1"]["host"] == "hv1"
    assert str(outcomes["osg2"]).endswith(f"Is a directory: '{provider.keys / 'osg2'}'")


def test_nothing_more_is_begun_when_creating_is_interrupted(cloud, pool, provider, monkeypatch):
    monkeypatch.setattr(module, "_WORKERS", 1)
    interrupted = threading.Event()
    forget_key = cloud._forget_key

    class Pool(ThreadPoolExecutor):
        def shutdown(self, *args, **kwargs):
            super().shutdown(wait=False, cancel_futures=True)
            interrupted.set()
            super().shutdown()

    def wait_to_create(name):
        if name != "osg1":
            assert interrupted.wait(60)
        forget_key(name)

    def interrupt(name, outcome):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(cloud, "_forget_key", wait_to_create)

    with pytest.raises(KeyboardInterrupt):
        cloud.create(cloud.plan(render_map(pool, {name: pool.address_of(name) for name in pool.nodes})), interrupt)
    assert len(provider.machines()) <= 2


# Destroying


def test_a_machine_is_gone_or_one_line_says_why_it_is_not(cloud, make, provider):
    make("osg1", "osg2")
    provider.fail("destroy", "osg2", "hv1:\n  the disk is busy")
    assert cloud.destroy(["osg"], {"osg1": None, "osg2": None}) == {"osg1": None, "osg2": "hv1: the disk is busy"}
    assert set(provider.machines()) == {"osg2"}


def test_a_machine_that_does_not_exist_is_gone(cloud):
    assert cloud.destroy(["osg"], {"osg1": None}) == {"osg1": None}


def test_only_the_host_that_is_known_to_have_it_must_answer(cloud, make, provider):
    make("osg1", "osg2")
    provider.fail("host", "hv2", "no route to host")
    assert cloud.destroy(["osg"], {"osg1": "hv1", "osg2": None}) == {
        "osg1": None,
        "osg2": "hv2 can't be reached: no route to host",
    }


# What must be there


def test_what_is_there_is_accepted(cloud, pool):
    cloud.check(pool)
    cloud.check(pool, "hv2")


def test_a_driver_that_can_not_be_loaded_is_told_with_its_reason(pillar, tmp_path):
    controller = neighbours.controller(pillar, tmp_path)
    providers = tmp_path / "provider/salt/cloud.providers.d/stub.conf"
    providers.write_text(providers.read_text().replace('"store"', '"shop"'))
    broken = module.Cloud(str(controller.minions.provider.configuration))
    with pytest.raises(InvalidInput, match=r"^provider stub can't be used: .*stub"):
        broken.check(controller.site.pool("osg"))
    controller.ledger.close()


# Keys


@pytest.fixture
def deployed(pillar, tmp_path):
    """A controller whose machines get minion keys."""
    made = neighbours.controller(pillar, tmp_path, deploy=True)
    yield made
    made.ledger.close()


def create(controller, name):
    pool = controller.site.pool("osg")
    planned = controller.cloud.plan(render_map(pool, {name: pool.address_of(name)}))
    controller.cloud.create(planned, lambda name, outcome: None)


def test_a_machines_key_is_accepted_and_forgotten_with_it(deployed):
    create(deployed, "osg1")
    provider = deployed.minions.provider
    assert deployed.cloud.accepted_keys() == {"osg1"}
    assert (provider.keys / "osg1").read_text() == provider.machines()["osg1"]["pub_key"]
    deployed.cloud.destroy(["osg"], {"osg1": "hv1"})
    assert deployed.cloud.accepted_keys() == frozenset()


def test_a_key_that_waits_under_a_nodes_name_does_not_keep_its_own_out(deployed):
    directories = [deployed.minions.provider.keys.parent / name for name in KEYS]
    for directory in directories:
        directory.mkdir(exist_ok=True)
        (directory / "osg1").write_text("somebody's key")
    create(deployed, "osg1")
    assert [(directory / "osg1").exists() for directory in directories] == [True, False, False, False]
    assert "BEGIN PUBLIC KEY" in (directories[0] / "osg1").read_text()


def test_a_private_key_is_in_no_file_on_the_master(deployed, tmp_path):
    create(deployed, "osg1")
    files = [path for path in tmp_path.rglob("*") if stat.S_ISREG(path.stat().st_mode)]
    assert [path for path in files if b"PRIVATE KEY" in path.read_bytes()] == []
    assert len(files) > 3


# Threads


def test_threads_that_ask_different_providers_of_one_driver_never_ask_each_others():
    driver = {"__active_provider_name__": None}
    exec("def ask():\n    return __active_provider_name__", driver)  # noqa: S102 - a driver's globals are its own
    active, wrong, start = module._Active(), [], threading.Barrier(8)

    def ask_often(provider):
        start.wait()
        for _ in range(200):
            with active(driver["ask"], provider):
                if (asked := driver["ask"]()) != provider:
                    wrong.append((asked, provider))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask_often, ["one:stub", "two:stub"] * 4))
    assert wrong == []
    assert driver["ask"]() is None


def test_threads_that_ask_the_same_provider_do_not_wait_for_each_other():
    driver = {}
    exec("def ask():\n    return __active_provider_name__", driver)  # noqa: S102
    active, both = module._Active(), threading.Barrier(2, timeout=10)

    def ask():
        with active(driver["ask"], "one:stub"):
            both.wait()
            return driver["ask"]()

    with ThreadPoolExecutor(2) as pool:
        assert [each.result() for each in [pool.submit(ask), pool.submit(ask)]] == ["one:stub"] * 2
