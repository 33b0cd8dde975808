"""The salt-cloud driver for libcloud's providers, driven by salt.cloud, on libcloud's own dummy provider."""

import sys
from pathlib import Path

import libcloud.common.exceptions
import libcloud.common.types
import libcloud.compute.drivers.dummy
import pytest
import requests
import salt.cloud
import salt.config
import salt.utils.cloud
import salt.utils.yaml
from salt.exceptions import SaltCloudConfigError, SaltCloudExecutionFailure, SaltCloudNotFound, SaltCloudSystemExit

from saltmarsh import cloud as module
from saltmarsh import libcloud_link
from saltmarsh.errors import BadConfiguration, InvalidInput, ProviderError, Throttled, Unreachable

CHECKOUT = Path(__file__).parents[2]
DUMMY = libcloud.compute.drivers.dummy.DummyNodeDriver
PROFILE = {"provider": "elsewhere", "image": "Ubuntu 9.10", "size": "Small", "deploy": False}
LISTS = (
    "list_nodes",
    "list_nodes_min",
    "list_nodes_full",
    "inventory",
    "avail_images",
    "avail_sizes",
    "avail_locations",
)
ACTIONS = ("show_instance", "start", "stop", "reboot")
THERE = {"dummy-1", "dummy-2"}  # machines that this provider has from the start


@pytest.fixture
def configure(tmp_path, monkeypatch):
    """Write salt-cloud's configuration; returns the name of its main file."""
    monkeypatch.setattr(libcloud_link, "_POLL", 0.01)
    monkeypatch.setattr(libcloud_link, "_drivers", {})
    monkeypatch.setattr(salt.utils.cloud, "fire_event", lambda *args, **kwargs: None)

    def configure(**provider):
        values = {"driver": "libcloud", "cluster": "lab", "service": "dummy", "arguments": {"creds": 0}} | provider
        write(tmp_path / "cloud.providers.d/elsewhere.conf", {"elsewhere": values})
        write(tmp_path / "cloud.profiles.d/small.conf", {name: dict(PROFILE) for name in ("small", "osg")})
        write(tmp_path / "master", {"root_dir": str(tmp_path), "pki_dir": str(tmp_path / "pki")})
        write(tmp_path / "cloud", {"module_dirs": [str(CHECKOUT / "salt")], "root_dir": str(tmp_path)})
        return str(tmp_path / "cloud")

    return configure


@pytest.fixture
def make_cloud(configure, tmp_path):
    """A :class:`salt.cloud.Cloud` as salt-cloud makes it."""

    def make_cloud(**provider):
        opts = salt.config.cloud_config(configure(**provider))
        return salt.cloud.Cloud(opts | {"parallel": False, "cachedir": str(tmp_path / "cache")})

    return make_cloud


@pytest.fixture
def cloud(make_cloud, monkeypatch):
    """The dummy provider, except that a machine has the name, the image and the size that are asked for."""
    real = DUMMY.create_node

    def create_node(self, name, size, image):
        node = real(self, name, size, image)
        node.name, node.size, node.image = name, size, image
        return node

    monkeypatch.setattr(DUMMY, "create_node", create_node)
    return make_cloud()


def write(path, values):
    path.parent.mkdir(exist_ok=True)
    path.write_text(salt.utils.yaml.safe_dump(values))


def create(cloud, name="vm1", **changes):
    return cloud.run_profile("small", [name], {name: changes})[name]


def call(cloud, function, *args, **kwargs):
    return cloud.clouds[f"libcloud.{function}"](*args, **kwargs)


def test_the_contract_of_a_driver_is_whole(cloud):
    functions = {name.partition(".")[2] for name in cloud.clouds if name.startswith("libcloud.")}
    assert functions >= {"create", "destroy", "list_nodes_select", "get_configured_provider", *LISTS, *ACTIONS}


def test_the_driver_is_not_taken_for_the_library_it_stands_on(cloud):
    assert call(cloud, "get_dependencies") is True
    assert hasattr(sys.modules["libcloud"], "__version__")


def test_a_machine_is_created_listed_shown_rebooted_and_destroyed(cloud):
    made = create(cloud)
    assert (made["name"], made["state"], made["image"], made["size"]) == ("vm1", "running", "Ubuntu 9.10", "Small")
    assert made["public_ips"] == ["127.0.0.3"]
    assert set(call(cloud, "list_nodes")) == THERE | {"vm1"}
    assert call(cloud, "list_nodes_full")["vm1"] == made
    assert call(cloud, "show_instance", "vm1", call="action") == made
    assert call(cloud, "reboot", "vm1", call="action") == {"Rebooted": "vm1 is rebooting"}
    assert call(cloud, "destroy", "vm1") == {"Destroyed": "vm1 was destroyed"}
    assert set(call(cloud, "list_nodes_min")) == THERE
    call(cloud, "destroy", "vm1")


def test_images_sizes_and_locations_are_listed(cloud):
    assert call(cloud, "avail_images")["Ubuntu 9.10"] == {"id": "1"}
    assert set(call(cloud, "avail_sizes")) == {"Small", "Medium", "Big", "XXL Big"}
    assert "London Loft" in call(cloud, "avail_locations")
    assert {machine["name"] for machine in call(cloud, "inventory")["machines"]} == THERE


def test_a_machine_is_told_at_boot_by_the_argument_that_its_driver_has_for_that(cloud, monkeypatch):
    given = {}
    real = DUMMY.create_node

    def create_node(self, name, size, image, ex_userdata, ex_more):
        given.update(ex_userdata=ex_userdata, ex_more=ex_more)
        return real(self, name, size, image)

    monkeypatch.setattr(DUMMY, "create_node", create_node)
    create(cloud, user_data_argument="ex_userdata", create_arguments={"ex_more": 1})
    assert given.pop("ex_more") == 1
    assert "hostname: vm1" in given["ex_userdata"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"size": "Tiny"}, SaltCloudExecutionFailure, "elsewhere: 0 sizes are called Tiny"),
        ({"image": 7}, SaltCloudConfigError, r"vm1 \(profile small\): image: "),
        ({"create_arguments": {"ex_x": 1}}, SaltCloudExecutionFailure, "elsewhere: can't make vm1: .*'ex_x'"),
    ],
)
def test_what_can_not_be_made_is_one_line_and_leaves_nothing(cloud, changes, error, message):
    with pytest.raises(error, match=message):
        create(cloud, **changes)
    assert set(call(cloud, "list_nodes")) == THERE


def test_a_provider_that_names_machines_itself_is_refused_and_keeps_none(make_cloud):
    cloud = make_cloud()
    with pytest.raises(SaltCloudExecutionFailure, match=r"elsewhere names its machines itself \(dummy-3, not vm1\)"):
        create(cloud)
    assert set(call(cloud, "list_nodes")) == THERE


def test_a_name_that_exists_is_refused(cloud):
    with pytest.raises(SaltCloudExecutionFailure, match="elsewhere: there is a machine dummy-1 already"):
        cloud.clouds["libcloud.create"](PROFILE | {"name": "dummy-1", "provider": "elsewhere:libcloud"})


def test_what_libcloud_can_not_do_at_a_provider_is_told(cloud):
    with pytest.raises(SaltCloudConfigError, match="elsewhere: can't stop dummy-1: "):
        call(cloud, "stop", "dummy-1", call="action")


def test_actions_and_functions_are_told_apart(cloud):
    for function in ACTIONS:
        with pytest.raises(SaltCloudSystemExit, match="--action"):
            call(cloud, function, "vm1", call="function")
    for function in LISTS:
        with pytest.raises(SaltCloudSystemExit, match="--function"):
            call(cloud, function, call="action")
    with pytest.raises(SaltCloudNotFound, match="elsewhere: no machine vm9"):
        call(cloud, "reboot", "vm9", call="action")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (libcloud.common.types.InvalidCredsError("no"), BadConfiguration),
        (libcloud.common.exceptions.BaseHTTPError(403, "no"), BadConfiguration),
        (libcloud.common.exceptions.RateLimitReachedError(429, "slow down"), Throttled),
        (libcloud.common.exceptions.BaseHTTPError(503, "away"), Unreachable),
        (libcloud.common.types.ServiceUnavailableError(), Unreachable),
        (requests.ConnectionError("no route"), Unreachable),
        (TimeoutError("timed out"), Unreachable),
        (libcloud.common.types.LibcloudError("hm"), ProviderError),
    ],
)
def test_each_failure_has_its_kind_and_is_no_empty_list(cloud, monkeypatch, error, kind):
    def list_nodes(self):
        raise error

    monkeypatch.setattr(DUMMY, "list_nodes", list_nodes)
    with pytest.raises(SaltCloudExecutionFailure, match="elsewhere: can't list machines: ") as raised:
        call(cloud, "list_nodes")
    assert type(raised.value.__cause__) is kind


def test_a_service_that_libcloud_does_not_know_is_told(make_cloud):
    with pytest.raises(SaltCloudExecutionFailure, match="libcloud has no compute provider 'nowhere'"):
        call(make_cloud(service="nowhere"), "list_nodes")


def test_a_pool_on_it_is_refused_and_told_why(configure, site):
    cloud = module.Cloud(configure())
    with pytest.raises(
        InvalidInput, match=r"^pool osg: provider elsewhere has the driver libcloud, which can't give a"
    ):
        cloud.check(site.pool("osg"))
    with pytest.raises(InvalidInput, match="which can't suspend machines"):
        cloud.vmstates("osg")
