"""
The words of the project as types: node, state, operation, owner.

Values only: nothing here talks to anything.
"""

import enum
import os
from dataclasses import dataclass
from pathlib import Path

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet


class State(enum.StrEnum):
    """State of a node in the ledger (DESIGN: states of a node)."""

    FREE = "free"
    CLAIMED = "claimed"
    CREATING = "creating"
    BOOTING = "booting"
    READY = "ready"
    DRAINING = "draining"
    SUSPENDING = "suspending"
    SUSPENDED = "suspended"
    RESUMING = "resuming"
    DESTROYING = "destroying"
    FAILED = "failed"


TRANSITIONS = {
    State.FREE: {State.CLAIMED},
    # To free at once: nothing has been made of it yet, and what bears its name at the provider is somebody else's.
    State.CLAIMED: {State.CREATING, State.FREE, State.DESTROYING, State.FAILED},
    # To itself: its provider had no room, and it is made at the next one.
    State.CREATING: {State.CREATING, State.BOOTING, State.DESTROYING, State.FAILED},
    # To itself, here and below: how far it has come, with a reason that says so.
    State.BOOTING: {State.BOOTING, State.READY, State.DESTROYING, State.FAILED},
    # To itself: on another host, or because Slurm had to be told of it again. To suspended at once, and back: what a
    # host has done by itself.
    State.READY: {
        State.READY,
        State.DRAINING,
        State.SUSPENDING,
        State.SUSPENDED,
        State.DESTROYING,
        State.FAILED,
    },
    State.DRAINING: {State.READY, State.SUSPENDED, State.DESTROYING, State.FAILED},
    State.SUSPENDING: {State.SUSPENDING, State.SUSPENDED, State.READY, State.FAILED},
    State.SUSPENDED: {
        State.SUSPENDED,
        State.READY,
        State.RESUMING,
        State.DRAINING,
        State.DESTROYING,
        State.FAILED,
    },
    State.RESUMING: {State.RESUMING, State.READY, State.SUSPENDED, State.FAILED},
    State.DESTROYING: {State.FREE, State.FAILED},
    State.FAILED: {State.DRAINING, State.DESTROYING, State.READY, State.RESUMING},
}


@dataclass(frozen=True)
class Owner:
    """The process that carries out an operation; the triple is never reused on one machine."""

    pid: int
    started: int  # clock ticks after boot, field 22 of /proc/<pid>/stat (proc_pid_stat(5))
    boot_id: str  # /proc/sys/kernel/random/boot_id (random(4))

    @classmethod
    def current(cls):
        """The calling process."""
        pid = os.getpid()
        return cls(pid, _stat(pid)[1], _boot_id())

    def is_alive(self):
        """True while exactly this process runs (a reused pid is told apart by its start time)."""
        if self.boot_id != _boot_id():
            return False
        try:
            state, started = _stat(self.pid)
        except (FileNotFoundError, ProcessLookupError):
            return False
        return started == self.started and state not in (b"Z", b"X")  # a zombie does nothing any more


@dataclass(frozen=True)
class Node:
    """A node that is not free: one row of the ledger."""

    name: str
    pool: str
    address: str
    state: State
    since: float  # seconds since the epoch
    host: str | None = None
    reason: str = ""
    operation: int | None = None


@dataclass(frozen=True)
class Operation:
    """A grow, a shrink, ...: who does what to which nodes, and how it ended."""

    id: int
    verb: str
    pool: str
    nodes: NodeSet
    owner: Owner
    started: float  # seconds since the epoch
    finished: float | None = None
    outcome: str | None = None  # "done", or one line saying why not


@dataclass(frozen=True)
class Transition:
    """One row of a node's history."""

    name: str
    at: float  # seconds since the epoch
    before: State
    after: State
    host: str | None
    reason: str
    operation: int | None


def nodeset(names):
    """
    Names as a NodeSet, which prints as a hostlist; none of them is ever looked up as a group.

    :param names: an iterable of node names or addresses
    :rtype: ClusterShell.NodeSet.NodeSet
    """
    return NodeSet.fromlist(list(names), resolver=RESOLVER_NOGROUP)


def _stat(pid):
    """State and start time of a process, fields 3 and 22 of its stat; field 2, its name, may hold anything."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return fields[0], int(fields[19])


def _boot_id():
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
