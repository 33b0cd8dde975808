"""What slurmd and systemd run on a host for a lease."""

import functools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from neighbours.host import Host

from saltmarsh import leasehost, leasing
from saltmarsh.errors import OperationFailed
from saltmarsh.growing import grow
from saltmarsh.leasehost import HostController, again, end, hold, start
from saltmarsh.leasing import put_away
from saltmarsh.machine import PowerState
from saltmarsh.pools import parse_nodes

LEASE = 5


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The host's /run."""
    directory = tmp_path / "run"
    directory.mkdir()
    monkeypatch.setattr(leasehost, "RUN", str(directory))
    return directory


@pytest.fixture
def host(controller, slurm, run, monkeypatch):
    """hv1, with osg1 at work under a lease."""
    grow(controller, parse_nodes("osg1"), "osg", host="hv1")
    slurm.queue_lease(LEASE, "osg1", "hv1")
    return Host.of(controller, "hv1", hysteresis=0)


@pytest.fixture
def configured(pillar, tmp_path):
    """A function that opens a host's controller with its own configuration."""

    def opened(shared):
        (tmp_path / "states").mkdir(exist_ok=True)
        provider = {
            "cluster": "lab",
            "hosts": {"hv1": {"uri": "qemu:///system"}, "hv2": {"uri": "qemu+tls://hv2/system"}},
            "image_pool": "images",
            "disk_pool": "nodes",
            "state_dir": str(tmp_path / "states"),
            "shared_storage": shared,
        }
        file = tmp_path / "lease.json"
        file.write_text(json.dumps({"host": "hv1", "elastic": pillar["elastic"], "provider": provider}))
        return HostController.open(file)

    return opened


def test_everything_comes_from_one_file(configured):
    controller = configured(shared=True)
    assert controller.host == "hv1"
    assert controller.site.pool_of("osg1").name == "osg"
    assert controller.hypervisors.config.hosts["hv2"].uri == "qemu+tls://hv2/system"


@pytest.mark.parametrize("shared", [True, False])
def test_hosts_that_share_their_storage_share_the_locks(configured, shared, run, tmp_path):
    with configured(shared).locked(["osg1"]):
        assert (tmp_path / "states/lease-osg1.lock").exists() == shared
        assert (run / "lease-osg1.lock").exists() != shared


def test_only_one_acts_on_a_node_at_a_time(configured):
    controller = configured(True)
    another = ("flock", "--nonblock", controller.locks / "lease-osg1.lock", "true")
    with controller.locked(["osg1"]):
        assert subprocess.run(another, check=False).returncode == 1
    assert subprocess.run(another, check=False).returncode == 0


def test_a_request_to_end_waits_until_the_act_is_done(configured):
    done = []

    def act():
        with configured(True).locked(["osg1"]):
            os.kill(os.getpid(), signal.SIGTERM)
            done.append(True)

    with pytest.raises(SystemExit):
        act()
    assert done == [True]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_node_comes_back_only_when_its_lease_has_stayed_for_a_while(host, run, monkeypatch):
    calls = []
    host.site = host.site.model_copy(update={"lease": host.site.lease.model_copy(update={"hysteresis": 3})})
    monkeypatch.setattr(leasehost.time, "sleep", lambda seconds: calls.append(seconds))
    monkeypatch.setattr(leasing, "bring_back", lambda controller, name: calls.append(name))
    assert start(host, LEASE)
    assert calls == [3, "osg1"]


def test_a_job_that_has_ended_meanwhile_brings_nothing_back(host, run, monkeypatch):
    monkeypatch.setattr(leasing, "bring_back", lambda *_: pytest.fail("brought back"))
    hold(lambda: host, 99)
    assert list(run.glob("lease-*")) == []


@pytest.fixture
def told_to_end(monkeypatch):
    """A function that sends this process, as main has prepared it, the signal by which systemd stops it."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    yield lambda: os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)


def test_the_node_is_put_away_when_the_program_that_has_brought_it_back_is_told_to_end(
    host, run, vmstates, told_to_end, monkeypatch
):
    put_away(host, "osg1", "hv1 was wanted")
    reads, read = [], os.read

    def waits(file, count):
        reads.append(vmstates.look("osg1").machine.state)
        threading.Thread(target=told_to_end).start()
        return read(file, count)

    monkeypatch.setattr(leasehost.os, "read", waits)
    hold(lambda: host, LEASE)
    assert reads == [PowerState.RUNNING]
    assert vmstates.look("osg1").machine is None
    assert vmstates.look("osg1").state.machine
    assert list(run.iterdir()) == []


def test_a_program_that_is_told_to_end_while_it_waits_for_the_hysteresis_brings_nothing_back(
    host, run, vmstates, told_to_end, monkeypatch
):
    put_away(host, "osg1", "hv1 was wanted")
    before = vmstates.look("osg1").state
    monkeypatch.setattr(leasehost.time, "sleep", lambda seconds: told_to_end())
    hold(lambda: host, LEASE)
    assert vmstates.look("osg1").state == before


def test_a_program_that_is_told_to_end_while_it_restores_does_so_and_then_writes_again(
    host, run, vmstates, told_to_end, monkeypatch
):
    put_away(host, "osg1", "hv1 was wanted")
    restore = vmstates.restore
    vmstates.restore = lambda *args: (told_to_end(), restore(*args))
    vmstates.calls.clear()
    monkeypatch.setattr(host, "locks", run, raising=False)
    monkeypatch.setattr(host, "_signals", [], raising=False)
    monkeypatch.setattr(host, "locked", functools.partial(HostController.locked, host))
    opened = iter([host, Host.of(host.controller, "hv1")])
    hold(lambda: next(opened), LEASE)
    assert [call for call, _ in vmstates.calls if call in ("restore", "unpause", "save")] == [
        "restore",
        "unpause",
        "save",
    ]
    assert vmstates.look("osg1").machine is None


def test_while_it_waits_it_is_connected_to_no_host(host, run, monkeypatch):
    """There may be a thousand of them, each with as many programs as it has nodes."""
    monkeypatch.setattr(leasehost, "_wait_for_signal", lambda: None)
    hold(lambda: host, LEASE)
    assert host.connected is False


def test_a_program_that_has_died_is_done_without(host, run, vmstates):
    start(host, LEASE)
    end(host, LEASE)
    assert vmstates.look("osg1").machine is None
    assert vmstates.look("osg1").state.machine


def test_what_is_to_be_put_away_is_known_when_slurm_has_forgotten_the_job(host, slurm, vmstates):
    start(host, LEASE)
    slurm.end_job(LEASE)
    end(host, LEASE)
    assert vmstates.look("osg1").machine is None


def test_a_lease_that_ended_before_it_began_leaves_its_node_alone(host, vmstates):
    end(host, LEASE)
    assert vmstates.look("osg1").machine is not None


def test_what_cant_be_put_away_is_given_up_as_pillar_says(host, slurm, provider):
    start(host, LEASE)
    provider.fail("save", "osg1", "No space left on device")
    end(host, LEASE)
    assert "osg1 can't be suspended and keeps this host: No space left on device" in slurm.drained_hosts["hv1"]


@pytest.mark.parametrize(
    ("states", "asked"),
    [
        ([{"PENDING", "COMPLETING"}, {"PENDING", "COMPLETING"}, {"PENDING"}], True),
        ([{"RUNNING"}], False),
        ([None], False),
    ],
)
def test_a_lease_may_start_again_two_seconds_after_its_epilog(host, slurm, monkeypatch, states, asked):
    told, rest = [], list(states)
    monkeypatch.setattr(leasehost, "_POLL", 0)
    monkeypatch.setattr(leasehost.time, "sleep", lambda seconds: told.append(seconds) if seconds else None)

    def change():
        slurm.end_job(LEASE) if LEASE in slurm._jobs else None
        if state := rest.pop(0):
            slurm.queue_lease(LEASE, "osg1")
            slurm.change_job(LEASE, *state)

    slurm.before["jobs"] = change
    monkeypatch.setattr(slurm, "start_now", told.append)
    again(host, LEASE)
    assert told == ([2, LEASE] if asked else [])


def test_an_error_is_an_exit_status(monkeypatch, tmp_path):
    def fail(path=None):
        raise OperationFailed("no")

    monkeypatch.setattr(sys, "argv", ["lease", "end", "5"])
    monkeypatch.setattr(leasehost, "RUN", str(tmp_path))
    monkeypatch.setattr(HostController, "open", fail)
    monkeypatch.setattr(leasehost.logging, "basicConfig", lambda **_: None)  # would outlive this test
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert leasehost.main() == 1
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_library_on_a_host_does_not_load_what_takes_long():
    code = (
        "import sys; from saltmarsh import leasehost; print('salt.cloud' in sys.modules, 'salt.config' in sys.modules)"
    )
    path = str(Path(leasehost.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False False\n"
