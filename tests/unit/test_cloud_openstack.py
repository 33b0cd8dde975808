"""The salt-cloud driver for OpenStack, loaded by Salt's own loader and driven by salt.cloud, on two small clouds."""

import sys
from pathlib import Path

import pytest
import salt.cloud
import salt.config
import salt.utils.cloud
import salt.utils.context
import salt.utils.yaml
from neighbours.openstack_api import NO_HOST, OpenStack
from salt.exceptions import SaltCloudConfigError, SaltCloudExecutionFailure, SaltCloudNotFound, SaltCloudSystemExit

from saltmarsh import servers
from saltmarsh.errors import BadConfiguration, NoCapacity, QuotaExceeded

CHECKOUT = Path(__file__).parents[2]
PROFILE = {"image": "node.qcow2", "size": "small", "network": "internal", "minion": {"master": "10.77.0.1"}}
LISTS = ("list_nodes", "list_nodes_min", "list_nodes_full", "avail_images", "avail_sizes", "avail_locations")
ACTIONS = ("show_instance", "start", "stop", "reboot", "suspend", "resume")


@pytest.fixture
def clouds(monkeypatch):
    """Two clouds; nobody waits longer than it takes here."""
    monkeypatch.setattr(servers, "_POLL", 0.02)
    with OpenStack().running() as engage1, OpenStack().running() as kaizen:
        yield {"engage1": engage1, "kaizen": kaizen}


@pytest.fixture
def events(monkeypatch):
    """What is put on the event bus: (tag, data), without the bus."""
    fired = []
    monkeypatch.setattr(
        salt.utils.cloud, "fire_event", lambda key, msg, tag, sock_dir, args, transport: fired.append((tag, args))
    )
    return fired


@pytest.fixture
def opts(tmp_path, clouds, events):
    """The configuration of salt-cloud, from its files: the providers and one profile on each, without deploy."""
    providers = {
        name: {"driver": "openstack", "cluster": "lab", "auth": cloud.auth, "region_name": "RegionOne"}
        for name, cloud in clouds.items()
    }
    profiles = {f"virtual-{name}": PROFILE | {"provider": name, "deploy": False} for name in clouds}
    write(tmp_path / "cloud.providers.d/clouds.conf", providers)
    write(tmp_path / "cloud.profiles.d/virtual.conf", profiles)
    write(tmp_path / "master", {"root_dir": str(tmp_path), "pki_dir": str(tmp_path / "pki")})
    write(tmp_path / "cloud", {"module_dirs": [str(CHECKOUT / "salt")], "root_dir": str(tmp_path)})
    (tmp_path / "pki").mkdir()
    (tmp_path / "pki/master.pub").write_text("the master's key")
    opts = salt.config.cloud_config(str(tmp_path / "cloud"))
    return opts | {"parallel": False, "start_action": None, "cachedir": str(tmp_path / "cache")}


@pytest.fixture
def cloud(opts):
    """A :class:`salt.cloud.Cloud` as salt-cloud makes it."""
    return salt.cloud.Cloud(opts)


def write(path, values):
    path.parent.mkdir(exist_ok=True)
    path.write_text(salt.utils.yaml.safe_dump(values))


def create(cloud, name="vn001", on="engage1", **changes):
    overrides = {"address": f"10.77.0.{100 + int(name[2:])}"} | changes
    return cloud.run_profile(f"virtual-{on}", [name], {name: overrides})[name]


def call(cloud, function, *args, on="engage1", **kwargs):
    function = cloud.clouds[f"openstack.{function}"]
    with salt.utils.context.func_globals_inject(function, __active_provider_name__=f"{on}:openstack"):
        return function(*args, **kwargs)


def test_the_contract_of_a_driver_is_whole(cloud):
    functions = {name.partition(".")[2] for name in cloud.clouds if name.startswith("openstack.")}
    assert functions >= {
        *("create", "destroy", "list_nodes_select", "get_configured_provider", "get_dependencies"),
        *(*LISTS, *ACTIONS),
    }


def test_the_driver_is_not_taken_for_the_library_it_stands_on(cloud):
    assert call(cloud, "get_dependencies") is True
    assert hasattr(sys.modules["openstack"], "connection")


def test_a_machine_is_created_listed_shown_and_destroyed(cloud, clouds):
    made = create(cloud)
    assert (made["name"], made["state"], made["private_ips"]) == ("vn001", "running", ["10.77.0.101"])
    listed = cloud.map_providers()
    assert set(listed["engage1"]["openstack"]["vn001"]) == {
        *("id", "image", "size", "state", "private_ips", "public_ips")
    }
    assert "kaizen" not in listed or not listed["kaizen"]["openstack"]
    assert call(cloud, "list_nodes_min") == {"vn001": {"state": "running"}}
    assert call(cloud, "list_nodes_full") == {"vn001": made}
    assert call(cloud, "show_instance", "vn001", call="action") == made
    assert call(cloud, "destroy", "vn001") == {"Destroyed": "vn001 was destroyed"}
    assert clouds["engage1"].left == (0, 0, 0, 0)


def test_two_clouds_with_equal_names_and_addresses_are_not_confused(cloud, clouds):
    assert create(cloud)["host"] == "engage1"
    clouds["kaizen"].add_server("vn001", saltmarsh_cluster="lab")  # salt-cloud refuses a name that another cloud has
    call(cloud, "suspend", "vn001", call="action", on="kaizen")
    states = {on: call(cloud, "list_nodes_min", on=on)["vn001"]["state"] for on in clouds}
    assert states == {"engage1": "running", "kaizen": "suspended"}
    call(cloud, "destroy", "vn001", host="kaizen", on="engage1")
    assert (clouds["engage1"].left, clouds["kaizen"].left) == ((1, 1, 0, 0), (0, 0, 0, 0))


def test_a_machine_is_told_who_it_is_and_whom_to_trust(cloud, clouds):
    create(cloud, deploy=True, keysize=2048, domain="lab")
    told = salt.utils.yaml.safe_load(clouds["engage1"].user_data("vn001"))
    files = {each["path"]: each for each in told["write_files"]}
    assert (told["hostname"], told["fqdn"]) == ("vn001", "vn001.lab")
    assert files["/etc/salt/pki/minion/minion_master.pub"]["content"] == "the master's key"
    assert files["/etc/salt/pki/minion/minion.pem"]["permissions"] == "0600"
    assert "master: 10.77.0.1" in files["/etc/salt/minion.d/saltmarsh.conf"]["content"]


def test_salt_cloud_can_select_fields(cloud):
    create(cloud)
    function = cloud.clouds["openstack.list_nodes_select"]
    function.__globals__["__opts__"]["query.selection"] = ["host", "state"]
    assert call(cloud, "list_nodes_select") == {"vn001": {"host": "engage1", "state": "running"}}


def test_events_tell_the_steps_and_nothing_else(cloud, events):
    create(cloud, minion={"master": "10.77.0.1", "password": "secret"})
    call(cloud, "destroy", "vn001")
    steps = [tag.removeprefix("salt/cloud/vn001/") for tag, _ in events]
    assert steps == ["creating", "requesting", "created", "destroying", "destroyed"]
    for _, data in events:
        assert set(data) <= {"name", "profile", "provider", "driver"}


def test_images_sizes_and_locations_are_those_of_each_cloud(cloud, clouds):
    clouds["kaizen"].image_status = "queued"
    images = {on: cloud.image_list(on)[on]["openstack"]["node.qcow2"]["status"] for on in clouds}
    assert images == {"engage1": "active", "kaizen": "queued"}
    assert cloud.size_list("kaizen")["kaizen"]["openstack"]["small"]["memory"] == 512
    assert cloud.location_list("kaizen") == {"kaizen": {"openstack": {"nova": {"available": True}}}}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"size": ""}, SaltCloudConfigError, r"vn001 \(profile virtual-engage1\): size: "),
        ({"address": "nonsense"}, SaltCloudConfigError, "address: value is not a valid"),
        ({"image": "gone"}, SaltCloudExecutionFailure, "engage1: there is no image gone"),
    ],
)
def test_a_failure_is_what_salt_cloud_knows_with_the_same_line(cloud, changes, error, message):
    with pytest.raises(error, match=message):
        create(cloud, **changes)
    assert call(cloud, "list_nodes") == {}


@pytest.mark.parametrize(
    ("attribute", "value", "kind"),
    [("capacity", 0, NoCapacity), ("quota", 0, QuotaExceeded), ("image_status", "queued", BadConfiguration)],
)
def test_the_kind_of_a_failure_is_kept_as_its_cause(cloud, clouds, attribute, value, kind):
    setattr(clouds["engage1"], attribute, value)
    with pytest.raises(SaltCloudExecutionFailure) as raised:
        create(cloud)
    assert type(raised.value.__cause__) is kind


def test_one_failure_does_not_end_a_map(opts, clouds):
    clouds["engage1"].capacity = 0
    opts["map_data"] = {
        "virtual-engage1": [{"vn001": {"address": "10.77.0.101"}}],
        "virtual-kaizen": [{"vn002": {"address": "10.77.0.102"}}],
    }
    result = salt.cloud.Map(opts)
    output = result.run_map({"create": result.map_data()["create"]})
    assert NO_HOST in output["vn001"]["Error"]
    assert (output["vn002"]["state"], output["vn002"]["host"]) == ("running", "kaizen")


def test_a_machine_that_failed_has_no_accepted_key(cloud, tmp_path):
    with pytest.raises(SaltCloudExecutionFailure):
        create(cloud, deploy=True, keysize=2048, image="gone")
    assert list((tmp_path / "pki/minions").iterdir()) == []


def test_a_cloud_that_does_not_answer_is_no_empty_list(cloud, clouds):
    clouds["engage1"].fail("GET", "/servers", 503)
    with pytest.raises(SaltCloudExecutionFailure, match="engage1: can't list servers"):
        call(cloud, "list_nodes")


def test_actions_and_functions_are_told_apart(cloud):
    for function in ACTIONS:
        with pytest.raises(SaltCloudSystemExit, match="--action"):
            call(cloud, function, "vn001", call="function")
    for function in LISTS:
        with pytest.raises(SaltCloudSystemExit, match="--function"):
            call(cloud, function, call="action")
    with pytest.raises(SaltCloudSystemExit, match="--destroy"):
        call(cloud, "destroy", "vn001", call="function")
    with pytest.raises(SaltCloudNotFound, match="no machine vn009"):
        call(cloud, "start", "vn009", call="action")


def test_actions_act(cloud):
    create(cloud)
    wanted = {"stop": "stopped", "start": "running", "suspend": "suspended", "resume": "running", "reboot": "running"}
    for action, state in wanted.items():
        call(cloud, action, "vn001", call="action")
        assert call(cloud, "list_nodes_min") == {"vn001": {"state": state}}
