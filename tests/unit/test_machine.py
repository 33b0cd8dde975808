"""What may be asked of a machine, and what is said about a mistake."""

import re

import pytest
import salt.utils.yaml
from hypervisors import profile, provider, spec

from saltmarsh.errors import InvalidInput
from saltmarsh.machine import MachineSpec, Network, ProviderConfig

NETWORK = profile()["network"]


def test_a_machine_asks_for_little():
    machine = MachineSpec.read(profile(network={"bridge": "br0", "prefix": 24}), "profile")
    assert (machine.host, machine.disk, machine.kernel, machine.virtualisation) == (None, None, None, "kvm")


def test_keys_of_others_are_left_alone():
    assert MachineSpec.read(profile(deploy=True, minion={"master": "10.77.0.1"}), "profile") == spec()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "image: Field required"),
        ({"image": "../golden.qcow2"}, "image: String should match pattern"),
        ({"image": "/srv/images/golden.qcow2"}, "image: String should match pattern"),
        ({"name": "VN001"}, "name: String should match pattern"),
        ({"name": "vn001.lab"}, "name: String should match pattern"),
        ({"cpus": 0}, "cpus: Input should be greater than 0, not 0"),
        ({"cpus": "two"}, "cpus: Input should be a valid integer, not 'two'"),
        ({"memory": -1}, "memory: Input should be greater than 0, not -1"),
        ({"memory": True}, "memory: Input should be a valid integer, not True"),
        ({"memory": 256.5}, "memory: Input should be a valid integer, not 256.5"),
        ({"disk": 0}, "disk: Input should be greater than 0, not 0"),
        ({"address": None}, "address: Field required"),
        ({"address": "10.77.0.300"}, "address: value is not a valid IPv4 or IPv6 address, not '10.77.0.300'"),
        ({"network": None}, "network: Field required"),
        ({"network": {"prefix": 24}}, "network:bridge: Field required"),
        ({"network": NETWORK | {"gatway": "10.77.0.254"}}, "network:gatway: Extra inputs are not permitted"),
        ({"network": NETWORK | {"prefix": 33}}, "network:prefix of an IPv4 address is at most 32"),
        ({"network": NETWORK | {"gateway": "10.78.0.1"}}, "network:gateway 10.78.0.1 is not in 10.77.0.0/24"),
        ({"virtualisation": "vmware"}, "virtualisation: Input should be 'kvm' or 'qemu', not 'vmware'"),
        ({"initrd": "initrd.img"}, "initrd and cmdline need a kernel"),
        ({"cmdline": "quiet"}, "initrd and cmdline need a kernel"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(changes, message):
    with pytest.raises(InvalidInput) as error:
        MachineSpec.read(profile(**changes), "vn001 (profile virtual)")
    assert str(error.value).startswith(f"vn001 (profile virtual): {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cluster": None}, "cluster: Field required"),
        ({"cluster": "My Lab"}, "cluster: String should match pattern"),
        ({"hosts": {}}, "hosts: Dictionary should have at least 1 item"),
        ({"hosts": {"hv1": {}}}, "hosts:hv1:uri: Field required"),
        ({"hosts": {"hv1": "qemu:///system"}}, "hosts:hv1: Input should be a valid dictionary"),
        ({"reserved_memory": -1}, "reserved_memory: Input should be greater than or equal to 0, not -1"),
    ],
)
def test_a_mistake_in_a_provider_is_one_line_that_names_the_key(changes, message):
    values = provider({"hv1": "qemu:///system"}).model_dump() | changes
    with pytest.raises(InvalidInput) as error:
        ProviderConfig.read(values, "provider lab")
    assert str(error.value).startswith(f"provider lab: {message}")


def test_a_hardware_address_belongs_to_an_address():
    assert spec(1).mac == "52:54:00:4d:00:65"
    assert len({spec(number).mac for number in range(1, 17)}) == 16


def test_the_shipped_profiles_and_map_are_acceptable(checkout):
    profiles = {}
    for path in (checkout / "cloud.profiles.d").glob("*.conf"):
        profiles |= salt.utils.yaml.safe_load(path.read_text())
    example = salt.utils.yaml.safe_load((checkout / "cloud.maps.d/example.map").read_text())
    for profile_name, entries in example.items():
        for name, entry in (item for each in entries for item in each.items()):
            MachineSpec.read(profiles[profile_name] | entry | {"name": name}, name)
    MachineSpec.read(profiles["stock"] | {"name": "vn014", "address": "10.77.0.114"}, "stock")
    [values] = salt.utils.yaml.safe_load((checkout / "cloud.providers.d/libvirt.conf").read_text()).values()
    ProviderConfig.read(values, "provider")


def test_the_manuals_examples_are_acceptable_and_its_tables_know_every_key(checkout):
    manual = (checkout / "docs/howto/providers.md").read_text().partition("## OpenStack clouds")[0]
    blocks = [salt.utils.yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", manual, re.DOTALL)]
    provider_values, profile_values, example = (next(iter(block.values())) for block in blocks)
    ProviderConfig.read(provider_values, "provider")
    for name, entry in (item for each in example for item in each.items()):
        MachineSpec.read(profile_values | entry | {"name": name}, name)
    known = set(re.findall(r"`:?([a-z_]+:)?([a-z_]+)`", manual))
    keys = {*MachineSpec.model_fields, *ProviderConfig.model_fields, *Network.model_fields} - {"name", "network"}
    assert keys <= {key for _, key in known}
