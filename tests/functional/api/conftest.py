"""
The API as the state salt.api sets it up: a real salt-master and a real salt-api over TLS on loopback.

The state is applied where writing to /etc goes to a directory of the test; both daemons run with what it has written.
"""

import os
import shutil

import pytest
from apisite import Bus, Site


@pytest.fixture(scope="session")
def site(checkout, tmp_path_factory):
    """A controller to which the state has been applied; nothing runs yet. Needs root."""
    if os.geteuid() != 0:
        pytest.skip("needs root to put something over /etc")
    site = Site(tmp_path_factory.mktemp("api"), checkout)
    site.applied = site.apply("salt.api")
    site.configure()
    yield site
    site.log.close()
    shutil.rmtree(site.directory / "work")


@pytest.fixture(scope="session")
def served(site):
    """The controller with its daemons."""
    with site.running("salt-master", site.settings["ret_port"]), site.running("salt-api", site.port):
        yield site


@pytest.fixture(scope="session")
def bus(served):
    """What is said on the master's bus."""
    bus = Bus(served.settings)
    yield bus
    bus.close()
