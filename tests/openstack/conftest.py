"""Two real OpenStack clouds and the lab, up for the whole session, and salt-cloud with what is shipped for it."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import openstack
import pytest
import salt.utils.yaml
from hands import lab  # noqa: F401 (a fixture)
from neighbours.minions import Minions
from neighbours.slurm import Slurm
from neighbours.vmstate import Munge

from saltmarsh import joining
from saltmarsh.cloud import Cloud
from saltmarsh.controller import Controller
from saltmarsh.dns import HostsDirectory
from saltmarsh.ledger import Ledger
from saltmarsh.pools import Site
from saltmarsh.tunnel import Peers


class OneCloud:
    """The hands that a test has on a cloud, as its administrator."""

    def __init__(self, name, auth):
        self.name = name
        self.admin = openstack.connect(load_envvars=False, auth=auth, region_name="RegionOne")
        self.admin.compute.default_microversion = "2.95"  # see saltmarsh.openstack_link
        self.project = self.admin.identity.find_project("cluster").id

    def servers(self):
        """The cluster's servers, by name."""
        found = self.admin.compute.servers(all_projects=True, project_id=self.project)
        return {server.name: server for server in found}

    def left(self):
        """How many servers and ports of the cluster there are."""
        return len(self.servers()), len(list(self.admin.network.ports(project_id=self.project)))

    def allow(self, instances):
        """Set the quota."""
        self.admin.compute.update_quota_set(self.project, instances=instances)

    def close(self, closed):
        """Let no host take another server, or let them again."""
        for service in self.admin.compute.services(binary="nova-compute"):
            act = self.admin.compute.disable_service if closed else self.admin.compute.enable_service
            act(service)


@pytest.fixture(scope="session")
def clouds(checkout):
    """Both clouds by name, up; what a session starts, it stops again."""
    script = checkout / "lab/openstack"
    was_up = subprocess.run([script, "status"], capture_output=True).returncode == 0
    up = subprocess.run([script, "up"], capture_output=True, text=True, timeout=1200)
    if up.returncode != 0:
        pytest.fail(f"lab/openstack up: exit status {up.returncode}\n{up.stdout}{up.stderr}", pytrace=False)
    sys.path.insert(0, str(checkout / "lab"))
    from labtools import network
    from labtools import openstack as box

    with network.entered(box.reach()):
        yield {name: OneCloud(name, box.auth(cloud, "admin", "admin")) for name, cloud in box.CLOUDS.items()}
    if not was_up:
        subprocess.run([script, "down"], check=True, capture_output=True, timeout=300)


@pytest.fixture
def empty(clouds):
    """The clouds; after the test they must be as it found them: empty, open, and with room in the quota."""
    yield clouds
    for cloud in clouds.values():
        cloud.close(False)
        cloud.allow(200)
    assert {name: cloud.left() for name, cloud in clouds.items()} == {"engage1": (0, 0), "kaizen": (0, 0)}


@pytest.fixture
def configuration(checkout, clouds, tmp_path):
    """The directory of salt-cloud's configuration: the shipped one, with where clouds.yaml is."""
    providers = salt.utils.yaml.safe_load((checkout / "cloud.providers.d/openstack.conf").read_text())
    for provider in providers.values():
        provider["clouds_file"] = str(checkout / ".lab/clouds/clouds.yaml")
    pki, sock = tmp_path / "pki", tmp_path / "sock"
    for directory in (pki / "minions", pki / "minions_pre", pki / "minions_rejected", sock):
        directory.mkdir(parents=True)
    (pki / "master.pub").write_text("the master's key")
    root = {"root_dir": str(tmp_path), "pki_dir": str(pki), "sock_dir": str(sock)}
    files = {
        "cloud.providers.d/openstack.conf": providers,
        "cloud.profiles.d/openstack.conf": None,
        "master": root,
        "cloud": root | {"module_dirs": [str(checkout / "salt")], "start_action": None},
    }
    for name, values in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(values) if values else (checkout / name).read_text())
    return tmp_path


@pytest.fixture
def salt_cloud(configuration):
    """Run plain salt-cloud; returns what it says, read as JSON."""

    def salt_cloud(*arguments):
        command = [Path(sys.executable).parent / "salt-cloud", "-c", configuration, "--out=json", "--assume-yes"]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    return salt_cloud


@pytest.fixture
def controller(checkout, configuration, clouds, monkeypatch):
    """What the verbs act through: real clouds, and neighbours for minions and Slurm, as the computes are fake."""
    monkeypatch.setattr(joining, "REGISTER_SECONDS", 5)
    pillar = salt.utils.yaml.safe_load((checkout / "pillar/elastic.sls").read_text())
    pools = salt.utils.yaml.safe_load((checkout / "pillar/clouds.sls").read_text())["elastic"]["pools"]
    state = configuration / "state"
    state.mkdir()
    site = Site.from_pillar({"elastic": pillar["elastic"] | {"pools": pools, "state_dir": str(state)}})
    slurm = Slurm(site)
    machines = SimpleNamespace(
        machine_files=SimpleNamespace(
            iterdir=lambda: [server for cloud in clouds.values() for server in cloud.servers().values()]
        )
    )
    made = Controller(
        site=site,
        ledger=Ledger(state / "ledger.db"),
        cloud=Cloud(str(configuration / "cloud")),
        minions=Minions(machines, slurm),
        dns=HostsDirectory(state / "dns", site.network.domain),
        tunnel=Peers(state / "tunnel", site),
        slurm=slurm,
        munge=Munge,
    )
    yield made
    made.ledger.close()
