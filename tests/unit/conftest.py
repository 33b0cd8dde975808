"""One site in pillar, for every test that needs a pool, and a controller among neighbours that live in the test."""

import neighbours
import pytest

from saltmarsh import growing, guest, joining, resuming, shrinking, suspending
from saltmarsh.pools import Site


@pytest.fixture
def pillar():
    """A fresh pillar with pools ``osg`` (4 nodes) and ``virtual`` (16 nodes), which a test may spoil."""
    return {
        "elastic": {
            "cluster": "lab",
            "controller": {"name": "ctl", "address": "10.77.0.1"},
            "network": {"prefix": 24, "gateway": "10.77.0.254", "nameservers": ["10.77.0.2"], "domain": "lab"},
            "hosts": {"hv1": {"address": "10.77.0.11"}, "hv2": {"address": "10.77.0.12"}},
            "pools": {
                "osg": {
                    "nodes": "osg[1-4]",
                    "addresses": ["10.77.0.51-53", "10.77.0.60"],
                    "profile": "osg",
                    "image": "node.qcow2",
                    "cpus": 2,
                    "memory": 2048,
                    "partition": "osg",
                },
                "virtual": {
                    "nodes": "vn[001-016]",
                    "addresses": "10.77.0.101-116",
                    "profile": "virtual",
                    "image": "node.qcow2",
                    "cpus": 1,
                    "memory": 256,
                    "partition": "virtual",
                    "features": ["vm", "osg"],
                    "weight": 10,
                    "limits": {"max_nodes": 12, "boot_timeout": 300},
                },
            },
        }
    }


@pytest.fixture
def site(pillar):
    """The site of that pillar."""
    return Site.from_pillar(pillar)


@pytest.fixture
def impatient(monkeypatch):
    """Nobody waits longer than it takes here."""
    monkeypatch.setattr(growing, "_POLL", 0.01)
    monkeypatch.setattr(growing, "_LOOK", 0.02)
    monkeypatch.setattr(growing, "_TELL", 0)
    for module in (shrinking, joining, suspending, resuming, guest):
        monkeypatch.setattr(module, "_POLL", 0.01)
    for name in ("STOP_SECONDS", "BUSY_SECONDS"):
        monkeypatch.setattr(suspending, name, 0.2)
    for name in ("REGISTER_SECONDS", "LEFTOVER_SECONDS"):
        monkeypatch.setattr(resuming, name, 0.2)
    monkeypatch.setattr(joining, "REGISTER_SECONDS", 0.2)


@pytest.fixture
def controller(pillar, tmp_path, impatient):
    """What the verbs act through, see neighbours."""
    made = neighbours.controller(pillar, tmp_path)
    yield made
    made.ledger.close()


@pytest.fixture
def provider(controller):
    """The provider's machines and faults."""
    return controller.minions.provider


@pytest.fixture
def minions(controller):
    """The machines' minions."""
    return controller.minions


@pytest.fixture
def slurm(controller):
    """slurmctld."""
    return controller.slurm


@pytest.fixture
def vmstates(controller):
    """The memory of the machines."""
    return controller.vmstates_of("osg1")
