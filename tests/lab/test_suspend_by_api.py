"""
The API of the real controller, from another machine over TLS: each role does what it may, and nothing else.

Nodes are taken that other tests of suspending have left, and the one is shrunk that the next do not need.
"""

import json

import pytest
from elastic import assert_free, have, must, salt_call, slurm_node

# Logs in and calls runners; an answer of the API is its status and its value.
CLIENT = """
import json, ssl, sys, urllib.error, urllib.request
authority, user, password, calls = sys.argv[1:]
trust = ssl.create_default_context(cafile=authority or None)


def post(path, value, **headers):
    headers |= {"Content-Type": "application/json", "Accept": "application/json"}
    request = urllib.request.Request("https://ctl.lab:8443" + path, json.dumps(value).encode(), headers)
    try:
        with urllib.request.urlopen(request, context=trust) as answer:
            return answer.status, json.load(answer)["return"][0]
    except urllib.error.HTTPError as err:
        return err.code, None


status, login = post("/login", {"username": user, "password": password, "eauth": "file"})
said = [[status, None]]
for fun, kwarg in json.loads(calls) if login else ():
    said.append(post("/", [{"client": "runner", "fun": fun, "kwarg": kwarg}], **{"X-Auth-Token": login["token"]}))
print(json.dumps(said))
"""
FIRST, SECOND = "vn001", "vn002"
AUTHORITY = "/etc/pki/CA/cacert.pem"
FOREIGN = ["elastic_api.rotate", "salt.cmd", "state.orchestrate", "test.arg"]


@pytest.fixture(scope="module", autouse=True)
def applied(lab):
    """What applying the state on the controller says."""
    return salt_call(lab, "ctl", "state.apply", "salt.api", timeout=300)


@pytest.fixture(scope="module")
def node(lab):
    """One of two nodes, ready."""
    have(lab, FIRST, SECOND)
    return SECOND


def call(lab, user, *calls, password=None, authority=AUTHORITY):
    """A user on hv1 logs in and makes calls, each a function and its arguments; the process of it."""
    password = password or lab.exec("ctl", "cat", f"/etc/salt/api/{user}.password").stdout.strip()
    argv = ("python3", "-c", CLIENT, authority, user, password, json.dumps(calls))
    return lab.exec("hv1", *argv, check=False, timeout=300)


def answers(lab, user, *calls):
    """The status and the value of each call of a user who may log in."""
    done = call(lab, user, *calls)
    assert done.returncode == 0, done.stderr
    login, *others = json.loads(done.stdout)
    assert login[0] == 200
    return others


def statuses(lab, user, functions):
    """By function, how a call without arguments is answered."""
    said = answers(lab, user, *([function, {}] for function in functions))
    return {function: status for function, (status, _) in zip(functions, said, strict=True)}


def test_the_state_is_applied_on_the_controller(applied):
    assert {key: chunk["comment"] for key, chunk in applied.items() if not chunk["result"]} == {}


def test_a_client_knows_the_controller_by_the_sites_authority_alone(lab):
    assert "CERTIFICATE_VERIFY_FAILED" in call(lab, "monitor", authority="").stderr
    assert statuses(lab, "monitor", ["elastic.pools"]) == {"elastic.pools": 200}


def test_nobody_gets_in_without_the_password(lab):
    assert json.loads(call(lab, "operator", ["elastic.pools", {}], password="guess").stdout) == [[401, None]]


def test_a_viewer_sees_the_nodes_and_can_do_nothing_to_them(lab, node):
    [[_, pools], [_, status]] = answers(lab, "monitor", ["elastic.pools", {}], ["elastic.status", {"nodes": node}])
    assert pools["virtual"]["ready"] == 2
    assert status[node]["state"] == "ready"
    beyond = [f"elastic.{verb}" for verb in ("suspend", "resume", "shrink", "grow", "reconcile", "nudge")] + FOREIGN
    assert statuses(lab, "monitor", beyond) == dict.fromkeys(beyond, 401)


def test_a_scheduler_suspends_and_resumes_and_can_do_nothing_else(lab, node):
    [[_, suspended]] = answers(lab, "slurm", ["elastic.suspend", {"nodes": node}])
    assert list(suspended) == [node]
    assert must(lab, "status", node)[node]["state"] == "suspended"
    assert "suspended by slurm" in slurm_node(lab, node)[1]
    [[_, resumed]] = answers(lab, "slurm", ["elastic.resume", {"nodes": node}])
    assert list(resumed) == [node]
    assert must(lab, "status", node)[node]["state"] == "ready"
    beyond = [f"elastic.{verb}" for verb in ("status", "pools", "shrink", "grow", "reconcile", "nudge")] + FOREIGN
    assert statuses(lab, "slurm", beyond) == dict.fromkeys(beyond, 401)


def test_an_operator_does_everything_that_the_runner_can_and_nothing_else_of_salt(lab, node):
    [[_, planned], [_, gone]] = answers(
        lab, "operator", ["elastic.grow", {"what": 1, "test": True}], ["elastic.shrink", {"what": node}]
    )
    assert len(planned["would grow"]["nodes"]) == 1
    assert gone == {"gone": [node]}
    assert_free(lab, node)
    assert statuses(lab, "operator", FOREIGN) == dict.fromkeys(FOREIGN, 401)
