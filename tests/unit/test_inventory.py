"""What all hosts have, in a few calls to each; on libvirt's own test driver (real libvirt, hypervisors in memory)."""

import libvirt
import pytest
from hypervisors import host_uri, provider, spec

from saltmarsh import identity, libvirt_link
from saltmarsh import inventory as inventory_module
from saltmarsh.hypervisor import Hypervisors
from saltmarsh.inventory import inventory
from saltmarsh.machine import Inventory, PowerState, Seen


@pytest.fixture
def make(tmp_path):
    """Hypervisors of hosts hv1, hv2, ... (each given as keywords of host_uri, or as a URI)."""

    def make(*hosts, **changes):
        uris = {f"hv{number}": host_uri(tmp_path, f"hv{number}", **host) if isinstance(host, dict) else host
                for number, host in enumerate(hosts, start=1)}  # fmt: skip
        return Hypervisors(provider(uris, **changes), tmp_path / "cache")

    return make


def create(hypervisors, number, **changes):
    asked = spec(number, **changes)
    return hypervisors.create(asked, identity.by_credentials(asked))


def domain(hypervisors, name):
    return hypervisors.find(name)[2]


def test_each_machine_of_this_cluster_is_told_with_its_host_and_state_and_no_other(make):
    hypervisors = make({"foreign": {"web": 512}}, {})
    create(hypervisors, 1, host="hv1")
    create(hypervisors, 2, host="hv2")
    create(hypervisors, 3, host="hv2")
    domain(hypervisors, "vn002").suspend()
    domain(hypervisors, "vn003").destroy()
    found = inventory(hypervisors)
    assert set(found.machines) == {
        Seen("vn001", "hv1", PowerState.RUNNING),
        Seen("vn002", "hv2", PowerState.PAUSED),
        Seen("vn003", "hv2", PowerState.STOPPED),
    }
    assert (found.saved, found.silent) == ({}, {})


def test_what_keeps_a_machine_from_being_made_is_told_by_its_name(make):
    hypervisors = make({"foreign": {"web": 512}}, {})
    create(hypervisors, 1, host="hv2")
    assert inventory(hypervisors).taken == {"web": "a machine that is not this cluster's", "vn001": "a machine on hv2"}


def test_a_host_that_does_not_answer_is_told_and_the_others_machines_are_there(make, monkeypatch):
    monkeypatch.setattr(libvirt_link, "CONNECT_TIMEOUT", 0.5)
    hypervisors = make({}, "qemu+tcp://127.0.0.1:9/system")
    create(hypervisors, 1, host="hv1")
    found = inventory(hypervisors)
    assert [machine.name for machine in found.machines] == ["vn001"]
    assert list(found.silent) == ["hv2"]
    assert found.silent["hv2"].startswith("hv2 can't be reached: ")


def test_if_no_host_answers_all_are_silent(make, monkeypatch):
    monkeypatch.setattr(libvirt_link, "CONNECT_TIMEOUT", 0.5)
    found = inventory(make("qemu+tcp://127.0.0.1:9/system"))
    assert found == Inventory((), {}, found.silent)
    assert list(found.silent) == ["hv1"]


def test_a_host_that_answers_in_part_is_silent(make, monkeypatch):
    hypervisors = make({}, state_dir="/srv/elsewhere")
    create(hypervisors, 1)
    found = inventory(hypervisors)
    assert found.machines == ()
    assert list(found.silent) == ["hv1"]
    assert "/srv/elsewhere" in found.silent["hv1"]


@pytest.fixture
def states(make, tmp_path):
    """The storage pool of state files of a host, and its hypervisors."""
    directory = tmp_path / "states"
    directory.mkdir()
    hypervisors = make({}, state_dir=str(directory))
    [connection] = hypervisors.connect().values()
    return connection.storagePoolLookupByName("states"), hypervisors


def write(pool, name, size):
    pool.createXML(f"<volume><name>{name}</name><capacity>{size}</capacity><allocation>{size}</allocation></volume>")


def test_of_each_machine_it_is_told_what_its_state_files_take_without_opening_one(states, monkeypatch):
    pool, hypervisors = states
    for name, size in (("vn004.1.state", 1000), ("vn004.2.state", 200), ("vn005.1.state", 30), ("notes.txt", 4)):
        write(pool, name, size)
    monkeypatch.delattr(libvirt.virConnect, "saveImageGetXMLDesc")
    assert inventory(hypervisors).saved == {"vn004": 1200, "vn005": 30}


def test_a_state_file_that_grows_no_more_is_asked_for_its_size_no_more(states, monkeypatch):
    pool, hypervisors = states
    write(pool, "vn004.1.state", 1000)
    sizes = [100, 1000, 1000]
    monkeypatch.setattr(libvirt.virStorageVol, "info", lambda volume: [0, 1000, sizes.pop(0)])
    assert [inventory(hypervisors).saved["vn004"] for _ in range(5)] == [100, 1000, 1000, 1000, 1000]
    pool.storageVolLookupByName("vn004.1.state").delete()
    assert inventory(hypervisors).saved == {}


def test_whose_a_domain_is_is_asked_once(make, monkeypatch):
    hypervisors = make({"foreign": {"web": 512}})
    create(hypervisors, 1)
    inventory(hypervisors)
    monkeypatch.delattr(libvirt.virDomain, "metadata")
    assert [machine.name for machine in inventory(hypervisors).machines] == ["vn001"]


def make_volume(hypervisors, host, name):
    [link] = hypervisors.connect([host]).values()
    link.storagePoolLookupByName("nodes").createXML(f"<volume><name>{name}</name><capacity>1</capacity></volume>")


def test_volumes_with_this_clusters_mark_and_without_a_machine_are_told(make):
    hypervisors = make({"foreign": {"vn006": 100}}, {})
    create(hypervisors, 1, host="hv1")
    for host, volume in {
        "hv1": ("vn002.lab.qcow2", "vn003.lab.seed.iso", "vn004.qcow2", "vn005.other.qcow2", "golden.qcow2"),
        "hv2": ("vn001.lab.qcow2", "vn002.lab.console", "vn006.lab.qcow2"),
    }.items():
        for name in volume:
            make_volume(hypervisors, host, name)
    assert inventory(hypervisors).strays == {"vn002", "vn003"}


def test_volumes_of_a_machine_with_a_state_file_are_no_strays(states):
    pool, hypervisors = states
    write(pool, "vn004.1.state", 1000)
    make_volume(hypervisors, "hv1", "vn004.lab.qcow2")
    assert inventory(hypervisors).strays == set()


def test_volumes_that_have_been_deleted_through_another_host_are_no_strays(make, monkeypatch):
    hypervisors = make({})
    make_volume(hypervisors, "hv1", "vn002.lab.qcow2")
    [link] = hypervisors.connect().values()
    gone = link.storagePoolLookupByName("nodes").storageVolLookupByName("vn002.lab.qcow2")
    monkeypatch.setattr(libvirt.virStoragePool, "refresh", lambda pool, flags=0: gone.delete())
    found = inventory(hypervisors)
    assert (found.strays, found.silent) == (set(), {})


def test_a_host_that_can_not_look_again_is_silent_and_its_volumes_are_no_strays(make, monkeypatch):
    hypervisors = make({})
    create(hypervisors, 1)
    make_volume(hypervisors, "hv1", "vn002.lab.qcow2")
    monkeypatch.setattr(inventory_module, "refresh", refuse)
    found = inventory(hypervisors)
    assert (found.strays, [machine.name for machine in found.machines]) == (set(), ["vn001"])
    assert found.silent == {"hv1": "hv1: can't list storage pool nodes: unknown error"}


def refuse(pool):
    raise libvirt.libvirtError("it does not say why")
