"""Several libvirt hosts as one provider, on libvirt's own test driver (real libvirt, hypervisors in memory)."""

import gc
import multiprocessing
import re
import socket
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import libvirt
import pytest
from hypervisors import host_uri, provider, spec

from saltmarsh import identity, libvirt_link
from saltmarsh.errors import InvalidInput, NoCapacity, NotFound, ProviderError, SaltmarshError, Unreachable
from saltmarsh.hypervisor import Hypervisors
from saltmarsh.machine import PowerState
from saltmarsh.strays import remove_strays


@pytest.fixture
def make(tmp_path):
    """Hypervisors of hosts hv1, hv2, ... (each given as keywords of host_uri, or as a URI)."""

    def make(*hosts, **changes):
        uris = {}
        for number, host in enumerate(hosts or ({}, {}), start=1):
            name = f"hv{number}"
            uris[name] = host if isinstance(host, str) else host_uri(tmp_path, name, **host)
        return Hypervisors(provider(uris, **changes), tmp_path / "cache")

    return make


@pytest.fixture
def hypervisors(make):
    """Two hosts with 4096 MiB, of which 3072 MiB are for machines."""
    return make()


@pytest.fixture
def dead():
    """The URI of a host on which nothing listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"qemu+tcp://127.0.0.1:{reserved.getsockname()[1]}/system"


@pytest.fixture
def silent(monkeypatch):
    """The URI of a host that takes connections and never says a word."""
    monkeypatch.setattr(libvirt_link, "CONNECT_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"qemu+tcp://127.0.0.1:{server.getsockname()[1]}/system"


def create(hypervisors, number=1, **changes):
    asked = spec(number, **changes)
    return hypervisors.create(asked, identity.by_credentials(asked))


def connection(hypervisors, host):
    return libvirt_link.link(hypervisors.config.hosts[host].uri).wait(host)


def left_of(hypervisors, name):
    """Domains and volumes of that name on all hosts."""
    found = []
    for host in hypervisors.config.hosts:
        link = connection(hypervisors, host)
        found += [f"{host}: {each.name()}" for each in link.listAllDomains() if each.name() == name]
        found += [f"{host}: {each}" for each in link.storagePoolLookupByName("nodes").listVolumes() if name in each]
    return sorted(found)


def test_a_machine_is_made_started_and_known(hypervisors):
    made = create(hypervisors)
    assert (made.name, made.state, made.cluster) == ("vn001", PowerState.RUNNING, "lab")
    assert (made.memory, made.cpus, made.address, made.image) == (256, 1, "10.77.0.101", "golden.qcow2")
    assert hypervisors.machines() == [made]
    assert hypervisors.show("vn001") == made


def test_a_machine_has_its_own_disk_on_the_image(hypervisors):
    made = create(hypervisors, disk=4)
    pool = connection(hypervisors, made.host).storagePoolLookupByName("nodes")
    description = ElementTree.fromstring(pool.storageVolLookupByName("vn001.lab.qcow2").XMLDesc())
    assert description.findtext("capacity") == str(4 * 1024**3)
    assert description.findtext("backingStore/path") == "/srv/images/golden.qcow2"


def test_machines_go_where_most_memory_is_free(make):
    hypervisors = make({"memory": 4096}, {"memory": 3072}, {"memory": 5120})
    assert hypervisors.place(spec()).name == "hv3"
    hosts = [create(hypervisors, number, memory=1024).host for number in range(1, 7)]
    assert hosts == ["hv3", "hv1", "hv3", "hv1", "hv2", "hv3"]


def test_a_host_has_what_is_not_reserved_and_not_promised_to_any_domain(make):
    hypervisors = make({"memory": 4096, "foreign": {"mail": 1000, "web": 500}})
    create(hypervisors, memory=256)
    [host] = hypervisors.hosts()
    assert (host.memory_total, host.memory_free, host.cpus) == (4096, 4096 - 1024 - 1000 - 500 - 256, 4)


def test_a_machine_that_is_off_keeps_its_memory(hypervisors):
    made = create(hypervisors, host="hv1")
    connection(hypervisors, "hv1").lookupByName(made.name).destroy()
    assert hypervisors.hosts(["hv1"])[0].memory_free == 3072 - 256


def test_memory_is_never_promised_twice(make):
    hypervisors = make({"memory": 1024 + 3 * 256}, {"memory": 1024 + 2 * 256 + 255})

    def attempt(number):
        try:
            return create(hypervisors, number).host
        except NoCapacity:
            return None

    with ThreadPoolExecutor(16) as pool:
        hosts = list(pool.map(attempt, range(1, 17)))
    assert {host: hosts.count(host) for host in set(hosts)} == {"hv1": 3, "hv2": 2, None: 11}
    assert len(hypervisors.machines()) == 5


@pytest.mark.parametrize("changes", [{"memory": 3073}, {"cpus": 5}])
def test_no_room_says_what_there_is(hypervisors, changes):
    with pytest.raises(NoCapacity) as error:
        create(hypervisors, **changes)
    assert "hv1 has 3072 MiB and 4 CPUs, hv2 has 3072 MiB and 4 CPUs" in str(error.value)
    assert not left_of(hypervisors, "vn001")


def test_a_machine_may_say_its_host(make):
    hypervisors = make({"memory": 8192}, {"memory": 4096})
    assert create(hypervisors, host="hv2").host == "hv2"


def test_a_host_that_is_full_is_not_swapped_for_another(make):
    hypervisors = make({"memory": 8192}, {"memory": 1100})
    with pytest.raises(NoCapacity, match="hv2 has 76 MiB"):
        create(hypervisors, host="hv2")


def test_an_unknown_host_is_named(hypervisors):
    with pytest.raises(InvalidInput, match="hv9 is not a host of this provider: hv1, hv2"):
        create(hypervisors, host="hv9")


def test_a_host_without_the_image_is_no_candidate(make):
    hypervisors = make({"memory": 8192, "images": ()}, {"memory": 4096})
    assert create(hypervisors).host == "hv2"


@pytest.mark.parametrize("changes", [{"image": "gone.qcow2"}, {"kernel": "gone.qcow2"}])
def test_an_image_or_kernel_that_no_host_has_is_named_with_the_pool(hypervisors, changes):
    with pytest.raises(ProviderError) as error:
        create(hypervisors, **changes)
    for host in ("hv1", "hv2"):
        assert f"{host}: gone.qcow2 is not in storage pool images" in str(error.value)
    assert not left_of(hypervisors, "vn001")


def test_a_storage_pool_that_is_not_there_is_named(make):
    hypervisors = make({}, image_pool="masters")
    with pytest.raises(ProviderError, match="storage pool masters"):
        create(hypervisors)


def test_a_disk_smaller_than_its_image_is_refused_and_nothing_is_left(hypervisors):
    with pytest.raises(InvalidInput, match=r"vn001: disk: 1 GiB is less than the 2.0 GiB of golden.qcow2"):
        create(hypervisors, disk=1)
    assert not left_of(hypervisors, "vn001")


def test_a_name_that_is_taken_on_any_host_is_refused(hypervisors):
    create(hypervisors, host="hv1")
    with pytest.raises(ProviderError, match="hv1 already has a domain vn001"):
        create(hypervisors, host="hv2")
    assert [machine.host for machine in hypervisors.machines()] == ["hv1"]


def test_a_name_that_a_foreign_domain_has_is_refused(make):
    hypervisors = make({"foreign": {"vn001": 100}}, {})
    with pytest.raises(ProviderError, match="hv1 already has a domain vn001"):
        create(hypervisors)


def test_volumes_that_were_there_before_are_refused_and_kept(hypervisors):
    pool = connection(hypervisors, "hv1").storagePoolLookupByName("nodes")
    pool.createXML("<volume><name>vn001.qcow2</name><capacity>1</capacity></volume>")
    with pytest.raises(ProviderError, match=r"hv1: storage pool nodes has vn001.qcow2, but there is no domain vn001"):
        create(hypervisors, host="hv1")
    assert left_of(hypervisors, "vn001") == ["hv1: vn001.qcow2"]


def make_volume(hypervisors, host, name):
    pool = connection(hypervisors, host).storagePoolLookupByName("nodes")
    pool.createXML(f"<volume><name>{name}</name><capacity>1</capacity></volume>")


def test_volumes_of_this_cluster_without_a_machine_are_removed_and_no_others(hypervisors):
    create(hypervisors, 10, host="hv1")
    for host, name in (("hv1", "vn001.lab.qcow2"), ("hv2", "vn001.lab.seed.iso"), ("hv1", "vn001.lan.qcow2")):
        make_volume(hypervisors, host, name)
    remove_strays(hypervisors, "vn001")
    assert left_of(hypervisors, "vn001") == ["hv1: vn001.lan.qcow2"]
    assert left_of(hypervisors, "vn010") == ["hv1: vn010", "hv1: vn010.lab.console", "hv1: vn010.lab.qcow2"]


def test_volumes_of_a_machine_that_is_there_are_no_strays_on_any_host(make):
    hypervisors = make({"foreign": {"web": 100}}, {})
    create(hypervisors, host="hv1")
    make_volume(hypervisors, "hv2", "vn001.lab.qcow2")
    make_volume(hypervisors, "hv2", "web.lab.qcow2")
    for name in ("vn001", "web"):
        with pytest.raises(ProviderError, match=f"hv1 already has a domain {name}"):
            remove_strays(hypervisors, name)
    assert left_of(hypervisors, "vn001") == [
        "hv1: vn001", "hv1: vn001.lab.console", "hv1: vn001.lab.qcow2", "hv2: vn001.lab.qcow2",
    ]  # fmt: skip


def test_a_volume_that_another_domain_uses_is_no_stray(hypervisors):
    create(hypervisors, host="hv1")
    link = connection(hypervisors, "hv1")
    domain = link.lookupByName("vn001")
    described = domain.XMLDesc().replace("<name>vn001</name>", "<name>rescue</name>")
    domain.destroy()
    domain.undefine()
    link.defineXML(re.sub("<uuid>.*</uuid>", "", described))
    with pytest.raises(
        ProviderError, match=r"^hv1: domain rescue uses /srv/nodes/vn001.lab.*, though there is no vn001$"
    ):
        remove_strays(hypervisors, "vn001")
    assert left_of(hypervisors, "vn001") == ["hv1: vn001.lab.console", "hv1: vn001.lab.qcow2"]


def test_while_a_host_does_not_answer_no_volume_is_a_stray(make, dead):
    hypervisors = make({}, dead)
    make_volume(hypervisors, "hv1", "vn001.lab.qcow2")
    with pytest.raises(Unreachable, match="hv2 can't be reached"):
        remove_strays(hypervisors, "vn001")
    pool = connection(hypervisors, "hv1").storagePoolLookupByName("nodes")
    assert pool.listVolumes() == ["vn001.lab.qcow2"]


def test_without_a_lock_no_machine_is_placed(make, tmp_path):
    (tmp_path / "cache").write_text("not a directory")
    hypervisors = make()
    with pytest.raises(ProviderError, match=r"machines can't be placed without a lock: .*/cache"):
        create(hypervisors)
    assert not left_of(hypervisors, "vn001")


def test_a_machine_that_cannot_be_made_leaves_nothing(hypervisors):
    asked = spec()
    # The test driver has no uploads, so the secret volume fails after domain, disk and console were made.
    secret = identity.Identity((identity.Credential("salt.minion.pem", "key", secret=True),))
    with pytest.raises(ProviderError, match=r"can't make vn001.lab.minion.pem in storage pool nodes"):
        hypervisors.create(asked, secret)
    assert not left_of(hypervisors, "vn001")


def test_destroying_removes_domain_and_volumes_and_nothing_else(hypervisors):
    for number in (1, 10, 11):
        create(hypervisors, number, host="hv1")
    hypervisors.destroy("vn001")
    assert not left_of(hypervisors, "vn001")
    assert left_of(hypervisors, "vn010") == ["hv1: vn010", "hv1: vn010.lab.console", "hv1: vn010.lab.qcow2"]
    assert [machine.name for machine in hypervisors.machines()] == ["vn010", "vn011"]


def test_destroying_also_takes_what_is_off_and_what_was_half_made(hypervisors):
    create(hypervisors, host="hv1")
    link = connection(hypervisors, "hv1")
    link.lookupByName("vn001").destroy()
    link.storagePoolLookupByName("nodes").storageVolLookupByName("vn001.lab.qcow2").delete()
    hypervisors.destroy("vn001")
    assert not left_of(hypervisors, "vn001")


def test_destroying_twice_is_harmless(hypervisors):
    create(hypervisors)
    hypervisors.destroy("vn001")
    hypervisors.destroy("vn001")


def test_a_foreign_machine_is_neither_listed_nor_touched(make, tmp_path):
    hypervisors = make({"foreign": {"vn001": 100}})
    other = Hypervisors(hypervisors.config.model_copy(update={"cluster": "other"}), tmp_path / "other")
    create(other, 2)
    for name in ("vn001", "vn002"):
        hypervisors.destroy(name)
        with pytest.raises(NotFound, match=f"no machine {name} of cluster lab on hv1"):
            hypervisors.show(name)
    assert hypervisors.machines() == []
    assert left_of(hypervisors, "vn001") == ["hv1: vn001"]
    assert len(left_of(hypervisors, "vn002")) == 3


def test_actions_change_the_state(hypervisors):
    create(hypervisors)
    hypervisors.stop("vn001", timeout=5)
    assert hypervisors.show("vn001").state == PowerState.STOPPED
    hypervisors.start("vn001")
    assert hypervisors.show("vn001").state == PowerState.RUNNING
    hypervisors.reboot("vn001")
    assert hypervisors.show("vn001").state == PowerState.RUNNING


@pytest.mark.parametrize("action", ["start", "stop", "reboot", "show"])
def test_an_action_on_a_machine_that_is_not_there_is_an_error(hypervisors, action):
    with pytest.raises(NotFound, match="no machine vn009 of cluster lab on hv1, hv2"):
        getattr(hypervisors, action)("vn009")


def test_what_libvirt_refuses_is_one_line_with_host_and_machine(hypervisors):
    create(hypervisors, host="hv1")
    with pytest.raises(ProviderError) as error:
        hypervisors.start("vn001")
    assert str(error.value).startswith("hv1: can't start vn001: ")
    assert "\n" not in str(error.value)


def test_images_say_which_hosts_have_them(make):
    hypervisors = make({"images": ("golden.qcow2", "test.qcow2")}, {})
    found = {image.name: (image.format, image.capacity, image.hosts) for image in hypervisors.images()}
    assert found == {"golden.qcow2": ("qcow2", 2.0, ("hv1", "hv2")), "test.qcow2": ("qcow2", 2.0, ("hv1",))}


@pytest.mark.parametrize("ask", ["machines", "hosts", "images"])
def test_a_host_that_is_down_is_an_error_and_not_an_empty_list(make, dead, ask):
    hypervisors = make({}, dead)
    create(hypervisors)
    with pytest.raises(Unreachable, match="hv2 can't be reached"):
        getattr(hypervisors, ask)()
    assert getattr(hypervisors, ask)(hypervisors.reachable())


def test_a_host_that_is_down_gets_no_machines(make, dead, caplog):
    hypervisors = make(dead, {})
    assert create(hypervisors).host == "hv2"
    assert "Not a candidate for vn001: hv1 can't be reached" in caplog.text


def test_a_host_that_is_down_but_asked_for_is_named(make, dead):
    hypervisors = make({}, dead)
    with pytest.raises(Unreachable, match="hv2 can't be reached"):
        create(hypervisors, host="hv2")
    assert hypervisors.machines(["hv1"]) == []


def test_no_host_at_all_is_unreachable(make, dead):
    with pytest.raises(Unreachable, match="hv1 can't be reached"):
        create(make(dead))


def test_destroying_is_not_proven_while_a_host_is_down(make, dead):
    hypervisors = make({}, dead)
    create(hypervisors)
    with pytest.raises(Unreachable, match="vn001 may still exist: hv2 can't be reached"):
        hypervisors.destroy("vn001")
    assert hypervisors.machines(["hv1"]) == []
    hypervisors.destroy("vn001", host="hv1")


def test_what_was_on_a_host_that_was_taken_out_is_gone_once_no_other_host_has_it(hypervisors):
    create(hypervisors, 1, host="hv2")
    hypervisors.destroy("vn001", host="hv9")
    assert hypervisors.machines() == []
    hypervisors.destroy("vn001", host="hv9")


def test_a_machine_that_may_be_on_a_host_that_is_down_is_not_said_to_be_missing(make, dead):
    hypervisors = make({}, dead)
    with pytest.raises(Unreachable, match="vn001 was not found, but: hv2 can't be reached"):
        hypervisors.show("vn001")


def test_who_disconnects_closes_the_connection_and_gets_another_when_it_is_needed(make):
    hypervisors = make()
    connection = weakref.ref(hypervisors.connect(["hv1"])["hv1"])
    assert hypervisors.connect(["hv1"])["hv1"] is connection()
    hypervisors.disconnect()
    gc.collect()
    assert connection() is None
    assert hypervisors.connect(["hv1"])["hv1"].isAlive()


def test_a_silent_host_costs_all_who_ask_one_timeout(make, silent):
    hypervisors = make({}, silent)

    def ask(_):
        with pytest.raises(Unreachable, match=r"hv2 can't be reached: .* is silent for 0.5 s"):
            hypervisors.machines()

    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(16)))
    assert time.monotonic() - began < 2
    assert create(hypervisors).host == "hv1"


def test_a_host_that_comes_back_is_used_again(make, tmp_path, monkeypatch):
    monkeypatch.setattr(libvirt_link, "RETRY_AFTER", 0)
    hypervisors = make(f"test://{tmp_path}/late.xml")
    with pytest.raises(Unreachable):
        hypervisors.machines()
    host_uri(tmp_path, "late")
    assert hypervisors.machines() == []


def test_one_connection_serves_all_threads(hypervisors):
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: connection(hypervisors, "hv1"), range(32)))) == 1


def test_a_forked_child_makes_connections_of_its_own(hypervisors):
    create(hypervisors)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def ask():
        try:
            answers.put([machine.name for machine in hypervisors.machines()])
        except SaltmarshError as err:
            answers.put(err)

    child = context.Process(target=ask)
    child.start()
    # The child's hypervisors are its own memory: they have no machine, and the parent's are as they were.
    assert answers.get(timeout=20) == []
    child.join(20)
    assert child.exitcode == 0
    assert [machine.name for machine in hypervisors.machines()] == ["vn001"]


def test_the_event_loop_goes_on_after_a_fork(hypervisors):
    hypervisors.machines()
    child = multiprocessing.get_context("fork").Process(target=lambda: None)
    child.start()
    child.join(20)
    fired = threading.Event()
    timer = libvirt.virEventAddTimeout(1, lambda *_: fired.set(), None)
    assert fired.wait(10)
    libvirt.virEventRemoveTimeout(timer)


def test_libvirt_does_not_write_to_stderr(make, dead, capfd):
    with pytest.raises(Unreachable):
        make(dead).machines()
    assert capfd.readouterr().err == ""
