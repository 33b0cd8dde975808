"""Plain salt-cloud in the lab, and what it leaves behind."""

import json
import time


def salt_cloud(lab, *arguments, check=True):
    """What salt-cloud says, read as JSON."""
    done = lab.exec("ctl", "salt-cloud", "--out=json", "--assume-yes", *arguments, check=check, timeout=180)
    return json.loads(done.stdout)


def run_map(lab, name, profile="virtual", **entry):
    """Run a map of one machine, by default without deploying; what it says of the machine."""
    entry = {"deploy": False, "address": f"10.77.0.{100 + int(name[2:])}"} | entry
    path = f"/root/{name}.map"
    lab.exec("ctl", "sh", "-c", 'printf %s "$1" > "$2"', "sh", json.dumps({profile: [{name: entry}]}), path)
    return salt_cloud(lab, "-m", path)[name]


def traces(lab, name):
    """All that a machine has left: domains and volumes on the hosts, its key on the master."""
    found = lab.exec("ctl", "find", "/etc/salt/pki/master/minions", "-name", name).stdout.split()
    for host in ("hv1", "hv2"):
        found += [word for word in lab.exec(host, "virsh", "list", "--all", "--name").stdout.split() if word == name]
        found += lab.exec(host, "find", "/srv/nodes", "-name", f"{name}.*").stdout.split()
    return found


def ask(lab, name, command, patience=50):
    """What a command on a machine says, through its minion; nothing if the minion doesn't answer within the seconds."""
    salt = ("salt", "--out=json", "--static", f"--timeout={patience}")
    done = lab.exec("ctl", *salt, name, "cmd.run", command, check=False, timeout=120)
    return json.loads(done.stdout).get(name) if done.returncode == 0 else None


def wait_for(condition, seconds, what):
    """Until a condition holds; the test fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(1)
