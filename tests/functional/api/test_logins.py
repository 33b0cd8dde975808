"""Who may log in, for how long, and how it ends; and that passwords and tokens are nowhere to be found."""

import hashlib
import time
from pathlib import Path

import pytest
import salt.auth


@pytest.fixture
def operator(served):
    client = served.client()
    assert client.login("operator").status == 200
    return client


@pytest.fixture
def tokens(served):
    """Salt's own tokens."""
    with salt.auth.LoadAuth(served.settings) as tokens:
        yield tokens


def works(client):
    """Whether a client is logged in."""
    status = client.call("elastic.pools").status
    assert status in (200, 401)
    return status == 200


# Logging in


def test_a_user_with_the_right_password_is_told_a_token(served, operator):
    assert works(operator)
    answer = served.client().login("operator").value
    assert answer["perms"] == [{"@runner": [r"elastic\.([a-z]+)$"]}]
    assert answer["expire"] - answer["start"] == pytest.approx(served.settings["token_expire"], abs=1)


@pytest.mark.parametrize(
    "given",
    [
        {"password": "wrong"},
        {"password": ""},
        {"password": None},
        {"password": ["x"]},
        {"password": hashlib.sha512},
        {"username": "monitor"},
        {"username": ".*"},
        {"username": "operator\n"},
        {"username": ""},
        {"username": None},
        {"username": ["operator"]},
        {"username": "nosuch"},
        *({"eauth": name} for name in ("auto", "pam", "sharedsecret", "rest", "ldap", "nosuch", None, ["file"])),
    ],
    ids=str,
)
def test_nobody_else_gets_one(served, tokens, given):
    before = set(tokens.list_tokens())
    right = {"username": "operator", "password": served.password("operator"), "eauth": "file"}
    if given.get("password") is hashlib.sha512:  # what the file has, and not the password
        given = {"password": hashlib.sha512(right["password"].encode()).hexdigest()}
    client = served.client()
    answer = client.post("/login", right | given)
    assert answer.status in (401, 500)
    assert b"token" not in answer.body
    assert set(tokens.list_tokens()) == before


def test_nobody_logs_in_for_longer_than_pillar_says(served):
    login = {"username": "operator", "password": served.password("operator"), "eauth": "file", "token_expire": 10**9}
    answer = served.client().post("/login", login).value
    assert answer["expire"] - answer["start"] < served.settings["token_expire"] + 1


# Being logged in


@pytest.mark.parametrize(
    "token", [None, "", "0", "0" * 40, "f" * 64, "true", "../../../etc/passwd", "'; id", "x" * 5000]
)
def test_a_wrong_token_gets_nothing(served, bus, token):
    mark = bus.mark()
    client = served.client()
    client.token = token
    assert client.call("elastic.pools").status in (400, 401)
    assert bus.functions_since(mark) == []


def test_salts_own_token_is_not_a_session(served, operator, tokens):
    client = served.client()
    for client.token in tokens.list_tokens():
        assert not works(client)


def test_a_token_of_which_the_time_is_over_gets_nothing(served, tokens, bus):
    before = set(tokens.list_tokens())
    client = served.client()
    client.login("operator")
    (token,) = set(tokens.list_tokens()) - before
    tokens.cache.store("tokens", token, tokens.get_tok(token) | {"expire": time.time() - 1})
    mark = bus.mark()
    assert not works(client)
    assert bus.functions_since(mark) == []


# How it ends


def test_who_has_logged_out_has_to_log_in_again(served, operator, tokens):
    before = set(tokens.list_tokens())
    assert operator.post("/logout", {}).status == 200
    assert len(before - set(tokens.list_tokens())) == 1
    assert not works(operator)


def test_a_user_can_be_logged_out_everywhere(served, operator):
    other, monitor = served.client(), served.client()
    assert other.login("operator").status == monitor.login("monitor").status == 200
    answer, status = served.run("elastic_api.revoke", "operator")
    assert status == 0
    assert answer["revoked"] >= 2
    assert not works(operator)
    assert not works(other)
    assert works(monitor)
    assert operator.login("operator").status == 200


def test_a_new_password_ends_everything_that_the_old_one_opened(served, operator):
    monitor = served.client()
    monitor.login("monitor")
    old = served.password("operator")
    answer, status = served.run("elastic_api.rotate", "operator")
    assert status == 0
    assert answer.keys() == {"password", "revoked"}
    new = Path(answer["password"]).read_text().strip()
    assert new == served.password("operator") != old
    assert not works(operator)
    assert operator.login("operator", old).status == 401
    assert operator.login("operator", new).status == 200
    assert works(operator)
    assert works(monitor)


def test_only_a_user_gets_a_new_password(served):
    answer, status = served.run("elastic_api.rotate", "nosuch")
    assert answer["error"] == "user 'nosuch' does not exist; users: monitor, operator, slurm"
    assert status == 2


# Secrets


def secrets_of(served, tokens, client):
    return {
        *(path.read_text().strip() for path in served.users.glob("*.password")),
        *tokens.list_tokens(),
        client.token,
    }


def test_no_secret_is_on_the_bus(served, tokens, bus):
    mark = bus.mark()
    client = served.client()
    client.login("operator")
    assert works(client)
    client.call("elastic.resume", client="runner_async", nodes="vn001")
    assert client.login("operator", served.password("monitor")).status == 401
    known = secrets_of(served, tokens, client)
    served.run("elastic_api.rotate", "operator")
    known |= secrets_of(served, tokens, client)
    bus.wait(mark, "runner.elastic.resume")
    said = repr(bus.since(mark))
    assert "elastic_api.rotate" in said
    assert not [secret for secret in known if secret in said]


def readable(path, top):
    """Whether somebody else than root can read a file, or its name, below a directory."""
    ways = [parent for parent in path.parents if parent.is_relative_to(top)]
    if not all(parent.stat().st_mode & 0o001 for parent in ways):
        return False, False
    return bool(path.stat().st_mode & 0o004), bool(path.parent.stat().st_mode & 0o004)


def test_no_secret_can_be_read_by_others(served, operator, tokens):
    """Nor in a log, or among the results of jobs."""
    assert works(operator)
    known = secrets_of(served, tokens, operator)
    top = Path(served.settings["root_dir"])
    holders = set()
    for path in filter(Path.is_file, top.rglob("*")):
        content, name = readable(path, top)
        if any(secret in path.name for secret in known):
            holders.add(path)
            assert not name, path
        if any(secret.encode() in path.read_bytes() for secret in known):
            holders.add(path)
            assert not content, path
    assert holders  # the tokens are somewhere
