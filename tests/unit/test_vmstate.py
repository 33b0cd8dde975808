"""Memory of machines in files, on libvirt's own test driver: what is written, what comes back, and what never does."""

from dataclasses import replace
from pathlib import Path

import libvirt
import pytest
from hypervisors import complete, host_uri, provider, spec

from saltmarsh import domain as xml
from saltmarsh import identity, libvirt_link, vmstate
from saltmarsh.errors import InvalidInput, NoCapacity, NotFound, ProviderError, Unreachable
from saltmarsh.hypervisor import Hypervisors
from saltmarsh.machine import Phase, PowerState, Suspension
from saltmarsh.vmstate import VmStates

WHY = Suspension(1795267800.5, "alice", 'hv1 gets <a> "disk" & more', ("17", "18_[1-4]"), "a fan is loud")
RAN = replace(WHY, ran=True)


@pytest.fixture
def snapshots(monkeypatch):
    """The snapshots inside of disks, and those that were gone back to."""
    return complete(monkeypatch)


@pytest.fixture
def make(tmp_path, snapshots):
    """Memory of the machines of hosts hv1, hv2, ... (each given as keywords of host_uri, or as a URI)."""
    (tmp_path / "states").mkdir()

    def make(*hosts, **changes):
        uris = {}
        for number, host in enumerate(hosts or ({}, {}), start=1):
            uris[f"hv{number}"] = host if isinstance(host, str) else host_uri(tmp_path, f"hv{number}", **host)
        settings = {"state_dir": str(tmp_path / "states"), "state_format": "raw", "bypass_cache": False} | changes
        return VmStates(Hypervisors(provider(uris, **settings), tmp_path / "cache"), tmp_path / "cache")

    return make


@pytest.fixture
def vmstates(make):
    """Two hosts that share their storage; vn001 and vn002 run on hv1."""
    made = make(shared_storage=True)
    for number in (1, 2):
        create(made, number)
    return made


def create(vmstates, number=1, host="hv1"):
    asked = spec(number, host=host)
    return hypervisors(vmstates).create(asked, identity.by_credentials(asked))


def hypervisors(vmstates):
    return vmstates._hypervisors


def connection(vmstates, host="hv1"):
    return libvirt_link.link(hypervisors(vmstates).config.hosts[host].uri).wait(host)


def domains(vmstates, host="hv1"):
    return {domain.name() for domain in connection(vmstates, host).listAllDomains()}


def out(vmstates, name="vn001", why=WHY):
    """A machine on its way to disk, all of it."""
    vmstates.mark(name, "hv1", why)
    vmstates.pause(name, "hv1")
    state = vmstates.save(name, "hv1")
    vmstates.let_go(name, "hv1")
    return state


def in_phase(phase, suspension=WHY):
    return replace(suspension, phase=phase)


def restored(state):
    """A state file from which its machine has been restored."""
    return replace(state, suspension=in_phase(Phase.RESTORED, state.suspension))


def at_work(vmstates, name="vn001", why=WHY):
    """A machine that was suspended, and is at work again; returns what is left of its state file."""
    vmstates.restore(out(vmstates, name, why), "hv1")
    vmstates.unpause(name, "hv1")
    vmstates.settle(name, "hv1")
    vmstates.mark(name, "hv1", None)
    vmstates.forget(name, "hv1")
    return vmstates.checkpoints([name])


# The way of a machine


def test_a_machine_that_runs_is_seen_without_mark_and_file(vmstates):
    look = vmstates.look("vn001")
    assert (look.machine.host, look.machine.state) == ("hv1", PowerState.RUNNING)
    assert (look.busy, look.suspension, look.state) == (False, None, None)


def test_a_mark_is_read_as_it_was_written_and_can_be_taken_away(vmstates):
    vmstates.mark("vn001", "hv1", WHY)
    assert vmstates.look("vn001").suspension == WHY
    vmstates.mark("vn001", "hv1", None)
    assert vmstates.look("vn001").suspension is None
    assert vmstates.look("vn001").machine.image == "golden.qcow2"


def test_pause_and_unpause_may_be_said_twice(vmstates):
    for act, state in ((vmstates.pause, PowerState.PAUSED), (vmstates.unpause, PowerState.RUNNING)):
        for _ in range(2):
            act("vn001", "hv1")
            assert vmstates.look("vn001").machine.state is state


def test_a_suspended_machine_has_no_domain_and_its_file_tells_all_about_it(vmstates, tmp_path):
    before = vmstates.look("vn001").machine
    state = out(vmstates)
    assert (state.path, state.number, state.trouble) == (f"{tmp_path}/states/vn001.1.state", 1, "")
    assert domains(vmstates) == {"vn002"}
    look = vmstates.look("vn001")
    assert (look.machine, look.busy, look.suspension) == (None, False, None)
    assert look.state == state
    assert state.suspension == WHY
    assert (state.machine.name, state.machine.uuid, state.machine.memory, state.machine.address) == (
        "vn001",
        before.uuid,
        256,
        "10.77.0.101",
    )


def test_a_suspended_machine_is_one_of_the_providers_and_its_memory_is_free(vmstates):
    free = hypervisors(vmstates).hosts(["hv1"])[0].memory_free
    out(vmstates)
    listed = {machine.name: machine.state for machine in hypervisors(vmstates).machines()}
    assert listed == {"vn001": PowerState.SUSPENDED, "vn002": PowerState.RUNNING}
    assert hypervisors(vmstates).hosts(["hv1"])[0].memory_free == free + 256
    with pytest.raises(NotFound, match=r"^machine vn001 is suspended, its memory is in /.*/vn001.1.state$"):
        hypervisors(vmstates).start("vn001")


def test_a_machine_comes_back_paused_with_its_mark_and_keeps_its_file_until_it_is_forgotten(vmstates):
    uuid = vmstates.look("vn001").machine.uuid
    state = out(vmstates)
    vmstates.restore(state, "hv1")
    look = vmstates.look("vn001")
    assert (look.machine.state, look.machine.uuid) == (PowerState.PAUSED, uuid)
    assert (in_phase(Phase.WRITTEN, look.suspension), look.state) == (WHY, restored(state))
    vmstates.unpause("vn001", "hv1")
    vmstates.forget("vn001", "hv1")
    assert vmstates.look("vn001").state is None
    assert not Path(state.path).exists()


def test_a_machine_comes_back_on_another_host(vmstates):
    vmstates.restore(out(vmstates), "hv2")
    assert (domains(vmstates, "hv1"), domains(vmstates, "hv2")) == ({"vn002"}, {"vn001"})
    assert vmstates.look("vn001").machine.host == "hv2"
    assert vmstates.look("vn001", "hv1").machine is None


def test_no_file_is_ever_written_over_and_the_latest_counts(vmstates, tmp_path):
    state = out(vmstates)
    vmstates.restore(state, "hv1")
    vmstates.unpause("vn001", "hv1")
    second = out(vmstates, why=Suspension(2e9, "bob", "again"))
    assert second.path == f"{tmp_path}/states/vn001.2.state"
    assert [each.number for each in vmstates.state_files(["vn001"])] == [2, 1]
    assert vmstates.look("vn001").state == second
    vmstates.forget("vn001", "hv1")
    assert vmstates.state_files() == []


def test_a_suspended_machine_is_destroyed_with_its_file(vmstates):
    state = out(vmstates)
    hypervisors(vmstates).destroy("vn001", "hv1")
    assert not Path(state.path).exists()
    assert vmstates.look("vn001").state is None
    assert vmstates.look("vn002").machine.state is PowerState.RUNNING


# What goes wrong


def test_memory_that_can_not_be_written_leaves_the_machine_as_it_was(vmstates, monkeypatch):
    def fail(domain, path, xml, flags):
        pool = domain.connect().storagePoolLookupByName("states")
        pool.createXML(f"<volume><name>{Path(path).name}</name><capacity>1</capacity></volume>")
        Path(path).touch()
        raise libvirt.libvirtError("no space")

    monkeypatch.setattr(libvirt.virDomain, "saveFlags", fail)
    vmstates.mark("vn001", "hv1", WHY)
    vmstates.pause("vn001", "hv1")
    with pytest.raises(ProviderError, match=r"^hv1: can't write the memory of vn001 to /.*/vn001.1.state: "):
        vmstates.save("vn001", "hv1")
    look = vmstates.look("vn001")
    assert look.machine.state is PowerState.PAUSED
    assert look.state.machine is None
    assert look.state.trouble.startswith(f"{look.state.path} can't be restored from: ")
    assert "\n" not in look.state.trouble
    vmstates.forget("vn001", "hv1")
    assert vmstates.state_files() == []


def test_a_machine_without_a_complete_file_is_never_undefined(vmstates, tmp_path):
    with pytest.raises(ProviderError, match=r"^hv1: vn001 has no complete state file and must not be undefined$"):
        vmstates.let_go("vn001", "hv1")
    vmstates.mark("vn001", "hv1", WHY)
    state = vmstates.save("vn001", "hv1")
    Path(state.path).write_bytes(b"")
    with pytest.raises(ProviderError, match=r"^hv1: vn001 has no complete state file and must not be undefined$"):
        vmstates.let_go("vn001", "hv1")
    assert "vn001" in domains(vmstates)


def test_a_machine_that_is_active_is_not_let_go(vmstates):
    vmstates.restore(out(vmstates), "hv1")
    with pytest.raises(ProviderError, match=r"^hv1: vn001 is still active$"):
        vmstates.let_go("vn001", "hv1")


def test_a_machine_that_was_let_go_may_be_let_go_again(vmstates):
    out(vmstates)
    vmstates.let_go("vn001", "hv1")


@pytest.mark.parametrize("mark", [RAN, None], ids=["marked", "unmarked"])
def test_a_machine_that_has_run_since_its_file_was_written_is_neither_put_back_nor_let_go(vmstates, mark):
    vmstates.restore(out(vmstates), "hv1")
    vmstates.mark("vn001", "hv1", mark)
    with pytest.raises(ProviderError, match=r"^hv1: vn001 has run already$"):
        vmstates.put_back("vn001", "hv1")
    assert vmstates.look("vn001").machine.state is PowerState.PAUSED
    connection(vmstates).lookupByName("vn001").destroy()
    with pytest.raises(ProviderError, match=r"^hv1: vn001 has run since /.*/vn001.1.state was written$"):
        vmstates.let_go("vn001", "hv1")
    assert "vn001" in domains(vmstates)


def test_a_machine_that_runs_is_not_put_back(vmstates):
    vmstates.restore(out(vmstates), "hv1")
    vmstates.unpause("vn001", "hv1")
    with pytest.raises(ProviderError, match=r"^hv1: vn001 has run already$"):
        vmstates.put_back("vn001", "hv1")


def test_a_machine_that_was_put_back_is_what_it_was(vmstates):
    state = out(vmstates)
    for _ in range(2):
        vmstates.restore(state, "hv1")
        vmstates.put_back("vn001", "hv1")
        vmstates.put_back("vn001", "hv1")
        assert domains(vmstates) == {"vn002"}
        assert vmstates.look("vn001").state == restored(state)
    assert Path(state.path).exists()


@pytest.mark.parametrize("host", ["hv1", "hv2"])
def test_a_machine_that_is_active_anywhere_is_not_restored_a_second_time(vmstates, host):
    state = out(vmstates)
    vmstates.restore(state, "hv1")
    with pytest.raises(ProviderError, match=r"^hv1: vn001 is active already$"):
        vmstates.restore(state, host)
    assert domains(vmstates, "hv2") == set()


def test_a_restore_that_fails_leaves_nothing_but_the_file(vmstates, monkeypatch):
    def fail(connection, path, xml, flags):
        raise libvirt.libvirtError("no such bridge")

    state = out(vmstates)
    monkeypatch.setattr(libvirt.virConnect, "restoreFlags", fail)
    with pytest.raises(ProviderError, match=r"^hv2: can't restore vn001 from /.*: "):
        vmstates.restore(state, "hv2")
    assert domains(vmstates, "hv2") == set()
    assert vmstates.look("vn001").state == restored(state)


# The disk that fits


@pytest.fixture
def replaced(vmstates, monkeypatch):
    """Called, it replaces the image that the machines were made of."""
    return lambda: monkeypatch.setattr(xml, "volume_times", lambda description: 1e9)


REPLACED = r"^hv\d: golden.qcow2 has been replaced since vn001 was made of it: the disk no longer fits; put the old "


def test_a_machine_whose_image_was_replaced_is_not_restored(vmstates, replaced):
    state = out(vmstates)
    replaced()
    with pytest.raises(ProviderError, match=REPLACED):
        vmstates.restore(state, "hv1")
    assert "vn001" not in domains(vmstates)


def test_a_machine_whose_image_was_replaced_is_neither_moved_nor_started(vmstates, replaced):
    replaced()
    with pytest.raises(ProviderError, match=REPLACED):
        vmstates.check_target({"vn001": "hv1"}, "hv2")
    connection(vmstates).lookupByName("vn001").destroy()
    with pytest.raises(ProviderError, match=REPLACED):
        hypervisors(vmstates).start("vn001")


def test_the_disk_is_kept_as_it_was_until_the_machine_is_proven_fit(vmstates, snapshots):
    there, gone_back_to = snapshots
    vmstates.restore(out(vmstates), "hv1")
    assert there == {("vn001", "saltmarsh-1")}
    vmstates.unpause("vn001", "hv1")
    for _ in range(2):
        vmstates.settle("vn001", "hv1")
        assert there == set()
        assert vmstates.look("vn001").state.suspension.phase is Phase.OVER
    assert gone_back_to == []


@pytest.mark.parametrize("host", ["hv1", "hv2"])
def test_a_machine_that_has_run_and_died_comes_back_with_its_disk(vmstates, snapshots, host):
    vmstates.restore(out(vmstates), "hv1")
    vmstates.unpause("vn001", "hv1")
    connection(vmstates).lookupByName("vn001").destroy()
    if host == "hv2":
        vmstates.give_up("vn001", "hv1")
    vmstates.restore(vmstates.look("vn001").state, host)
    assert snapshots == ({("vn001", "saltmarsh-1")}, [("vn001", "saltmarsh-1")])
    assert vmstates.look("vn001").machine.state is PowerState.PAUSED


def test_a_machine_whose_disk_of_then_is_gone_is_not_restored(vmstates, snapshots):
    vmstates.restore(out(vmstates), "hv1")
    vmstates.put_back("vn001", "hv1")
    snapshots[0].clear()
    with pytest.raises(ProviderError, match=r"^hv1: can't fit the disk of vn001 to /.*/vn001.1.state: "):
        vmstates.restore(vmstates.look("vn001").state, "hv1")
    assert "vn001" not in domains(vmstates)


def test_a_file_whose_machine_is_at_work_again_is_not_restored(vmstates):
    vmstates.restore(out(vmstates), "hv1")
    vmstates.settle("vn001", "hv1")
    connection(vmstates).lookupByName("vn001").destroy()
    with pytest.raises(ProviderError, match=r"^hv1: vn001 has been at work since /.*/vn001.1.state was written$"):
        vmstates.restore(vmstates.look("vn001").state, "hv1")


def test_a_file_that_is_kept_becomes_a_checkpoint_when_its_machine_is_at_work(vmstates, snapshots):
    [checkpoint] = at_work(vmstates, why=replace(WHY, kept=True))
    assert checkpoint.is_checkpoint
    assert vmstates.look("vn001").state is vmstates.latest("vn001", "hv1") is None
    assert vmstates.state_files() == []
    assert snapshots[0] == {("vn001", "saltmarsh-1")}
    assert [machine.state for machine in hypervisors(vmstates).machines()] == [PowerState.RUNNING] * 2


def test_a_checkpoint_outlives_other_suspensions(vmstates, snapshots):
    [checkpoint] = at_work(vmstates, why=replace(WHY, kept=True))
    assert at_work(vmstates) == [checkpoint]
    assert snapshots[0] == {("vn001", "saltmarsh-1")}


def test_a_machine_gives_its_memory_up_for_a_checkpoint_and_has_it_again_afterwards(vmstates, snapshots):
    [checkpoint] = at_work(vmstates, why=replace(WHY, kept=True))
    again = Suspension(2e9, "bob", "it went wrong", ("17",))
    vmstates.mark("vn001", "hv1", again)
    vmstates.choose(checkpoint, "hv1", again)
    state = vmstates.look("vn001").state
    assert (state.path, state.suspension) == (checkpoint.path, replace(again, kept=True, phase=Phase.RESTORED))
    vmstates.give_up("vn001", "hv1")
    assert "vn001" not in domains(vmstates)
    vmstates.restore(state, "hv1")
    vmstates.unpause("vn001", "hv1")
    vmstates.settle("vn001", "hv1")
    vmstates.forget("vn001", "hv1")
    assert snapshots == ({("vn001", "saltmarsh-1")}, [("vn001", "saltmarsh-1")])
    assert [each.path for each in vmstates.checkpoints()] == [checkpoint.path]


def test_no_machine_gives_up_the_only_memory_it_has(vmstates):
    at_work(vmstates, why=replace(WHY, kept=True))
    with pytest.raises(ProviderError, match=r"^hv1: vn001 has no memory but its own, which must not be thrown away$"):
        vmstates.give_up("vn001", "hv1")
    assert "vn001" in domains(vmstates)


def test_a_discarded_checkpoint_leaves_neither_file_nor_snapshot(vmstates, snapshots):
    [checkpoint] = at_work(vmstates, why=replace(WHY, kept=True))
    vmstates.discard(checkpoint, "hv1")
    assert vmstates.checkpoints() == []
    assert not Path(checkpoint.path).exists()
    assert snapshots[0] == set()


# What goes wrong with files


def test_files_of_others_are_neither_seen_nor_deleted(make, vmstates, tmp_path):
    others = VmStates(
        Hypervisors(hypervisors(vmstates).config.model_copy(update={"cluster": "other"}), tmp_path / "other"), tmp_path
    )
    state = out(vmstates)
    assert others.state_files() == []
    others.forget("vn001", "hv1")
    assert Path(state.path).exists()
    assert vmstates.state_files(["vn002"]) == []


def test_a_file_that_was_renamed_is_not_that_machines(vmstates, tmp_path):
    state = out(vmstates)
    other = tmp_path / "states/vn009.1.state"
    Path(state.path).rename(other)
    pool = connection(vmstates).storagePoolLookupByName("states")
    pool.createXML("<volume><name>vn009.1.state</name><capacity>1</capacity></volume>")
    assert vmstates.state_files(["vn009"]) == []


# Rooms and hosts


def test_a_provider_without_a_directory_can_not_suspend(make):
    vmstates = make(state_dir=None)
    create(vmstates)
    with pytest.raises(ProviderError, match=r"^the provider has no state_dir \(cloud.providers.d\): machines can't be"):
        vmstates.check_room({"vn001": "hv1"})
    assert vmstates.look("vn001").state is None


def test_a_directory_without_a_storage_pool_is_said(make):
    vmstates = make(state_dir="/nowhere")
    create(vmstates)
    with pytest.raises(ProviderError, match=r"^hv1: no active storage pool is at /nowhere, the provider's state_dir$"):
        vmstates.check_room({"vn001": "hv1"})


def test_room_is_checked_for_all_together_for_what_they_use_with_a_margin(vmstates, monkeypatch):
    monkeypatch.setattr(libvirt.virDomain, "memoryStats", lambda domain: {"rss": 128 * 1024})
    each = int(128 * 1024**2 * vmstate.MARGIN) + vmstate._OVERHEAD
    monkeypatch.setattr(vmstate, "bytes_left", lambda pool: 2 * each + 1024)
    vmstates.check_room({"vn001": "hv1", "vn002": "hv1"})
    monkeypatch.setattr(vmstate, "bytes_left", lambda pool: 2 * each - 1024)
    vmstates.check_room({"vn001": "hv1"})
    with pytest.raises(NoCapacity, match=r"the memory of vn001, vn002 may need 345 MiB$"):
        vmstates.check_room({"vn001": "hv1", "vn002": "hv1"})


def test_a_machine_comes_back_where_it_was_or_else_where_there_is_room(make):
    vmstates = make({}, {"memory": 1024 + 255}, {}, shared_storage=True)
    create(vmstates)
    state = out(vmstates)
    assert vmstates.choose_host(state, None, "hv3") == "hv3"
    assert vmstates.choose_host(state, None, "hv2") == "hv1"
    assert vmstates.choose_host(state, "hv3", "hv1") == "hv3"
    with pytest.raises(NoCapacity, match=r"^no room for vn001 \(256 MiB\): hv2 has 255 MiB$"):
        vmstates.choose_host(state, "hv2", "hv1")
    with pytest.raises(InvalidInput, match=r"^hv9 is not a host of this provider: hv1, hv2, hv3$"):
        vmstates.choose_host(state, "hv9")


def test_without_shared_storage_a_machine_comes_back_on_its_host_alone(make):
    vmstates = make()
    create(vmstates)
    state = out(vmstates)
    assert vmstates.choose_host(state, None, "hv2") == "hv1"
    with pytest.raises(
        InvalidInput, match=r"^hv2 does not see /.*: for another host the provider needs shared_storage"
    ):
        vmstates.choose_host(state, "hv2")


def test_a_target_must_have_room_for_all(make):
    vmstates = make({}, {"memory": 1024 + 511}, shared_storage=True)
    for number in (1, 2):
        create(vmstates, number)
    vmstates.check_target({"vn001": "hv1"}, "hv2")
    with pytest.raises(NoCapacity, match=r"^no room for vn\[001-002\] \(512 MiB\): hv2 has 511 MiB$"):
        vmstates.check_target({"vn001": "hv1", "vn002": "hv1"}, "hv2")


def test_without_shared_storage_no_machine_changes_hosts(make):
    vmstates = make()
    create(vmstates)
    with pytest.raises(InvalidInput, match=r"^vn001 can't change hosts: for that the provider needs shared_storage$"):
        vmstates.check_target({"vn001": "hv1"}, "hv2")


@pytest.mark.parametrize("host", [None, "hv2"])
def test_a_host_that_is_down_is_an_error_and_never_a_machine_that_is_not_there(make, tmp_path, host):
    vmstates = make({}, f"test://{tmp_path}/missing.xml", shared_storage=True)
    with pytest.raises(Unreachable, match="hv2 can't be reached"):
        vmstates.look("vn001", host)
