"""The salt-cloud driver, loaded by Salt's own loader and driven by salt.cloud, on libvirt's test driver."""

import socket
import subprocess
import sys
from pathlib import Path

import libvirt
import pytest
import salt.cloud
import salt.config
import salt.loader
import salt.utils.cloud
import salt.utils.yaml
from hypervisors import host_uri
from salt.exceptions import SaltCloudConfigError, SaltCloudExecutionFailure, SaltCloudNotFound, SaltCloudSystemExit

CHECKOUT = Path(__file__).parents[2]
PROFILE = {
    "provider": "lab",
    "image": "golden.qcow2",
    "cpus": 1,
    "memory": 256,
    "network": {"bridge": "br0", "prefix": 24},
    "identity": "credentials",
    "minion": {"master": "10.77.0.1"},
    "deploy": False,
}
PROVIDER = {"driver": "libvirt", "cluster": "lab", "image_pool": "images", "disk_pool": "nodes"}


@pytest.fixture
def events(monkeypatch):
    """What is put on the event bus: (tag, data), without the bus."""
    fired = []
    monkeypatch.setattr(
        salt.utils.cloud, "fire_event", lambda key, msg, tag, sock_dir, args, transport: fired.append((tag, args))
    )
    return fired


@pytest.fixture
def make_cloud(tmp_path, events):
    """A :class:`salt.cloud.Cloud` as salt-cloud makes it from its configuration files."""

    def make_cloud(profile=(), provider=(), **hosts):
        hosts = hosts or {"hv1": host_uri(tmp_path, "hv1"), "hv2": host_uri(tmp_path, "hv2")}
        values = PROVIDER | {"hosts": {name: {"uri": uri} for name, uri in hosts.items()}} | dict(provider)
        write(tmp_path / "cloud.providers.d/lab.conf", {"lab": values})
        write(tmp_path / "cloud.profiles.d/virtual.conf", {"virtual": PROFILE | dict(profile)})
        write(tmp_path / "master", {"root_dir": str(tmp_path), "pki_dir": str(tmp_path / "pki")})
        write(tmp_path / "cloud", {"module_dirs": [str(CHECKOUT / "salt")], "root_dir": str(tmp_path)})
        opts = salt.config.cloud_config(str(tmp_path / "cloud"))
        return salt.cloud.Cloud(opts | {"parallel": False, "cachedir": str(tmp_path / "cache")})

    return make_cloud


@pytest.fixture
def cloud(make_cloud):
    """Two hosts, one profile without deploy (the test driver can't be given secrets: it has no uploads)."""
    return make_cloud()


def write(path, values):
    path.parent.mkdir(exist_ok=True)
    path.write_text(salt.utils.yaml.safe_dump(values))


def create(cloud, name="vn001", **changes):
    overrides = {"address": "10.77.0.101"} | changes
    return cloud.run_profile("virtual", [name], {name: overrides})[name]


def call(cloud, function, *args, **kwargs):
    return cloud.clouds[f"libvirt.{function}"](*args, **kwargs)


def test_the_contract_of_a_driver_is_whole(cloud):
    functions = {name.partition(".")[2] for name in cloud.clouds if name.startswith("libvirt.")}
    assert functions >= {
        *("create", "destroy", "list_nodes", "list_nodes_min", "list_nodes_full", "list_nodes_select"),
        *("show_instance", "avail_images", "avail_sizes", "avail_locations", "start", "stop", "reboot"),
        *("get_configured_provider", "get_dependencies"),
    }


def test_the_driver_is_not_taken_for_the_library_it_stands_on(cloud):
    assert call(cloud, "get_dependencies") is True
    assert hasattr(sys.modules["libvirt"], "virConnect")


def test_without_libvirt_python_the_driver_says_so(make_cloud, tmp_path):
    """Then the driver itself is what ``import libvirt`` finds, since Salt puts its directory on the path."""
    make_cloud()
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(libvirt.__file__).parent.iterdir():
        if not entry.name.startswith("libvirt"):
            (packages / entry.name).symlink_to(entry)
    script = (
        "import salt.config, salt.loader, sys\n"
        "clouds = salt.loader.clouds(salt.config.cloud_config(sys.argv[1]))\n"
        "print('libvirt.create' in clouds, clouds.missing_modules['libvirt'])"
    )
    run = subprocess.run(
        [sys.executable, "-S", "-c", script, tmp_path / "cloud"],
        env={"PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "False libvirt-python is not installed for this Python\n"


def test_a_machine_is_created_listed_shown_and_destroyed(cloud):
    made = create(cloud)
    assert (made["name"], made["state"], made["private_ips"]) == ("vn001", "running", ["10.77.0.101"])
    listed = cloud.map_providers()["lab"]["libvirt"]
    assert set(listed["vn001"]) == {"id", "image", "size", "state", "private_ips", "public_ips"}
    assert call(cloud, "list_nodes_min") == {"vn001": {"state": "running"}}
    assert call(cloud, "list_nodes_full") == {"vn001": made}
    assert call(cloud, "show_instance", "vn001", call="action") == made
    assert call(cloud, "destroy", "vn001") == {"Destroyed": "vn001 was destroyed"}
    assert call(cloud, "list_nodes") == {}


def test_salt_cloud_can_select_fields(make_cloud):
    cloud = make_cloud()
    create(cloud)
    cloud.clouds["libvirt.list_nodes_select"].__globals__["__opts__"]["query.selection"] = ["host", "state"]
    assert set(call(cloud, "list_nodes_select")["vn001"]) == {"host", "state"}


def test_events_tell_the_steps_and_nothing_else(cloud, events):
    create(cloud, minion={"master": "10.77.0.1", "password": "secret"})
    call(cloud, "destroy", "vn001")
    assert [tag.rpartition("/")[2] for tag, _ in events] == [
        "creating",
        "requesting",
        "created",
        "destroying",
        "destroyed",
    ]
    for tag, data in events:
        assert tag.startswith("salt/cloud/vn001/")
        assert set(data) <= {"name", "profile", "provider", "driver"}


def test_images_sizes_and_locations(cloud):
    assert call(cloud, "avail_images")["golden.qcow2"]["hosts"] == ("hv1", "hv2")
    assert cloud.size_list("lab") == {"lab": {"libvirt": {"virtual": {"cpus": 1, "memory": 256}}}}
    locations = cloud.location_list("lab")["lab"]["libvirt"]
    assert {name: host["memory_free"] for name, host in locations.items()} == {"hv1": 3072, "hv2": 3072}


def test_images_that_differ_between_hosts_are_told_apart(make_cloud, tmp_path):
    small = host_uri(tmp_path, "hv2")
    Path(small.removeprefix("test://")).write_text(
        Path(small.removeprefix("test://")).read_text().replace("unit='GiB'>2<", "unit='GiB'>1<")
    )
    cloud = make_cloud(hv1=host_uri(tmp_path, "hv1"), hv2=small)
    assert [image["hosts"] for image in call(cloud, "avail_images")["golden.qcow2"]] == [("hv2",), ("hv1",)]


def test_without_an_address_the_name_says_it(cloud, monkeypatch):
    hosts = {"vn001": "10.77.0.101"}
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, *_: [(None, None, None, "", (hosts[name], 0))] * 2)
    assert create(cloud, address=None)["private_ips"] == ["10.77.0.101"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"memory": "plenty"}, SaltCloudConfigError, r"vn001 \(profile virtual\): memory: "),
        ({"host": "hv9"}, SaltCloudConfigError, "hv9 is not a host of this provider: hv1, hv2"),
        ({"identity": "dhcp"}, SaltCloudConfigError, "identity: credentials or nocloud, not 'dhcp'"),
        ({"image": "gone.qcow2"}, SaltCloudExecutionFailure, "hv1: gone.qcow2 is not in storage pool images"),
        ({"memory": 99999}, SaltCloudExecutionFailure, "no room for vn001"),
    ],
)
def test_a_failure_is_what_salt_cloud_knows_with_the_same_line(cloud, changes, error, message):
    with pytest.raises(error, match=message):
        create(cloud, **changes)
    assert call(cloud, "list_nodes") == {}


def test_a_name_that_does_not_resolve_is_told_as_a_missing_address(cloud):
    with pytest.raises(
        SaltCloudConfigError, match=r"vn001.invalid.*: address: not given, and the name does not resolve"
    ):
        create(cloud, name="vn001.invalid", address=None)


def test_one_failure_does_not_end_a_map(make_cloud, tmp_path):
    make_cloud()
    opts = salt.config.cloud_config(str(tmp_path / "cloud"))
    opts |= {"parallel": False, "start_action": None, "cachedir": str(tmp_path / "cache")}
    opts["map_data"] = {
        "virtual": [{"vn001": {"address": "nonsense"}}, {"vn002": {"address": "10.77.0.102", "memory": 512}}]
    }
    result = salt.cloud.Map(opts)
    output = result.run_map({"create": result.map_data()["create"]})
    assert "address: value is not a valid" in output["vn001"]["Error"]
    assert (output["vn002"]["state"], output["vn002"]["memory"]) == ("running", 512)


def test_a_machine_that_failed_has_no_accepted_key(make_cloud, tmp_path):
    cloud = make_cloud(profile={"deploy": True})
    (tmp_path / "pki").mkdir(exist_ok=True)
    (tmp_path / "pki/master.pub").write_text("the master's key")
    with pytest.raises(SaltCloudExecutionFailure, match=r"gone\.qcow2"):
        create(cloud, image="gone.qcow2")
    assert list((tmp_path / "pki/minions").iterdir()) == []


def test_a_machine_is_not_deployed_without_the_masters_key(make_cloud):
    with pytest.raises(SaltCloudConfigError, match=r"vn001 can't be told which master to trust: .*master.pub"):
        create(make_cloud(profile={"deploy": True}))


def test_a_host_that_is_down_hides_no_machine_of_the_others(make_cloud, tmp_path, caplog):
    cloud = make_cloud(hv1=host_uri(tmp_path, "hv1"), hv2=f"test://{tmp_path}/gone.xml")
    create(cloud)
    assert set(call(cloud, "list_nodes")) == {"vn001"}
    assert "hv2 can't be reached" in caplog.text
    with pytest.raises(SaltCloudExecutionFailure, match="vn001 may still exist: hv2 can't be reached"):
        call(cloud, "destroy", "vn001")
    call(cloud, "destroy", "vn001", host="hv1")


def test_no_host_at_all_is_no_empty_list(make_cloud, tmp_path):
    cloud = make_cloud(hv1=f"test://{tmp_path}/gone.xml")
    with pytest.raises(SaltCloudExecutionFailure, match="none of hv1 can be reached"):
        call(cloud, "list_nodes")


def test_actions_and_functions_are_told_apart(cloud):
    create(cloud)
    for function in ("show_instance", "start", "stop", "reboot"):
        with pytest.raises(SaltCloudSystemExit, match="--action"):
            call(cloud, function, "vn001", call="function")
    for function in (
        "list_nodes",
        "list_nodes_min",
        "list_nodes_full",
        "avail_images",
        "avail_sizes",
        "avail_locations",
    ):
        with pytest.raises(SaltCloudSystemExit, match="--function"):
            call(cloud, function, call="action")
    with pytest.raises(SaltCloudSystemExit, match="--destroy"):
        call(cloud, "destroy", "vn001", call="function")
    with pytest.raises(SaltCloudNotFound, match="no machine vn009"):
        call(cloud, "start", "vn009", call="action")


def test_actions_act(cloud):
    create(cloud)
    for action, state in (("stop", "stopped"), ("start", "running"), ("reboot", "running")):
        call(cloud, action, "vn001", call="action")
        assert call(cloud, "list_nodes_min") == {"vn001": {"state": state}}


@pytest.mark.parametrize("key", ["cluster", "image_pool", "disk_pool"])
def test_a_provider_without_what_it_needs_is_not_used(make_cloud, key):
    assert make_cloud(provider={key: None}).opts["providers"] == {}


def test_remove_strays_is_for_one_machine_that_is_not_there(cloud):
    create(cloud)
    with pytest.raises(SaltCloudConfigError, match="remove_strays: name= is missing"):
        call(cloud, "remove_strays")
    with pytest.raises(SaltCloudExecutionFailure, match="already has a domain vn001"):
        call(cloud, "remove_strays", kwargs={"name": "vn001"})
    assert call(cloud, "remove_strays", kwargs={"name": "vn002"}) is None
    assert "vn001" in call(cloud, "list_nodes_min")
