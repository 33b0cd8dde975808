"""Machines in an OpenStack cloud: what is promised when the cloud works, and when it does not."""

import base64
import json
import re
import threading
import time

import pytest
import salt.utils.yaml
from neighbours.openstack_api import NO_HOST, OpenStack

from saltmarsh import openstack_link, servers
from saltmarsh.errors import (
    BadConfiguration,
    Conflict,
    InUse,
    InvalidInput,
    NoCapacity,
    NotFound,
    NotInTime,
    ProviderError,
    QuotaExceeded,
    Throttled,
    Unreachable,
)
from saltmarsh.pools import Site
from saltmarsh.server import BootVolume, CloudConfig, ServerSpec
from saltmarsh.servers import Servers

TOLD = "#cloud-config\nhostname: vn001\n"
MARK = {"saltmarsh_cluster": "lab"}


@pytest.fixture
def openstack():
    """A cloud."""
    with OpenStack().running() as cloud:
        yield cloud


@pytest.fixture
def cloud(openstack, monkeypatch):
    """The machines in that cloud; nobody waits longer than it takes here."""
    monkeypatch.setattr(servers, "_POLL", 0.02)
    return Servers("engage1", config(openstack))


def config(openstack, **changes):
    return CloudConfig(**{"cluster": "lab", "auth": openstack.auth, "region_name": "RegionOne"} | changes)


def spec(name="vn001", **changes):
    values = {
        "image": "node.qcow2",
        "size": "small",
        "network": "internal",
        "address": f"10.77.0.{100 + int(name[2:])}",
    }
    return ServerSpec(name=name, **values | changes)


def test_a_machine_is_made_listed_shown_and_destroyed(cloud, openstack):
    made = cloud.create(spec(), TOLD)
    assert (made.name, made.host, made.state, made.address) == ("vn001", "engage1", "running", "10.77.0.101")
    assert (made.size, made.cpus, made.memory, made.image) == ("small", 1, 512, "node.qcow2")
    assert cloud.machines() == [made] == [cloud.show("vn001")]
    cloud.destroy("vn001")
    assert openstack.left == (0, 0, 0, 0)
    assert cloud.machines() == []


def test_the_port_comes_first_and_has_the_nodes_address(cloud, openstack):
    cloud.create(spec(security_groups=["slurm"], port_security=True), TOLD)
    [port] = openstack.ports.values()
    assert port["fixed_ips"] == [{"ip_address": "10.77.0.101"}]
    assert (port["security_groups"], port["port_security_enabled"]) == (["group-1"], True)
    [server] = openstack.servers.values()
    assert server["networks"] == [{"port": port["id"]}]
    order = [each for each in openstack.asked if each.startswith("POST") and "tokens" not in each]
    assert order == ["POST /network/v2.0/ports", "POST /compute/v2.1/servers"]


def test_a_machine_is_told_by_its_config_drive(cloud, openstack):
    cloud.create(spec(key_pair="admin", availability_zone="nova", server_group="apart"), TOLD)
    assert openstack.user_data("vn001") == TOLD
    [server] = openstack.servers.values()
    assert (server["config_drive"], server["key_name"], server["availability_zone"]) == (True, "admin", "nova")


def test_a_volume_and_a_floating_address_go_with_the_machine(cloud, openstack):
    openstack.volumes = True
    cloud.create(spec(boot_volume={"size": 4}, floating_network="internal"), TOLD)
    assert openstack.left == (1, 1, 1, 1)
    cloud.destroy("vn001")
    assert openstack.left == (0, 0, 0, 0)


def test_a_floating_address_that_is_asked_for_is_made_and_goes_with_the_machine(cloud, openstack):
    cloud.create(spec(floating_network="internal", floating_address="203.0.113.11"), TOLD)
    [floating] = openstack.addresses.values()
    assert floating["floating_ip_address"] == "203.0.113.11"
    assert floating["port_id"] in openstack.ports
    cloud.destroy("vn001")
    assert openstack.left == (0, 0, 0, 0)


def test_a_floating_address_that_the_project_has_is_taken_and_outlives_the_machine(cloud, openstack):
    openstack.addresses["kept"] = {"id": "kept", "floating_ip_address": "203.0.113.11", "port_id": None}
    openstack.addresses["other"] = {"id": "other", "floating_ip_address": "203.0.113.12", "port_id": None}
    cloud.create(spec(floating_network="internal", floating_address="203.0.113.11"), TOLD)
    assert [openstack.addresses["kept"]["port_id"]] == list(openstack.ports)
    assert openstack.addresses["other"]["port_id"] is None
    cloud.destroy("vn001")
    assert openstack.left == (0, 0, 0, 2)


def test_a_floating_address_in_use_is_not_taken_from_its_port_and_nothing_is_left(cloud, openstack):
    openstack.addresses["used"] = {"id": "used", "floating_ip_address": "203.0.113.11", "port_id": "somebodys"}
    with pytest.raises(InUse, match=r"no floating address for vn001: 203\.0\.113\.11 belongs to another port"):
        cloud.create(spec(floating_network="internal", floating_address="203.0.113.11"), TOLD)
    assert openstack.addresses["used"]["port_id"] == "somebodys"
    assert openstack.left == (0, 0, 0, 1)


def test_a_floating_address_needs_its_network():
    values = {"name": "vn001", "image": "i", "size": "s", "network": "n", "address": "10.77.0.101"}
    with pytest.raises(InvalidInput, match=r"floating_address 203\.0\.113\.11 needs a floating_network"):
        ServerSpec.read(values | {"floating_address": "203.0.113.11"}, "vn001")


def test_what_is_not_this_clusters_is_never_touched(cloud, openstack):
    openstack.add_server("vn001", saltmarsh_cluster="other")
    openstack.add_port("10.77.0.101")
    assert cloud.machines() == []
    cloud.destroy("vn001")
    assert openstack.left == (1, 1, 0, 0)
    with pytest.raises(NotFound, match="engage1: no machine vn001 of cluster lab"):
        cloud.show("vn001")


def test_another_nodes_port_is_not_taken_for_ones_own(cloud, openstack):
    for name in ("vn001", "vn0011"):
        cloud.create(spec(name, address=f"10.77.0.{len(name)}"), TOLD)
    cloud.destroy("vn001")
    assert [port["name"] for port in openstack.ports.values()] == ["vn0011"]


def test_fifty_machines_cost_at_most_five_requests_each(cloud, openstack, caplog):
    names = [f"vn{number:03d}" for number in range(1, 51)]
    together(cloud, names)
    assert not caplog.records
    requests = sum(openstack.requests.values())
    assert requests <= 5 * len(names), openstack.requests
    assert len(cloud.machines()) == 50


def test_the_newest_microversion_is_asked_for_with_which_lists_always_work(cloud, openstack):
    """From 2.96 on, real Nova 31 answered 500 to every list while there was a server that was over quota."""
    cloud.create(spec(), TOLD)
    cloud.machines()
    assert openstack.microversions - {""} == {"2.95"}


def test_one_list_is_one_request_per_page(cloud, openstack):
    openstack.page = 3
    for number in range(7):
        openstack.add_server(f"vn{number:03d}", **MARK)
    cloud.machines()
    openstack.requests.clear()
    assert len(cloud.machines()) == 7
    assert openstack.requests == {"GET /compute/v2.1/servers/detail": 3}


def together(cloud, names):
    failed = []

    def create(name):
        try:
            cloud.create(spec(name), TOLD)
        except ProviderError as err:
            failed.append(err)

    for start in range(0, len(names), 16):
        threads = [threading.Thread(target=create, args=(name,)) for name in names[start : start + 16]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed


def quota(resource="instances"):
    return {
        "forbidden": {"code": 403, "message": f"Quota exceeded for {resource}: Requested 1, but already used 9 of 9"}
    }


def neutron(type_, message="no"):
    return {"NeutronError": {"type": type_, "message": message, "detail": ""}}


SERVERS, PORTS = r"/servers$", r"/ports$"


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (("POST", SERVERS, 403, quota()), QuotaExceeded, "engage1: can't make vn001: Quota exceeded for instances"),
        (("POST", PORTS, 409, neutron("OverQuota")), QuotaExceeded, "no port with 10.77.0.101 for vn001"),
        (("POST", PORTS, 409, neutron("IpAddressAlreadyAllocated")), InUse, "no port with 10.77.0.101 for vn001"),
        (("POST", PORTS, 403, neutron("PolicyNotAuthorized")), BadConfiguration, "no port with 10.77.0.101"),
        (
            ("POST", SERVERS, 400, {"badRequest": {"message": "Invalid key_name provided."}}),
            BadConfiguration,
            "key_name",
        ),
        (("POST", SERVERS, 500, {"computeFault": {"message": "Unexpected API Error."}}), ProviderError, "Unexpected"),
        (("POST", SERVERS, 503, {}), Unreachable, "can't make vn001"),
        (("POST", SERVERS, 504, {}), Unreachable, "can't make vn001"),
        (("POST", SERVERS, None, {}), Unreachable, "can't make vn001"),
        (("GET", r"/servers/detail$", 503, {}), Unreachable, "can't look for vn001"),
    ],
)
def test_each_failure_has_its_kind_and_leaves_nothing(cloud, openstack, fault, kind, message):
    openstack.fail(*fault, times=1)
    with pytest.raises(kind, match=message) as raised:
        cloud.create(spec(), TOLD)
    assert type(raised.value) is kind
    assert openstack.left == (0, 0, 0, 0)


def test_a_server_that_was_made_although_the_answer_got_lost_is_removed(cloud, openstack):
    openstack.fail("POST", SERVERS, 504, after=True, times=1)
    with pytest.raises(Unreachable):
        cloud.create(spec(), TOLD)
    assert openstack.requests["DELETE /compute/v2.1/servers/ID"] == 1
    assert openstack.left == (0, 0, 0, 0)


def test_a_cloud_without_room_is_told_by_the_servers_fault(cloud, openstack):
    openstack.capacity = 0
    with pytest.raises(NoCapacity, match=f"engage1: can't make vn001: {NO_HOST}"):
        cloud.create(spec(), TOLD)
    assert openstack.left == (0, 0, 0, 0)


def test_a_used_up_quota_is_told_and_leaves_nothing(cloud, openstack):
    openstack.quota = 1
    cloud.create(spec(), TOLD)
    with pytest.raises(QuotaExceeded, match="already used 1 of 1"):
        cloud.create(spec("vn002"), TOLD)
    assert openstack.left == (1, 1, 0, 0)


def test_a_suspended_machine_still_counts_as_taken(cloud, openstack):
    openstack.capacity = 1
    cloud.create(spec(), TOLD)
    cloud.act("vn001", "suspend_server", "SUSPENDED")
    with pytest.raises(NoCapacity):
        cloud.create(spec("vn002"), TOLD)
    assert cloud.show("vn001").state == "suspended"


def test_a_server_stuck_while_it_is_built_is_given_up_and_removed(openstack, cloud):
    openstack.stuck = True
    with pytest.raises(NotInTime, match="can't make vn001: still BUILD, no task after 1 s"):
        Servers("engage1", config(openstack, create_timeout=1)).create(spec(), TOLD)
    assert openstack.left == (0, 0, 0, 0)


def test_an_image_that_is_not_active_is_refused_before_anything_is_made(cloud, openstack):
    openstack.image_status = "queued"
    with pytest.raises(BadConfiguration, match=r"image node.qcow2 is queued, not active"):
        cloud.create(spec(), TOLD)
    assert not [each for each in openstack.asked if each.startswith("POST") and "tokens" not in each]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": "gone"}, "engage1: there is no image gone"),
        ({"size": "huge"}, "engage1: there is no flavor huge"),
        ({"network": "elsewhere"}, "engage1: there is no network elsewhere"),
        ({"security_groups": ["none"]}, "engage1: there is no security group none"),
        ({"memory": 4096, "cpus": 1}, "flavor small has 1 CPUs and 512 MiB, vn001 shall have 1 and 4096"),
        ({"boot_volume": {"size": 4}}, "engage1 has no block storage for the boot volume of vn001"),
    ],
)
def test_a_profile_that_does_not_fit_the_cloud_is_bad_configuration(cloud, openstack, changes, message):
    with pytest.raises(BadConfiguration, match=message):
        cloud.create(spec(**changes), TOLD)
    assert openstack.left == (0, 0, 0, 0)


def test_a_name_that_exists_is_refused_whosever_it_is(cloud, openstack):
    openstack.add_server("vn001")
    with pytest.raises(InUse, match="engage1: there is a server vn001 already"):
        cloud.create(spec(), TOLD)
    assert openstack.left == (1, 0, 0, 0)


def test_an_address_that_is_taken_is_refused_and_stays_whose_it_is(cloud, openstack):
    openstack.add_port("10.77.0.101")
    with pytest.raises(InUse, match=r"IP address 10.77.0.101 already allocated"):
        cloud.create(spec(), TOLD)
    assert openstack.left == (0, 1, 0, 0)


def test_two_servers_of_one_name_are_no_machine_to_act_on_but_both_are_removed(cloud, openstack):
    for _ in range(2):
        openstack.add_server("vn001", **MARK)
    with pytest.raises(Conflict, match="engage1: 2 servers of the name vn001"):
        cloud.act("vn001", "stop_server", "SHUTOFF")
    cloud.destroy("vn001")
    assert openstack.left == (0, 0, 0, 0)


def test_a_throttled_request_is_asked_again_when_the_cloud_said_so(cloud, openstack):
    openstack.fail("POST", PORTS, 429, times=2, Retry_After="1")
    begun = time.monotonic()
    cloud.create(spec(), TOLD)
    assert time.monotonic() - begun >= 2
    assert openstack.requests["POST /network/v2.0/ports"] == 3


def test_a_cloud_that_throttles_for_long_is_told_so_at_once(cloud, openstack):
    openstack.fail("POST", PORTS, 429, Retry_After="3600")
    with pytest.raises(Throttled, match=r"no port with 10\.77\.0\.101 for vn001"):
        cloud.create(spec(), TOLD)
    assert openstack.left == (0, 0, 0, 0)


def test_a_token_that_expires_in_the_middle_is_not_noticed(cloud, openstack):
    cloud.create(spec(), TOLD)
    openstack.expire_tokens()
    cloud.create(spec("vn002"), TOLD)
    assert [machine.name for machine in cloud.machines()] == ["vn001", "vn002"]


def test_refused_credentials_are_bad_configuration(openstack, cloud):
    other = config(openstack, auth=openstack.auth | {"password": "wrong"})
    with pytest.raises(BadConfiguration, match="engage1: can't connect: "):
        Servers("engage1", other).machines()


def test_an_application_credential_logs_in(openstack, cloud):
    auth = {
        "auth_url": openstack.auth["auth_url"],
        "application_credential_id": "a",
        "application_credential_secret": "secret",
    }
    assert Servers("engage1", config(openstack, auth=auth, auth_type="v3applicationcredential")).machines() == []


def test_a_cloud_of_clouds_yaml_is_used_whatever_the_environment_says(openstack, cloud, tmp_path, monkeypatch):
    known = {"clouds": {name: {"auth": openstack.auth, "region_name": "RegionOne"} for name in ("engage1", "other")}}
    known["clouds"]["other"]["auth"] = openstack.auth | {"password": "wrong"}
    (tmp_path / "clouds.yaml").write_text(json.dumps(known))
    monkeypatch.setenv("OS_CLOUD", "other")
    given = CloudConfig(cluster="lab", cloud="engage1", clouds_file=str(tmp_path / "clouds.yaml"))
    assert Servers("engage1", given).machines() == []


def test_a_cloud_that_is_down_is_unreachable_and_not_empty(cloud):
    with OpenStack().running() as gone:
        pass
    with pytest.raises(Unreachable, match="kaizen: can't connect: "):
        Servers("kaizen", config(gone)).machines()


def test_a_cloud_that_is_down_is_not_tried_again_by_each_who_waits_for_it(openstack, cloud):
    openstack.fail("POST", "/tokens$", 503)
    for _ in range(3):
        with pytest.raises(Unreachable, match="engage1: can't connect: "):
            cloud.machines()
    assert openstack.requests["POST /v3/auth/tokens"] == 1
    openstack.mend()


def test_no_secret_gets_into_a_log(cloud, caplog):
    with caplog.at_level("DEBUG"):
        cloud.create(spec(), "#cloud-config\nsecret")
    assert caplog.records
    assert base64.b64encode(b"#cloud-config\nsecret").decode() not in caplog.text


def test_a_cloud_that_is_slow_is_unreachable_after_its_timeout(openstack, cloud):
    openstack.fail("GET", "/servers", 0, delay=3)
    begun = time.monotonic()
    with pytest.raises(Unreachable):
        Servers("engage1", config(openstack, request_timeout=1)).machines()
    assert time.monotonic() - begun < 3


def test_destroy_does_not_succeed_while_it_is_not_known_what_is_left(cloud, openstack):
    cloud.create(spec(), TOLD)
    openstack.fail("GET", PORTS, 503)
    with pytest.raises(Unreachable):
        cloud.destroy("vn001")
    openstack.mend()
    cloud.destroy("vn001")
    assert openstack.left == (0, 0, 0, 0)


def test_a_cloud_without_routers_has_no_floating_addresses_to_remove(cloud, openstack):
    openstack.routers = False
    cloud.create(spec(), TOLD)
    cloud.destroy("vn001")
    assert openstack.left == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("verb", "status", "state"),
    [
        ("stop_server", "SHUTOFF", "stopped"),
        ("reboot_server", "ACTIVE", "running"),
        ("pause_server", "PAUSED", "paused"),
    ],
)
def test_actions_act_and_are_awaited(cloud, verb, status, state):
    cloud.create(spec(), TOLD)
    cloud.act("vn001", verb, status)
    assert cloud.show("vn001").state == state


def test_an_action_that_comes_to_nothing_is_not_waited_for(cloud, openstack):
    cloud.create(spec(), TOLD)
    openstack.giving_up = True
    with pytest.raises(ProviderError, match="can't suspend vn001: Nova has given up, it is ACTIVE"):
        cloud.act("vn001", "suspend_server", "SUSPENDED")


def test_a_server_that_a_list_misses_while_it_is_built_is_not_taken_for_gone(cloud, openstack):
    openstack.forgetful = True
    together(cloud, [f"vn{number:03d}" for number in range(1, 9)])
    assert openstack.left == (8, 8, 0, 0)


def test_an_action_that_does_not_fit_the_state_is_refused_in_the_clouds_words(cloud):
    cloud.create(spec(), TOLD)
    with pytest.raises(ProviderError, match="can't resume vn001: Cannot 'resume' instance"):
        cloud.act("vn001", "resume_server", "ACTIVE")


def test_images_flavors_and_zones_are_listed(cloud):
    assert cloud.images()["node.qcow2"]["status"] == "active"
    assert cloud.sizes() == {"small": {"id": "flavor-1", "cpus": 1, "memory": 512, "disk": 2}}
    assert cloud.zones() == {"nova": {"available": True}}


def test_a_remembered_id_is_asked_for_again_after_a_while(cloud, openstack, monkeypatch):
    cloud.create(spec(), TOLD)
    monkeypatch.setattr(openstack_link, "_KNOWN", 0)
    openstack.image_status = "deactivated"
    with pytest.raises(BadConfiguration, match="deactivated"):
        cloud.create(spec("vn002"), TOLD)


# What is shipped


def test_the_shipped_providers_profiles_and_pool_are_acceptable(checkout):
    providers, profiles, pillar = (
        salt.utils.yaml.safe_load((checkout / path).read_text())
        for path in ("cloud.providers.d/openstack.conf", "cloud.profiles.d/openstack.conf", "pillar/clouds.sls")
    )
    for name, values in providers.items():
        assert CloudConfig.read(values, name).cloud == name
    for name, profile in profiles.items():
        assert profile["provider"] in providers
        ServerSpec.read(profile | {"name": "cn001", "address": "10.77.0.161"}, name)
    site = salt.utils.yaml.safe_load((checkout / "pillar/elastic.sls").read_text())
    site["elastic"]["pools"] |= pillar["elastic"]["pools"]
    assert set(Site.from_pillar(site).pool("cloud").profiles) == set(profiles)


def test_the_manuals_examples_are_acceptable_and_its_tables_know_every_key(checkout):
    manual = (checkout / "docs/howto/providers.md").read_text().partition("## OpenStack clouds")[2]
    blocks = [salt.utils.yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", manual, re.DOTALL)]
    provider, profile = (next(iter(block.values())) for block in blocks[:2])
    CloudConfig.read(provider, "provider")
    ServerSpec.read(profile | {"name": "cn001", "address": "10.77.0.161"}, "profile")
    known = {key.strip(":") for found in re.findall(r"`:?([a-z_]+:)?([a-z_]+)`", manual) for key in found}
    keys = {*CloudConfig.model_fields, *ServerSpec.model_fields, *BootVolume.model_fields}
    assert keys - known == {"name", "address"}
