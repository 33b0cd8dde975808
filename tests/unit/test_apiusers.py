"""The users of the API: passwords of chance, which nobody but root can read, and which replace each other at once."""

import hashlib
import stat

import pytest

from saltmarsh import apiusers
from saltmarsh.errors import InvalidInput


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "api"


def password(directory, name):
    return (directory / f"{name}.password").read_text().strip()


def knows(directory, name, secret):
    """Whether the master would let the user in: it compares digests."""
    return f"{name}:{hashlib.sha512(secret.encode()).hexdigest()}" in (directory / "users").read_text().splitlines()


def test_everybody_gets_a_password_of_their_own_and_keeps_it(directory):
    assert apiusers.settle(directory, ["scripts", "grafana"]) == (["grafana", "scripts"], [])
    first = {name: password(directory, name) for name in ("grafana", "scripts")}
    assert len(set(first.values())) == 2
    assert all(len(secret) >= 40 and knows(directory, name, secret) for name, secret in first.items())
    assert apiusers.settle(directory, ["scripts", "grafana"]) == ([], [])
    assert {name: password(directory, name) for name in first} == first


def test_nobody_but_root_reads_any_of_it(directory):
    apiusers.settle(directory, ["scripts"])
    apiusers.rotate(directory, "scripts")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (directory, *directory.iterdir())}
    assert modes == {"api": 0o700, "users": 0o600, "scripts.password": 0o600}


def test_who_is_no_user_any_more_is_forgotten(directory):
    apiusers.settle(directory, ["scripts", "grafana"])
    assert apiusers.settle(directory, ["scripts"]) == ([], ["grafana"])
    assert "grafana" not in (directory / "users").read_text()
    assert not (directory / "grafana.password").exists()


def test_whoever_has_lost_the_password_gets_a_new_one(directory):
    apiusers.settle(directory, ["scripts"])
    old = password(directory, "scripts")
    (directory / "scripts.password").unlink()
    assert apiusers.settle(directory, ["scripts"]) == (["scripts"], [])
    assert knows(directory, "scripts", password(directory, "scripts"))
    assert not knows(directory, "scripts", old)


def test_a_new_password_replaces_the_old_one_and_nobody_elses(directory):
    apiusers.settle(directory, ["scripts", "grafana"])
    old, other = password(directory, "scripts"), password(directory, "grafana")
    assert apiusers.rotate(directory, "scripts") == directory / "scripts.password"
    assert knows(directory, "scripts", password(directory, "scripts"))
    assert not knows(directory, "scripts", old)
    assert knows(directory, "grafana", other)


def test_only_a_user_gets_a_new_password(directory):
    apiusers.settle(directory, ["scripts", "grafana"])
    with pytest.raises(InvalidInput, match=r"^user 'root' does not exist; users: grafana, scripts$"):
        apiusers.rotate(directory, "root")


@pytest.mark.parametrize("name", ["", "a:b", "../x", "a%", "^x", "a b", "*", "Root", "x" * 33, "a\nb", 7, "1a"])
def test_a_name_is_a_plain_word(directory, name):
    with pytest.raises(InvalidInput, match="expected lower-case letters"):
        apiusers.settle(directory, ["scripts", name])
    assert not directory.exists()


def test_a_test_says_what_would_change_and_changes_nothing(directory):
    assert apiusers.settle(directory, ["scripts"], test=True) == (["scripts"], [])
    assert not directory.exists()
    apiusers.settle(directory, ["scripts"])
    before = (directory / "users").read_text()
    assert apiusers.settle(directory, ["grafana"], test=True) == (["grafana"], ["scripts"])
    assert (directory / "users").read_text() == before
