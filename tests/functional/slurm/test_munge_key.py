"""
A new munge key, as the state brings it to real mungeds: docs/security.md.

Each member of the cluster has its own munged, its own /etc/munge, and the key that pillar gives it.
"""

import base64
import json
import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import NODES, wait_until

from saltmarsh import slurm

SALT_CALL = "/opt/saltmarsh/bin/salt-call"
ROOTS = {"file": "salt", "pillar": "pillar"}
REPLAYED = 17  # munge(3)
INVALID = "unmunge: Error: Invalid credential"
OWN = ("/etc/munge", "/run/munge", "/var/lib/munge", "/var/log/munge")


def new_key():
    return base64.b64encode(secrets.token_bytes(1024)).decode()


class Member:
    """A machine with a munged of its own: beside the controller, but with its own files and processes."""

    def __init__(self, machine, checkout, name):
        self._directory = machine.shared / f"munge-{name}"
        (self._directory / "pillar").mkdir(parents=True)
        shutil.copytree(checkout / "salt/munge", self._directory / "salt/munge")
        roots = {f"{kind}_roots": {"base": [f"{self._directory}/{part}"]} for kind, part in ROOTS.items()}
        minion = {"id": name, "root_dir": str(self._directory), "file_client": "local", **roots}
        (self._directory / "minion").write_text(json.dumps(minion))
        (self._directory / "pillar/top.sls").write_text('{"base": {"*": ["secret"]}}')
        mounts = " && ".join(f"mount -t tmpfs own {path}" for path in OWN)
        script = (
            f"{mounts} && chown munge:munge {' '.join(OWN)} && touch /run/munge/ready && while sleep 60; do :; done"
        )
        namespaces = ["--mount", "--pid", "--fork", "--mount-proc"]
        process = subprocess.Popen(machine.enter("unshare", *namespaces, "sh", "-c", script))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        self._pid = wait_until(lambda: children.read_text().strip(), 20)
        wait_until(lambda: self.run("test", "-e", "/run/munge/ready").returncode == 0, 20)

    def run(self, *argv, **kwargs):
        """Run a command in it."""
        enter = ["nsenter", "-t", self._pid, "-m", "-n", "-u", "-i", "-p", "-r", "-w", "--", *map(str, argv)]
        return subprocess.run(enter, capture_output=True, text=True, cwd="/", check=False, **kwargs)

    def apply(self, key):
        """Apply the state with a key in pillar; returns what the master would be told."""
        secret = self._directory / "pillar/secret.sls"
        secret.touch(mode=0o600)
        secret.write_text(json.dumps({"munge": {"key": key}}))
        done = self.run(SALT_CALL, "-c", self._directory, "--local", "--out=json", "state.apply", "munge")
        chunks = json.loads(done.stdout)["local"]
        assert not {chunk["name"]: chunk["comment"] for chunk in chunks.values() if not chunk["result"]}
        wait_until(lambda: self.run("munge", "--no-input").returncode == 0, 20)
        return done.stdout

    def munged(self):
        """The process id of its munged."""
        return self.run("cat", "/run/munge/munged.pid").stdout.strip()

    def credential(self):
        return self.run("munge", "--no-input").stdout

    def decode(self, credential):
        """What munge says of a credential."""
        done = self.run("unmunge", "--no-output", input=credential)
        return done.stderr.strip() or {0: "good", REPLAYED: "replayed"}[done.returncode]


@pytest.fixture(scope="module")
def members(machine, checkout):
    """Two members with the same key."""
    members = Member(machine, checkout, "one"), Member(machine, checkout, "two")
    key = new_key()
    for member in members:
        member.apply(key)
    return members


def test_members_take_each_others_credentials_once(members):
    one, two = members
    credential = one.credential()
    assert two.decode(credential) == "good"
    assert two.decode(credential) == "replayed"
    assert one.decode(two.credential()) == "good"


def test_the_key_is_munges_alone(members):
    for member in members:
        assert member.run("stat", "-c", "%a %U %G", "/etc/munge/munge.key").stdout == "400 munge munge\n"
        assert member.run("stat", "-c", "%a %U", "/etc/munge").stdout == "700 munge\n"


def test_a_new_key_ends_what_the_old_one_vouched_for_and_says_so(members):
    one, two = members
    before = one.credential(), two.credential()
    key = new_key()
    one.apply(key)
    # In between, nobody believes the other, and both say so.
    assert one.decode(two.credential()) == two.decode(one.credential()) == INVALID
    two.apply(key)
    assert [two.decode(one.credential()), one.decode(two.credential())] == ["good", "good"]
    assert {member.decode(old) for member in members for old in before} == {INVALID}


def test_the_key_is_not_in_what_the_master_is_told(members):
    key = new_key()
    for member in members:
        told = member.apply(key)
        assert "munge.key" in told
        assert key[:40] not in told


def test_munged_goes_on_while_the_key_stays(members):
    key = new_key()
    for member in members:
        member.apply(key)
    running = [member.munged() for member in members]
    for member in members:
        member.apply(key)
    assert [member.munged() for member in members] == running


def test_slurm_goes_on_with_a_new_key_without_being_restarted(cluster, checkout):
    slurm.expect({"vn001": NODES["vn001"]})
    cluster.boot("vn001")
    wait_until(lambda: slurm.nodes(["vn001"])["vn001"].registered, 20)
    before = cluster.submit("-w", "vn001", "-t", "60")
    cluster.counts_on(before)
    daemons = set(cluster.processes("slurmctld", "slurmd"))
    renew_munge(cluster)
    cluster.counts_on(before)
    slurm.cancel_jobs([cluster.job(before).handle])
    after = cluster.submit("-w", "vn001", "-t", "60")
    cluster.counts_on(after)
    assert slurm.nodes(["vn001"])["vn001"].registered
    assert daemons <= set(cluster.processes("slurmctld", "slurmd"))


def renew_munge(cluster):
    """Another key for the munged of the controller and the nodes, which is restarted."""
    old = cluster.run("munge", "--no-input")
    os.kill(int(cluster.run("cat", "/run/munge/munged.pid")), signal.SIGTERM)
    wait_until(lambda: not (cluster.root / "run/munge/munged.pid").exists(), 20)
    cluster.run("mungekey", "--create", "--force")
    cluster.run("chown", "munge:munge", "/etc/munge/munge.key")
    cluster.run("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged")
    assert cluster.run("unmunge", "--no-output", check=False, input=old, stderr=subprocess.STDOUT) == INVALID
