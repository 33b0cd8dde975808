"""The directory that dnsmasq watches: complete files, readable for it, one for each name."""

import stat

import pytest

from saltmarsh.dns import HostsDirectory

ADDRESSES = {"vn001": "10.77.0.101", "vn002": "10.77.0.102"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "dns"


@pytest.fixture
def dns(path):
    return HostsDirectory(path, "lab")


def test_a_name_has_its_address_with_and_without_the_domain(dns, path):
    dns.add(ADDRESSES)
    assert {file.name: file.read_text() for file in path.iterdir()} == {
        "vn001": "10.77.0.101 vn001 vn001.lab\n",
        "vn002": "10.77.0.102 vn002 vn002.lab\n",
    }


def test_without_a_domain_a_name_stands_alone(path):
    HostsDirectory(path).add(ADDRESSES)
    assert (path / "vn001").read_text() == "10.77.0.101 vn001\n"


def test_dnsmasq_which_is_not_root_can_read_it(dns, path):
    dns.add(ADDRESSES)
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o644}


def test_names_are_those_that_are_served(dns, path):
    dns.add(ADDRESSES)
    (path / ".left-by-a-crash").touch()
    assert dns.names() == {"vn001", "vn002"}


def test_a_name_that_is_removed_is_not_served(dns):
    dns.add(ADDRESSES)
    dns.remove(["vn001"])
    assert dns.names() == {"vn002"}


def test_adding_and_removing_can_be_repeated(dns, path):
    for _ in range(2):
        dns.add(ADDRESSES)
    dns.add({"vn001": "10.77.0.7"})
    assert (path / "vn001").read_text() == "10.77.0.7 vn001 vn001.lab\n"
    for _ in range(2):
        dns.remove(ADDRESSES)
    assert dns.names() == frozenset()


def test_a_file_is_never_there_half_written(dns, path, monkeypatch):
    """Whatever stands under a name when it appears is complete: it is moved there."""
    moved = []
    rename = type(path).rename

    def look(self, target):
        moved.append((target.exists(), self.read_text()))
        return rename(self, target)

    monkeypatch.setattr(type(path), "rename", look)
    dns.add({"vn001": "10.77.0.101"})
    assert moved == [(False, "10.77.0.101 vn001 vn001.lab\n")]


def test_another_process_sees_the_same(dns, path):
    dns.add(ADDRESSES)
    assert HostsDirectory(path, "lab").names() == {"vn001", "vn002"}
