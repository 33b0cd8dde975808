"""
Who owns each name and address, in what state each node is, and how it came to be so.

Pools are pillar's (``saltmarsh.pools``); a node has a row here only while it is not free. Every method is one
transaction: it happened as a whole or not at all, whatever dies in between.
"""

import json
import os
import threading
import time
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet

from saltmarsh import ledgerfile
from saltmarsh.errors import Conflict, InvalidInput, LedgerError, NotEnoughFree
from saltmarsh.model import TRANSITIONS, Node, Operation, Owner, State, Transition, nodeset

KEEP = object()
"""The value of ``host`` or ``reason`` that leaves it as it is."""

RESTING = frozenset({State.READY, State.SUSPENDED, State.FAILED})
"""States in which a node may be without an operation; in every other one somebody must answer for what comes next."""

_NOBODY = 0  # no process has this pid


class Ledger:
    """
    The ledger, in one file on a local disk (SQLite's WAL does not work over NFS).

    It belongs to the process that opened it; the threads of that process may share it. All its processes must see each
    other in /proc (one pid namespace), or they take each other for dead.

    :param path: the file; created, readable by its owner alone, if it is not there
    :raises LedgerError: it can't be made or read, is no ledger, is damaged, or was written by a newer version
    """

    def __init__(self, path):
        self.path = Path(path).absolute()
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._database = ledgerfile.connect(self.path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Close the file, once no thread reads or writes it; the ledger can't be used any more."""
        with self._lock:
            self._database.close()

    def claim(self, verb, pool, *, count=None, names=None, minimum=None, but=(), reason=""):
        """
        Begin an operation on free names of a pool: the first ``count`` in the pool's order, or exactly ``names``.

        :param str verb: what is being done, for example ``grow``
        :param saltmarsh.pools.Pool pool: the pool
        :param int count: how many
        :param names: which, instead of ``count``: an iterable of names such as a NodeSet
        :param int minimum: be content with so many if there are not more; by default it is all or none
        :param but: names that are not to be taken
        :param str reason: why, for the history
        :returns: the operation, and its nodes, claimed, in the pool's order
        :rtype: tuple[Operation, tuple[Node, ...]]
        :raises InvalidInput: a name of another pool, or numbers that don't fit
        :raises NotEnoughFree: fewer are free, or the pool's ``max_nodes`` leaves no room for them
        :raises Conflict: a name is taken, or another node has the address that pillar gives it
        """
        with self._transaction() as database:
            chosen = _choose(database, pool, count, names, minimum, but)
            operation = _insert_operation(database, verb, pool.name, chosen)
            at = operation.started
            nodes = tuple(
                Node(name, pool.name, pool.address_of(name), State.CLAIMED, at, None, reason, operation.id)
                for name in chosen
            )
            database.executemany("INSERT INTO nodes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", map(astuple, nodes))
            _record(database, [(name, at, State.FREE, State.CLAIMED, None, reason, operation.id) for name in chosen])
        return operation, nodes

    def claimable(self, pool, *, count=None, names=None, minimum=None, but=()):
        """
        The names that :meth:`claim` would take now, in the pool's order; takes none. Arguments and errors are the same.

        :rtype: tuple[str, ...]
        """
        with self._transaction() as database:
            return tuple(_choose(database, pool, count, names, minimum, but))

    def begin(self, verb, pool, names, *, expect, to, reason="", at=None):
        """
        Begin an operation on nodes that are not free: check that all are as expected and nobody's, and move them.

        :param str verb: what is being done, for example ``shrink``
        :param str pool: the pool's name; None where they may be of several
        :param names: the nodes, an iterable of names such as a NodeSet
        :param expect: the states in which they may be now
        :param State to: the state to which all of them go
        :param str reason: why, for the history and the status; or KEEP
        :param float at: when they came into that state, if that was earlier
        :returns: the operation, and its nodes in their new state
        :rtype: tuple[Operation, tuple[Node, ...]]
        :raises InvalidInput: no names, or nodes of another pool
        :raises Conflict: a node is free, in another state, or held by an operation; says which and by whom
        """
        if not (names := set(names)):
            raise InvalidInput(f"{verb}: no nodes named")
        with self._transaction() as database:
            rows = _rows(database, names)
            pools = sorted({row["pool"] for row in rows.values()})
            if pool is not None and (foreign := {name for name, row in rows.items() if row["pool"] != pool}):
                raise InvalidInput(f"{nodeset(foreign)} is not of pool {pool}")
            if wrong := {name for name, row in rows.items() if row["state"] not in expect}:
                raise Conflict(f"expected {' or '.join(sorted(expect))}: {_states(wrong, rows)}")
            if held := {name: row["operation"] for name, row in rows.items() if row["operation"] is not None}:
                holders = ", ".join(_describe(_operation(database, number)) for number in sorted(set(held.values())))
                raise Conflict(f"{_states(held, rows)}: held by {holders}")
            operation = _insert_operation(database, verb, ",".join(pools), names)
            _shift(database, operation, rows, to, host=KEEP, reason=reason, at=at)
            nodes = tuple(map(_node, _rows(database, names).values()))
        return operation, nodes

    def move(self, operation, names, to, *, host=KEEP, reason=""):
        """
        Move nodes of an operation to their next state; to ``State.FREE`` gives their names back.

        :param Operation operation: the operation that holds them
        :param names: the nodes, an iterable of names such as a NodeSet
        :param State to: their next state (``model.TRANSITIONS`` says what may follow what)
        :param str host: the hypervisor on which they are from now on, or None; by default it stays as it is
        :param str reason: why, for the history and the status; a must for ``State.FAILED``
        :raises InvalidInput: failed without a reason
        :raises Conflict: the operation is finished or another owner's, does not hold a node, or a node can't go there
        """
        with self._transaction() as database:
            _check_hold(database, operation)
            rows = _rows(database, set(names))
            if others := {name for name, row in rows.items() if row["operation"] != operation.id}:
                raise Conflict(f"{_states(others, rows)}: not held by {_describe(operation)}")
            _shift(database, operation, rows, to, host=host, reason=reason)

    def finish(self, operation, outcome="done"):
        """
        End an operation and let go of its nodes; those that it left halfway become failed, with its outcome as reason.

        :param Operation operation: the operation
        :param str outcome: ``done``, or one line saying why not
        :raises Conflict: it is finished already, or another owner's
        """
        with self._transaction() as database:
            _check_hold(database, operation)
            held = database.execute("SELECT * FROM nodes WHERE operation = ?", (operation.id,)).fetchall()
            for state in {row["state"] for row in held} - RESTING:
                halfway = {row["name"]: row for row in held if row["state"] == state}
                reason = f"left {state} by {operation.verb} {operation.id}: {outcome}"
                _shift(database, operation, halfway, State.FAILED, host=KEEP, reason=reason)
            database.execute("UPDATE nodes SET operation = NULL WHERE operation = ?", (operation.id,))
            database.execute(
                "UPDATE operations SET finished = ?, outcome = ? WHERE id = ?", (time.time(), outcome, operation.id)
            )

    def abandon(self, operation):
        """
        Let go of an operation that can be neither finished nor undone now, as if the calling process had died.

        :param Operation operation: the operation
        :raises Conflict: it is finished already, or another owner's
        """
        with self._transaction() as database:
            _check_hold(database, operation)
            database.execute("UPDATE operations SET pid = ? WHERE id = ?", (_NOBODY, operation.id))

    def adopt(self, operation):
        """
        Take over an operation whose owner is dead; of several that try, one succeeds.

        :param Operation operation: the operation, as ``abandoned`` returned it
        :returns: the same operation, now owned by the calling process
        :rtype: Operation
        :raises Conflict: its owner lives, it is finished, or somebody else was faster
        """
        with self._transaction() as database:
            _check_hold(database, operation)
            if operation.owner.is_alive():
                raise Conflict(f"{_describe(operation)} is at work")
            owner = Owner.current()
            database.execute(
                "UPDATE operations SET pid = ?, pid_started = ?, boot_id = ? WHERE id = ?",
                (owner.pid, owner.started, owner.boot_id, operation.id),
            )
            return _operation(database, operation.id)

    def nodes(self, names=None, *, pool=None, states=None):
        """
        The nodes that are not free, sorted by pool and name.

        :param names: only these, an iterable of names such as a NodeSet; free ones are not in the answer
        :param str pool: only this pool's
        :param states: only those in one of these states
        :rtype: tuple[Node, ...]
        """
        rows = self._query(
            """
            SELECT * FROM nodes
            WHERE (:names IS NULL OR name IN (SELECT value FROM json_each(:names)))
              AND (:pool IS NULL OR pool = :pool)
              AND (:states IS NULL OR state IN (SELECT value FROM json_each(:states)))
            ORDER BY pool, length(name), name
            """,
            {
                "names": None if names is None else json.dumps(list(names)),
                "pool": pool,
                "states": None if states is None else json.dumps(list(states)),
            },
        )
        return tuple(map(_node, rows))

    def free_names(self, pool):
        """
        The names of a pool that nobody has.

        :param saltmarsh.pools.Pool pool: the pool
        :rtype: ClusterShell.NodeSet.NodeSet
        """
        taken = {row["name"] for row in self._query("SELECT name FROM nodes")}
        return nodeset(name for name in pool.nodes if name not in taken)

    def operations(self, *, unfinished=True):
        """
        Operations, oldest first.

        :param bool unfinished: only those that are not finished; False means all there ever were
        :rtype: tuple[Operation, ...]
        """
        only = "WHERE finished IS NULL" if unfinished else ""
        return tuple(map(_as_operation, self._query(f"SELECT * FROM operations {only} ORDER BY id")))

    def totals(self):
        """
        All operations that have ended: verb, whether they did what was asked for, how many, and the seconds they took.

        :rtype: list[tuple[str, bool, int, float]]
        """
        rows = self._query(
            "SELECT verb, outcome = 'done' AS done, count(*), sum(finished - started) FROM operations "
            "WHERE finished IS NOT NULL GROUP BY verb, done"
        )
        return [(verb, bool(done), count, seconds) for verb, done, count, seconds in rows]

    def abandoned(self):
        """
        Unfinished operations whose owner is dead, oldest first.

        :rtype: tuple[Operation, ...]
        """
        return tuple(operation for operation in self.operations() if not operation.owner.is_alive())

    def history(self, name):
        """
        Everything that happened to a name, oldest first.

        :param str name: the node's name
        :rtype: tuple[Transition, ...]
        """
        rows = self._query(
            "SELECT name, at, before, after, host, reason, operation FROM history WHERE name = ? ORDER BY id", (name,)
        )
        return tuple(
            Transition(**{**row, "before": State(row["before"]), "after": State(row["after"])}) for row in rows
        )

    def _query(self, statement, values=()):
        with self._exclusive() as database:
            return database.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self):
        with self._exclusive() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            finally:
                if database.in_transaction:
                    database.execute("ROLLBACK")

    @contextmanager
    def _exclusive(self):
        if os.getpid() != self._process:
            raise LedgerError(f"ledger {self.path}: opened by another process; open it anew after a fork")
        with self._lock, ledgerfile.errors_in_one_line(self.path):
            yield self._database


def _choose(database, pool, count, names, minimum, but):
    """The names that a claim with these arguments takes."""
    eligible = set(pool.nodes if names is None else names)
    asked = len(eligible) if count is None else count
    least = asked if minimum is None else minimum
    if foreign := eligible.difference(pool.nodes):
        raise InvalidInput(f"{nodeset(foreign)} is not of pool {pool.name}, whose nodes are {pool.nodeset}")
    if asked < 1 or not 1 <= least <= asked:
        raise InvalidInput(f"pool {pool.name}: at least {least} of {asked} nodes can't be claimed")
    rows = {row["name"]: row for row in database.execute("SELECT * FROM nodes")}
    if names is not None and minimum is None and not eligible.isdisjoint(rows):
        raise Conflict(f"pool {pool.name}: not free: {_states(eligible & rows.keys(), rows)}")
    return _first_free(pool, eligible, rows, asked, least, but)


def _first_free(pool, eligible, rows, asked, least, but):
    free = [name for name in pool.nodes if name in eligible and name not in rows and name not in but]
    if len(free) < least:
        raise NotEnoughFree(f"pool {pool.name}: {len(free)} of {len(eligible)} names free, {least} asked for")
    if (room := pool.room([row["state"] for row in rows.values() if row["pool"] == pool.name])) < least:
        limit = f"limit of {pool.limits.max_nodes} nodes"
        raise NotEnoughFree(f"pool {pool.name}: {limit} leaves room for {room}, {least} asked for")
    chosen = free[: min(asked, room)]
    holders = {row["address"]: row["name"] for row in rows.values()}
    for name in chosen:
        if (address := pool.address_of(name)) in holders:
            holder = holders[address]
            raise Conflict(
                f"pool {pool.name}: {name}'s address {address} is in use by {_states([holder], rows)}, "
                "which had it from an earlier pillar; shrink that first"
            )
    return chosen


def _insert_operation(database, verb, pool, names):
    owner = Owner.current()
    (number,) = database.execute(
        "INSERT INTO operations (verb, pool, nodes, pid, pid_started, boot_id, started) "
        "VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
        (verb, pool, str(nodeset(names)), owner.pid, owner.started, owner.boot_id, time.time()),
    ).fetchone()
    return _operation(database, number)


def _operation(database, number):
    row = database.execute("SELECT * FROM operations WHERE id = ?", (number,)).fetchone()
    return None if row is None else _as_operation(row)


def _check_hold(database, operation):
    """Refuse an operation that is over, or whose owner is not the one that it was when the caller got hold of it."""
    now = _operation(database, operation.id)
    if now is None:
        raise Conflict(f"{_describe(operation)} is not in this ledger")
    if now.finished is not None:
        raise Conflict(f"{_describe(operation)} is finished: {now.outcome}")
    if now.owner != operation.owner:
        raise Conflict(f"{_describe(operation)} was taken over by process {now.owner.pid}")


def _shift(database, operation, rows, to, *, host, reason, at=None):
    if stuck := {name for name, row in rows.items() if to not in TRANSITIONS[State(row["state"])]}:
        raise Conflict(f"can't become {to}: {_states(stuck, rows)}")
    if to is State.FAILED and not reason:
        raise InvalidInput(f"{nodeset(rows)} can't become failed without a reason")
    at = time.time() if at is None else at
    hosts = {name: row["host"] if host is KEEP else host for name, row in rows.items()}
    reasons = {name: row["reason"] if reason is KEEP else reason for name, row in rows.items()}
    _record(
        database,
        [(name, at, row["state"], to, hosts[name], reasons[name], operation.id) for name, row in rows.items()],
    )
    if to is State.FREE:
        database.executemany("DELETE FROM nodes WHERE name = ?", ((name,) for name in rows))
    else:
        database.executemany(
            "UPDATE nodes SET state = ?, since = ?, host = ?, reason = ?, operation = ? WHERE name = ?",
            ((to, at, hosts[name], reasons[name], operation.id, name) for name in rows),
        )


def _record(database, transitions):
    database.executemany(
        "INSERT INTO history (name, at, before, after, host, reason, operation) VALUES (?, ?, ?, ?, ?, ?, ?)",
        transitions,
    )


def _rows(database, names):
    """The rows of these nodes by name, all or a Conflict."""
    found = database.execute(
        "SELECT * FROM nodes WHERE name IN (SELECT value FROM json_each(?)) ORDER BY length(name), name",
        (json.dumps(list(names)),),
    )
    rows = {row["name"]: row for row in found}
    if free := names - rows.keys():
        raise Conflict(f"{nodeset(free)} is free")
    return rows


def _node(row):
    return Node(**{**row, "state": State(row["state"])})


def _as_operation(row):
    return Operation(
        row["id"],
        row["verb"],
        row["pool"],
        NodeSet(row["nodes"], resolver=RESOLVER_NOGROUP),
        Owner(row["pid"], row["pid_started"], row["boot_id"]),
        row["started"],
        row["finished"],
        row["outcome"],
    )


def _describe(operation):
    gone = "" if operation.owner.is_alive() else ", which is gone"
    return f"{operation.verb} {operation.id} (process {operation.owner.pid}{gone})"


def _states(names, rows):
    """Names with their states, for messages: ``vn[001-002] ready, vn007 failed``."""
    by_state = {}
    for name in names:
        by_state.setdefault(rows[name]["state"], []).append(name)
    return ", ".join(f"{nodeset(members)} {state}" for state, members in sorted(by_state.items()))
