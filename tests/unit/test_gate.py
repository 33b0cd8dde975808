"""The ready gate, among commands that say what chronyd, munged and slurmctld would."""

import itertools
import os
import socket
from types import SimpleNamespace

import pytest

from saltmarsh import gate

TRACKING = "0A4D0001,10.77.0.1,9,1795244400.1,{offset},0.0,0.0,1.5,0.0,0.1,0.0003,0.001,64.2,{leap}"
CONFIG = "Configuration data as of 2026-11-21\nHASH_VAL                = {}\nSlurmctldPort           = 6817\n"
PING = '{"pings": [{"hostname": "ctl", "responding": true}]}'


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Put a command in the only place where commands are found: what it prints, and its exit status."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(name, output="", status=0, errors=""):
        for stream, text in (("out", output), ("err", errors)):
            (tmp_path / f"{name}.{stream}").write_text(text and f"{text}\n")
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n/bin/cat {path}.out\n/bin/cat {path}.err >&2\nexit {status}\n")
        path.chmod(0o755)

    return put


@pytest.fixture
def healthy(command, monkeypatch):
    """A node on which all is well, as far as commands can tell."""
    command("chronyc", TRACKING.format(offset="0.000012", leap="Normal"))
    command("munge", "MUNGE:AwQDAAB:")
    command("unmunge")
    command("scontrol", CONFIG.format("Match"))


# The name


@pytest.fixture
def resolver(monkeypatch):
    """What DNS says of vn001, which this machine is; a test may change it."""
    known = SimpleNamespace(host="vn001", address="127.0.0.1", back=("vn001.lab", ["vn001"]))

    def forward(name):
        if name != "vn001" or known.address is None:
            raise socket.gaierror(-2, "Name or service not known")
        return known.address

    def backward(address):
        if known.back is None:
            raise socket.herror(1, "Unknown host")
        return (*known.back, [address])

    monkeypatch.setattr(socket, "gethostname", lambda: known.host)
    monkeypatch.setattr(socket, "gethostbyname", forward)
    monkeypatch.setattr(socket, "gethostbyaddr", backward)
    return known


@pytest.mark.parametrize("back", [("vn001", []), ("vn001.lab", []), ("alias", ["vn001.lab"])])
def test_a_name_that_leads_to_this_machine_and_back_passes(resolver, back):
    resolver.back = back
    assert gate.check_name("vn001") is None


NAMES = {
    "another host name": ({"host": "localhost"}, "the host name is 'localhost', not 'vn001'"),
    "no address": ({"address": None}, "DNS does not know vn001: [Errno -2] Name or service not known"),
    "no name for the address": ({"back": None}, "DNS does not know vn001: [Errno 1] Unknown host"),
    "another name for the address": (
        {"back": ("vn002.lab", ["vn0011"])},
        "DNS says that 127.0.0.1 is vn002.lab, not vn001",
    ),
    "another machine's address": (
        {"address": "192.0.2.1"},
        "DNS says that vn001 is 192.0.2.1, which is no address of this machine",
    ),
}


@pytest.mark.parametrize(("changes", "trouble"), NAMES.values(), ids=NAMES)
def test_a_name_that_does_not_is_told(resolver, changes, trouble):
    vars(resolver).update(changes)
    assert gate.check_name("vn001") == trouble


def test_a_node_whose_address_is_translated_is_known_by_one_that_it_has_not(resolver):
    resolver.address = "192.0.2.1"
    assert gate.check_name("vn001", translated=True) is None
    resolver.back = ("vn002.lab", [])
    assert gate.check_name("vn001", translated=True) == "DNS says that 192.0.2.1 is vn002.lab, not vn001"


# The clock


@pytest.mark.parametrize("offset", ["0.000012", "-0.499", "0.5"])
def test_a_clock_that_is_right_passes(command, offset):
    command("chronyc", TRACKING.format(offset=offset, leap="Normal"))
    assert gate.check_clock(0.5) is None


CLOCKS = {
    "fast": (TRACKING.format(offset="3.25", leap="Normal"), 0, "the clock is +3.250 s off (at most 0.5 s)"),
    "slow": (TRACKING.format(offset="-0.51", leap="Normal"), 0, "the clock is -0.510 s off (at most 0.5 s)"),
    "not synchronised": (
        TRACKING.format(offset="0.0", leap="Not synchronised"),
        0,
        "chronyd has not synchronised the clock yet",
    ),
    "no chronyd": ("506 Cannot talk to daemon", 1, "chronyd does not answer: 506 Cannot talk to daemon"),
}


@pytest.mark.parametrize(("output", "status", "trouble"), CLOCKS.values(), ids=CLOCKS)
def test_a_clock_that_is_not_is_told(command, output, status, trouble):
    command("chronyc", output, status)
    assert gate.check_clock(0.5) == trouble


def test_a_node_without_chrony_is_told(command):
    assert gate.check_clock(0.5) == "chronyc is not installed"


# Mounts


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """Take a directory for a file system that is mounted read-only or not."""

    def mount(flag):
        path = tmp_path / "mount"
        path.mkdir()
        monkeypatch.setattr(os.path, "ismount", lambda asked: asked == str(path))
        monkeypatch.setattr(os, "statvfs", lambda asked: SimpleNamespace(f_flag=flag))
        return str(path)

    return mount


@pytest.mark.parametrize(("flag", "access"), [(0, "rw"), (0, "write"), (os.ST_RDONLY, "ro")])
def test_a_mount_as_it_should_be_passes_and_nothing_is_left_on_it(mounted, flag, access):
    path = mounted(flag)
    assert gate.check_mount(path, access) is None
    assert os.listdir(path) == []


@pytest.mark.parametrize(
    ("flag", "access", "trouble"),
    [(0, "ro", "mounted rw, expected ro"), (os.ST_RDONLY, "rw", "mounted ro, expected rw")],
)
def test_a_mount_with_other_access_is_told(mounted, flag, access, trouble):
    path = mounted(flag)
    assert gate.check_mount(path, access) == f"{path} is {trouble}"


def test_a_directory_on_which_nothing_is_mounted_is_told(tmp_path):
    assert gate.check_mount(str(tmp_path), "rw") == f"{tmp_path} is not mounted"


def test_a_mount_on_which_root_can_not_write_is_told(mounted, monkeypatch):
    path = mounted(0)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(gate.tempfile, "TemporaryFile", refuse)
    assert gate.check_mount(path, "write") == f"{path}: Permission denied"


def test_a_mount_whose_server_is_away_is_told(mounted, monkeypatch):
    path = mounted(0)

    def fail(path):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(os, "statvfs", fail)
    assert gate.check_mount(path, "rw") == f"{path}: Stale file handle"


# Munge and Slurm


def test_munge_that_reads_its_own_credentials_passes(healthy):
    assert gate.check_munge() is None


def test_munge_that_does_not_run_is_told(healthy, command):
    command("munge", status=6, errors='munge: Error: Failed to access "/run/munge/munge.socket.2"')
    assert gate.check_munge() == 'munge: munge: Error: Failed to access "/run/munge/munge.socket.2"'


def test_munge_that_refuses_its_own_credentials_is_told(healthy, command):
    command("unmunge", status=15, errors="unmunge: Error: Expired credential")
    assert gate.check_munge() == "unmunge: unmunge: Error: Expired credential"


def test_munge_that_is_not_installed_is_told(command):
    assert gate.check_munge() == "munge: [Errno 2] No such file or directory: 'munge'"


def test_slurmctld_with_the_same_configuration_passes(healthy):
    assert gate.check_slurm("ctl") is None


def test_another_slurm_conf_is_told(healthy, command):
    command("scontrol", CONFIG.format("Different Ours=0x1 Slurmctld=0x2"))
    assert gate.check_slurm("ctl") == "slurm.conf differs from slurmctld's"


def test_slurmctld_that_does_not_answer_is_told(healthy, command):
    command("scontrol", status=1, errors="slurm_load_ctl_conf error: Unable to contact slurm controller")
    trouble = gate.check_slurm("ctl")
    assert trouble.startswith("slurmctld on ctl: ")
    assert "Unable to contact slurm controller" in trouble


# All together


def test_a_node_on_which_all_is_well_passes_at_once(healthy, resolver):
    assert gate.check("vn001", "ctl", {}, max_offset=0.5, patience=0) == []


def test_everything_that_is_wrong_is_told(healthy, resolver, command, tmp_path):
    resolver.host = "other"
    command("munge", status=1, errors="no key")
    assert gate.check("vn001", "ctl", {str(tmp_path): "rw"}, max_offset=0.5, patience=0) == [
        "the host name is 'other', not 'vn001'",
        f"{tmp_path} is not mounted",
        "munge: no key",
    ]


def test_what_time_mends_is_waited_for_and_what_is_well_is_not_asked_again(healthy, resolver, monkeypatch):
    monkeypatch.setattr(gate, "_POLL", 0.01)
    asked = {"name": itertools.count(), "clock": itertools.count()}
    monkeypatch.setattr(gate, "check_name", lambda *_: next(asked["name"]) and "asked again")
    monkeypatch.setattr(gate, "check_clock", lambda offset: "not yet" if next(asked["clock"]) < 3 else None)
    assert gate.check("vn001", "ctl", {}, max_offset=0.5, patience=60) == []
    assert next(asked["clock"]) == 4
