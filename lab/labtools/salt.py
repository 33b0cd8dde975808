"""The hands an administrator has on a new site: install keys, start the first salt-master, ask for highstates."""

import base64
import json
import os
import secrets
import subprocess

from labtools import container
from labtools.settings import CTL, LOG, MACHINES, VENV
from labtools.steps import StepFailed, wait_until

SITE_PILLAR = "/srv/pillar-site"
CALL = ("salt-call", "--retcode-passthrough", "--state-output=changes", "--log-level=warning")


def bootstrap_master():
    """Put the master's own minion and the site's secrets in place, then apply the state that runs a master."""
    site = CTL.root / SITE_PILLAR.lstrip("/")
    site.mkdir(mode=0o700, parents=True, exist_ok=True)
    secret = site / "secret.sls"
    if not secret.exists():
        key = base64.b64encode(secrets.token_bytes(1024)).decode()
        secret.touch(mode=0o600)
        secret.write_text(json.dumps({"munge": {"key": key}}))
        _call(CTL, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/.ssh/id_ed25519")
        public = (CTL.root / "root/.ssh/id_ed25519.pub").read_text().strip()
        (site / "access.sls").write_text(json.dumps({"ssh": {"authorized_keys": [public]}}))
    _minion_configuration()
    _call(CTL, *CALL, "--local", "--file-root=/srv/saltmarsh/salt", "--pillar-root=/srv/saltmarsh/pillar",
          "state.apply", "salt.master", log="master")  # fmt: skip


def accept_minions():
    """Make the machines' minion keys, accept them on the master, and give each machine its own and the master's."""
    master = CTL.root / "etc/salt/pki/master"
    # master.pub is a link to an absolute path inside.
    wait_until(lambda: os.path.lexists(master / "master.pub"), 30, "salt-master makes its key")
    master_key = container.execute(
        CTL, ["cat", "/etc/salt/pki/master/master.pub"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    new = [machine for machine in MACHINES.values() if not (machine.root / "etc/salt/pki/minion/minion.pem").exists()]
    if not new:
        return
    generate = (
        "import json, sys, salt.utils.cloud as c; json.dump([c.gen_keys(2048) for _ in sys.argv[1:]], sys.stdout)"
    )
    made = container.execute(
        CTL,
        [f"{VENV}/bin/python", "-c", generate, *(machine.name for machine in new)],
        check=True,
        stdout=subprocess.PIPE,
    )
    for machine, (private, public) in zip(new, json.loads(made.stdout), strict=True):
        pki = machine.root / "etc/salt/pki/minion"
        pki.mkdir(mode=0o700, parents=True, exist_ok=True)
        (pki / "minion.pem").touch(mode=0o400)
        (pki / "minion.pem").write_text(private)
        (pki / "minion.pub").write_text(public)
        (pki / "minion_master.pub").write_text(master_key)
        (master / "minions" / machine.name).write_text(public)


def start_minion(machine):
    """Apply, masterless, nothing: start the minion the way its package would."""
    _call(machine, "systemctl", "enable", "--now", "salt-minion.service")


def highstate(*machines):
    """Apply the highstate to machines, all at once."""
    running = [(machine, _spawn(machine, [*CALL, "state.highstate"])) for machine in machines]
    failed = [machine.name for machine, process in running if process.wait() != 0]
    if failed:
        logs = ", ".join(f"{LOG}/{name}-highstate.log" for name in failed)
        raise StepFailed(f"highstate of {', '.join(failed)} failed (log: {logs})")


def refresh_pillar(machine):
    """Let a machine's minion read its pillar anew, with the certificate policies in it."""
    _call(machine, "salt-call", "--log-level=warning", "saltutil.refresh_pillar", "wait=True")


def _spawn(machine, argv):
    with (LOG / f"{machine.name}-highstate.log").open("ab") as log:
        return subprocess.Popen(
            container.entry(machine, argv), env=container.ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def _call(machine, *argv, log="bootstrap"):
    path = LOG / f"{machine.name}-{log}.log"
    with path.open("ab") as output:
        output.write(f"\n$ {' '.join(argv)}\n".encode())
        output.flush()
        done = container.execute(machine, argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    if done.returncode != 0:
        raise StepFailed(f"exit status {done.returncode} on {machine.name} from: {' '.join(argv)[:120]} (log: {path})")


def _minion_configuration():
    for machine in MACHINES.values():
        directory = machine.root / "etc/salt/minion.d"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "10-identity.conf").write_text(f"id: {machine.name}\nmaster: {CTL.address}\n")
