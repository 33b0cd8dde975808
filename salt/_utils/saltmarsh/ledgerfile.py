"""The ledger's file: its tables, how it comes to be, who can read it, and what SQLite's errors mean."""

import os
import sqlite3
import tempfile
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from saltmarsh.errors import LedgerError

_APPLICATION_ID = 0x53616C74
_VERSION = 1
_BUSY_SECONDS = 60

_SCHEMA = f"""
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE operations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    verb TEXT NOT NULL,
    pool TEXT NOT NULL,
    nodes TEXT NOT NULL,
    pid INTEGER NOT NULL,
    pid_started INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    started REAL NOT NULL,
    finished REAL,
    outcome TEXT,
    CHECK ((finished IS NULL) = (outcome IS NULL))
) STRICT;
CREATE INDEX unfinished_operations ON operations (id) WHERE finished IS NULL;
CREATE TABLE nodes (
    name TEXT NOT NULL PRIMARY KEY,
    pool TEXT NOT NULL,
    address TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state <> 'free'),
    since REAL NOT NULL,
    host TEXT,
    reason TEXT NOT NULL,
    operation INTEGER REFERENCES operations (id)
) STRICT;
CREATE INDEX nodes_of_operation ON nodes (operation);
CREATE TABLE history (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    at REAL NOT NULL,
    before TEXT NOT NULL,
    after TEXT NOT NULL,
    host TEXT,
    reason TEXT NOT NULL,
    operation INTEGER NOT NULL REFERENCES operations (id)
) STRICT;
CREATE INDEX history_of_node ON history (name, id);
CREATE INDEX history_of_operation ON history (operation);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
COMMIT;
"""

_REMEDIES = {
    sqlite3.SQLITE_BUSY: f"another process has held it for {_BUSY_SECONDS} seconds, fuser shows which",
    sqlite3.SQLITE_CORRUPT: "restore it from a backup",
    sqlite3.SQLITE_NOTADB: "restore it from a backup",
    sqlite3.SQLITE_CANTOPEN: "it must be a file that the master's user owns, in a directory that this user owns",
    sqlite3.SQLITE_READONLY: "the master's user must own it and its directory",
    sqlite3.SQLITE_FULL: "make room on its disk",
    sqlite3.SQLITE_IOERR: "look at its disk",
}


def connect(path):
    """
    Open the file, which is made if it is not there.

    :param pathlib.Path path: the file
    :rtype: sqlite3.Connection
    :raises LedgerError: it can't be made or read, is no ledger, is damaged, or was written by a newer version
    """
    with errors_in_one_line(path):
        if not path.exists():
            _create(path)
        database = sqlite3.connect(
            f"{path.as_uri()}?mode=rw",
            uri=True,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            _check(path, database)
            database.execute("PRAGMA foreign_keys = ON")
            # An announced intent must survive a power cut on the master, because what it announces does.
            database.execute("PRAGMA synchronous = FULL")
        except BaseException:
            database.close()
            raise
    database.row_factory = sqlite3.Row
    return database


@contextmanager
def errors_in_one_line(path):
    """
    What SQLite or the system says of the file, with a remedy.

    :raises LedgerError: in place of their errors
    """
    try:
        yield
    except sqlite3.DatabaseError as err:
        code = getattr(err, "sqlite_errorcode", 0)  # that of a closed file has none
        remedy = _REMEDIES.get(code & 0xFF)  # the low byte of an extended result code
        raise LedgerError(f"ledger {path}: {err}{remedy and f'; {remedy}' or ''}") from err
    except OSError as err:
        raise LedgerError(f"ledger {path}: {err.strerror}; its directory must be the master's user's") from err


def _check(path, database):
    """Refuse what this version can't read."""
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION_ID:
        raise LedgerError(f"ledger {path}: not a ledger; restore it from a backup, or name another path")
    if version > _VERSION:
        raise LedgerError(
            f"ledger {path}: of a newer version (schema {version}, known is {_VERSION}); upgrade saltmarsh"
        )


def _create(path):
    """Put an empty ledger in place, complete or not at all; another process may do the same at the same time."""
    with tempfile.TemporaryDirectory(prefix=".ledger-", dir=path.parent) as scratch:
        fresh = Path(scratch) / "ledger"
        fresh.touch(0o600)
        with closing(sqlite3.connect(fresh, isolation_level=None)) as database:
            database.executescript(_SCHEMA)
        with suppress(FileExistsError):
            os.link(fresh, path)
