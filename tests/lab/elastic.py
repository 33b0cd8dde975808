"""The runner in the lab, and all that there is of a node anywhere."""

import json
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass

from saltcloud import traces, wait_for

LEDGER = "/var/lib/saltmarsh/ledger.db"
SITE_PILLAR = "/srv/pillar-site/secret.sls"
# Tests that run in the background of a shell hand an ignored SIGINT down.
_RUNNER = ("env", "--default-signal=INT", "salt-run", "--log-level=quiet", "--out=json")
_QUERY = (
    "import json, sqlite3, sys; ledger = sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=True);"
    "print(json.dumps([ledger.execute(query).fetchall() for query in sys.argv[2:]]))"
)
_WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"
_KEYS = ("minions", "minions_pre", "minions_denied", "minions_rejected")


@dataclass(frozen=True)
class Said:
    """What a runner said: its exit status, its answer, and its lines of progress."""

    code: int
    answer: object
    progress: str


def elastic(lab, verb, *arguments, timeout=120):
    """Run ``salt-run elastic.VERB``; its exit status is the caller's business."""
    return said(begin(lab, verb, *arguments), timeout)


def begin(lab, verb, *arguments):
    """Begin to run ``salt-run elastic.VERB``; :func:`said` waits for its end."""
    return lab.start("ctl", *_RUNNER, f"elastic.{verb}", *arguments)


def said(process, timeout=120):
    """What a runner that was begun has said in the end."""
    try:
        out, progress = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return Said(process.returncode, json.loads(out) if out.strip() else None, progress)


def must(lab, verb, *arguments, timeout=900):
    """The answer of a runner that does what it is asked for; not by salt-run, which takes a while to begin."""
    answer, progress = lab.runner(f"elastic.{verb}", *arguments, timeout=timeout)
    refused = isinstance(answer, dict) and "error" in answer or isinstance(answer, str)
    assert not refused, f"elastic.{verb} {' '.join(arguments)}: {answer}\n{progress}"
    return answer


def assert_refused(done, code, *words):
    """The runner ended with this exit status and one line that has these words."""
    assert done.code == code, done
    assert done.answer["retcode"] == code
    assert "\n" not in done.answer["error"]
    assert "Traceback" not in done.answer["error"] + done.progress
    for word in words:
        assert word in done.answer["error"]


def ask_ledger(lab, *queries):
    """The rows of each query; for what no runner tells, such as process ids and fractions of seconds."""
    return json.loads(lab.exec("ctl", "python3", "-c", _QUERY, LEDGER, *queries).stdout)


def whole_ledger(lab):
    """Everything that the ledger holds."""
    return ask_ledger(lab, *(f"SELECT * FROM {table} ORDER BY 1" for table in ("nodes", "operations", "history")))


def wait_state(lab, name, state, seconds):
    """Until the ledger has a node in a state."""
    query = f"SELECT state FROM nodes WHERE name = '{name}'"
    wanted = [] if state == "free" else [[state]]
    wait_for(lambda: ask_ledger(lab, query)[0] == wanted, seconds, f"{name} {state}")


def signal_owner(lab, name, signal):
    """Send a signal to the process that holds a node in the ledger."""
    query = "SELECT pid FROM operations JOIN nodes ON nodes.operation = operations.id WHERE name = "
    [[[pid]]] = ask_ledger(lab, f"{query}'{name}'")
    lab.exec("ctl", "kill", f"-{signal}", pid)


def remains(lab, name):
    """All that a node has left: domains and files on the hosts, a key on the master, its name in DNS."""
    keys = [f"/etc/salt/pki/master/{directory}/{name}" for directory in _KEYS]
    there = lab.exec("ctl", "find", *keys, f"/var/lib/saltmarsh/dns/{name}", check=False).stdout.split()
    return traces(lab, name) + there + lab.exec("ctl", "getent", "hosts", name, check=False).stdout.split()


def assert_free(lab, *names):
    """Names can be claimed again, and nothing is left of the nodes that had them."""
    states = {name: node["state"] for name, node in must(lab, "status", ",".join(names)).items()}
    assert states == dict.fromkeys(names, "free")
    assert [trace for name in names for trace in remains(lab, name)] == []


def have(lab, *names):
    """Exactly these nodes are there, ready and without a user's job; those that other tests have left are taken."""
    lab.exec("ctl", "scancel", "--user=alice")
    # Free ones are told of, too, while Slurm has them otherwise than it should.
    there = {name: node for name, node in must(lab, "status").items() if node["state"] != "free"}
    unfit = [name for name, node in there.items() if name not in names or node["state"] != "ready"]
    if unfit:
        must(lab, "shrink", ",".join(unfit), "force=True")
    if missing := [name for name in names if name not in there or name in unfit]:
        must(lab, "grow", ",".join(missing))


def slurm_node(lab, name):
    """State and reason of a node in Slurm, and its address."""
    [node] = json.loads(lab.exec("ctl", "scontrol", "show", "node", name, "--json").stdout)["nodes"]
    return "+".join(sorted(node["state"])), node["reason"], node["address"]


def salt_call(lab, machine, *arguments, timeout=120):
    """What an execution function returns on a machine."""
    done = lab.exec(machine, "salt-call", "--out=json", "--log-level=quiet", *arguments, timeout=timeout)
    return json.loads(done.stdout)["local"]


@contextmanager
def site_pillar(lab, **more):
    """Pillar with more keys on the top level, until the end of the block."""
    before = lab.exec("ctl", "cat", SITE_PILLAR).stdout
    lab.exec("ctl", "python3", "-c", _WRITE, SITE_PILLAR, json.dumps(json.loads(before) | more))
    try:
        yield
    finally:
        lab.exec("ctl", "python3", "-c", _WRITE, SITE_PILLAR, before)


@contextmanager
def powered_off(lab, machine):
    """A machine is off until the end of the block; then it boots and gets its highstate."""
    lab.exec(machine, "systemctl", "poweroff", "--force", "--force", check=False)
    off = f"{machine} is not running"  # one that is just ending runs no command, either
    wait_for(lambda: lab.exec(machine, "true", check=False).stderr.startswith(off), 60, f"{machine} is off")
    try:
        yield
    finally:
        up = lab.run("up", timeout=300)
        assert up.returncode == 0, up.stdout + up.stderr
