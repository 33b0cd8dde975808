"""Each role can call its verbs of the runner elastic, and nothing else; no argument is more than a value."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from salt.netapi import CLIENTS

RUNNER = Path(__file__).resolve().parents[3] / "salt/_runners/elastic.py"
VERBS = {
    node.name: [argument.arg for argument in node.args.args]
    for node in ast.parse(RUNNER.read_text()).body
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
}
MAY = {
    "operator": set(VERBS),
    "slurm": {"suspend", "resume"},
    "monitor": {"status", "report", "timeline", "pools", "history"},
}
FOREIGN = [
    "elastic_api.revoke", "elastic_api.rotate", "elastic.Controller", "elastic.os.system", "elasticx.status",
    "elastic.status.x", "test.arg", "salt.cmd", "salt.execute", "salt.functions", "state.orchestrate", "cloud.action",
    "auth.mk_token", "jobs.list_jobs", "event.send", "pillar.show_pillar", "config.get", "reactor.list", "doc.runner",
]  # fmt: skip


@pytest.fixture(scope="module")
def users(served):
    """A client for each user, logged in."""
    from_user = {}
    for user in MAY:
        from_user[user] = client = served.client()
        assert client.login(user).status == 200
    return from_user


@pytest.mark.parametrize("user", MAY)
def test_a_role_reaches_its_verbs_and_no_other(users, bus, user):
    """An argument that no verb has lets nothing happen: the answer says whether the verb was reached."""
    for verb in VERBS:
        mark = bus.mark()
        answer = users[user].call(f"elastic.{verb}", nosuch=1)
        if verb in MAY[user]:
            assert answer.status == 200, verb
            assert "; arguments are " in answer.value["error"]
            assert bus.functions_since(mark) == [f"runner.elastic.{verb}"]
        else:
            assert answer.status == 401, verb
            assert bus.functions_since(mark) == []


def test_a_viewer_gets_answers(users):
    assert users["monitor"].call("elastic.pools").value["virtual"]["free"] == 16
    assert users["monitor"].call("elastic.status", nodes="vn001").value["vn001"]["state"] == "free"
    assert users["monitor"].call("elastic.history", node="vn001").value == []


def test_the_how_tos_example_does_what_it_says(served, checkout):
    (example,) = re.findall(
        r"^```python\n(.*?)^```", (checkout / "docs/howto/api.md").read_text(), re.MULTILINE | re.DOTALL
    )
    for there, here in {
        "https://ctl.lab:8443": f"https://localhost:{served.port}",
        "/etc/saltmarsh/authority.pem": served.upper / "pki/CA/cacert.pem",
        "/etc/saltmarsh/monitor.password": served.users / "monitor.password",
    }.items():
        assert there in example
        example = example.replace(there, str(here))
    run = [sys.executable, "-c", f"{example}\nprint(json.dumps([pools, nodes]))"]
    pools, nodes = json.loads(subprocess.run(run, capture_output=True, check=True).stdout)
    assert pools["virtual"]["free"] == 16
    assert set(nodes) == {"vn001", "vn002", "vn003", "vn004"}


def test_what_takes_long_can_be_asked_for_and_returns_at_once(users, bus):
    mark = bus.mark()
    asked = users["slurm"].call("elastic.resume", client="runner_async", nodes="vn001").value
    assert asked["tag"] == f"salt/run/{asked['jid']}"
    bus.wait(mark, "runner.elastic.resume")


@pytest.mark.parametrize("user", MAY)
def test_no_other_runner_can_be_called(users, bus, user):
    mark = bus.mark()
    for function in FOREIGN:
        for client in ("runner", "runner_async"):
            assert users[user].call(function, client=client).status in (400, 401, 500), (function, client)
    assert bus.functions_since(mark) == []


@pytest.mark.parametrize("client", sorted({*CLIENTS, "run", "__init__", "nosuch"} - {"runner", "runner_async"}))
def test_no_other_door_of_salt_is_open_to_an_operator(users, bus, client):
    mark = bus.mark()
    for function in ("test.ping", "cmd.run", "key.list_all", "elastic.status"):
        chunk = {"client": client, "fun": function, "tgt": "*", "match": "*", "arg": ["id"]}
        assert users["operator"].post("/", [chunk]).status == 400
    assert bus.functions_since(mark) == []


def test_one_request_can_not_borrow_the_rights_of_another(users, served, bus):
    """Whatever else is in a request, the session alone says who asks."""
    mark = bus.mark()
    shrink = {"client": "runner", "fun": "elastic.shrink", "kwarg": {"what": "vn001"}}
    for more in (
        {"username": "operator", "password": served.password("operator"), "eauth": "file"},
        {"token": users["operator"].token},
        {"user": "root", "key": (Path(served.settings["cachedir"]) / ".root_key").read_text()},
        {"__user__": "root", "__pub_user": "root"},
        {"kwarg": {"what": "vn001", "__user__": "root", "__pub_user": "root"}},
    ):
        assert users["monitor"].post("/", [shrink | more]).status == 401
    assert bus.functions_since(mark) == []


def test_a_request_after_one_that_is_refused_is_not_made(users, bus):
    mark = bus.mark()
    chunks = [{"client": "runner", "fun": f"elastic.{verb}"} for verb in ("shrink", "status")]
    assert users["monitor"].post("/", chunks).status == 401
    assert bus.functions_since(mark) == []


def hostile(mark):
    """A value that makes a file wherever it is taken for more than a value."""
    return f"vn001'\";touch {mark}|touch {mark}&$(touch {mark})`touch {mark}`{{{{salt['cmd.run']('touch {mark}')}}}}"


# What the other parameters have to be for one to be looked at.
PLAIN = {
    "what": "vn001",
    "nodes": "vn001",
    "node": "vn001",
    "host": "hv1",
    "checkpoint": 1,
    "verb": "stop",
    "pool": "virtual",
}


@pytest.mark.parametrize(("verb", "parameter"), [(verb, name) for verb, names in VERBS.items() for name in names])
def test_no_parameter_reaches_a_shell_or_a_template(users, tmp_path, verb, parameter):
    mark = tmp_path / "mark"
    others = {name: PLAIN[name] for name in VERBS[verb] if name in PLAIN and name != parameter}
    answer = users["operator"].call(f"elastic.{verb}", **others, **{parameter: hostile(mark)})
    assert answer.status == 200
    assert "\n" not in answer.value["error"]
    assert answer.value["retcode"] in (1, 2)
    assert not mark.exists()


def test_nobody_lets_the_master_write_a_file(users, tmp_path):
    for user, verb, arguments in (
        ("monitor", "timeline", {"out": f"{tmp_path}/x.svg"}),
        ("operator", "grow", {"what": 1, "map_out": f"{tmp_path}/x.map"}),
    ):
        said = users[user].call(f"elastic.{verb}", **arguments).value["error"]
        assert said.endswith("only salt-run on the controller writes files")
    assert list(tmp_path.iterdir()) == []
