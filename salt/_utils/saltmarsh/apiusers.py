"""
The users of the API: one file with a digest for each, which the master reads at every login, and their passwords.

Passwords are made here, of so much chance that nobody guesses one from its digest. Each is in a file of its own, for
the administrator to take to where it is used, and nowhere else: neither in pillar, nor in an argument, nor in an event.
"""

import fcntl
import hashlib
import os
import re
import secrets
from contextlib import contextmanager

from saltmarsh.errors import InvalidInput

FILE = "users"
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_BYTES = 32


def settle(directory, names, test=False):
    """
    Give each user a password who has none, and forget everybody else.

    :param pathlib.Path directory: is made if need be
    :param names: of the users
    :param bool test: change nothing
    :returns: who is new, and who was forgotten
    :rtype: tuple[list[str], list[str]]
    :raises InvalidInput: a name is not acceptable
    """
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidInput(f"user {name!r}: expected lower-case letters, digits, - and _, a letter first")
    if test and not directory.exists():
        return sorted(names), []
    with _locked(directory):
        digests = _digests(directory)
        new = sorted(set(names) - {name for name in digests if _password(directory, name).exists()})
        gone = sorted(digests.keys() - set(names))
        if test:
            return new, gone
        for name in new:
            digests[name] = _give(directory, name)
        for name in gone:
            del digests[name]
        if new or gone or not (directory / FILE).exists():
            _write(directory / FILE, "".join(f"{name}:{digest}\n" for name, digest in sorted(digests.items())))
        for name in gone:
            _password(directory, name).unlink(missing_ok=True)
        return new, gone


def rotate(directory, name):
    """
    Give a user a new password; the old one is refused from now on.

    :param pathlib.Path directory: that of the users
    :param str name: the user
    :returns: the file with the new password
    :rtype: pathlib.Path
    :raises InvalidInput: there is no such user
    """
    with _locked(directory):
        digests = _digests(directory)
        if name not in digests:
            raise InvalidInput(f"user {name!r} does not exist; users: {', '.join(sorted(digests)) or 'none'}")
        digests[name] = _give(directory, name)
        _write(directory / FILE, "".join(f"{name}:{digest}\n" for name, digest in sorted(digests.items())))
    return _password(directory, name)


def _password(directory, name):
    return directory / f"{name}.password"


def _give(directory, name):
    password = secrets.token_urlsafe(_BYTES)
    _write(_password(directory, name), f"{password}\n")
    return hashlib.sha512(password.encode()).hexdigest()


def _digests(directory):
    try:
        lines = (directory / FILE).read_text().splitlines()
    except FileNotFoundError:
        return {}
    return dict(line.split(":", 1) for line in lines)


def _write(path, text):
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


@contextmanager
def _locked(directory):
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
