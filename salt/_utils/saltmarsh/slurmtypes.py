"""Nodes and jobs as slurmctld sees them. Values only: nothing here talks to anything."""

from dataclasses import dataclass

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet

LEAVING = frozenset({"POWER_DOWN", "POWERING_DOWN", "POWERED_DOWN"})
_BASE_STATES = frozenset({"UNKNOWN", "DOWN", "IDLE", "ALLOCATED", "ERROR", "MIXED", "FUTURE"})
_NOT_ANSWERING = frozenset({"DOWN", "UNKNOWN", "FUTURE", "NOT_RESPONDING", "INVALID_REG", "POWERING_UP"})


@dataclass(frozen=True)
class SlurmNode:
    """A node as slurmctld sees it; ``states`` are the base state and the flags as in ``scontrol show node``."""

    name: str
    states: frozenset[str]
    reason: str
    address: str
    partitions: tuple[str, ...]
    features: tuple[str, ...]
    cpus: int
    memory: int  # MiB, as configured
    slurmd_start: int  # seconds since the epoch; 0 if it has not registered since slurmctld started

    @classmethod
    def from_json(cls, node):
        """One of the nodes of ``scontrol show nodes --json``."""
        return cls(
            name=node["name"],
            states=frozenset(node["state"]),
            reason=node["reason"],
            address=node["address"],
            partitions=tuple(node["partitions"]),
            features=tuple(node["features"]),
            cpus=node["cpus"],
            memory=node["real_memory"],
            slurmd_start=node["slurmd_start_time"]["number"],
        )

    @property
    def absent(self):
        """Slurm takes the node for not there, and places no job on it."""
        return {"DOWN", "POWERED_DOWN"} <= self.states

    @property
    def startable(self):
        """Slurm takes the node for one that it may start for a job (ResumeProgram)."""
        return "POWERED_DOWN" in self.states and "DOWN" not in self.states

    @property
    def passed_over(self):
        """Slurm may start the node, but not once slurmctld has restarted or read its configuration anew (measured)."""
        return self.startable and "NOT_RESPONDING" in self.states

    @property
    def wanted(self):
        """Slurm waits for the node to boot, for a job."""
        return "POWERING_UP" in self.states and "DOWN" not in self.states

    @property
    def given_up(self):
        """Slurm has taken the node's machine for gone, or asked for that (SuspendProgram)."""
        return not self.states.isdisjoint(("POWERING_DOWN", "POWERED_DOWN"))

    @property
    def registered(self):
        """The node's slurmd has registered and answers; the node may be drained nevertheless."""
        return not self.states & (_NOT_ANSWERING | LEAVING)

    @property
    def state(self):
        """The states in one word as scontrol writes them, for example ``IDLE+CLOUD+DRAIN``."""
        return "+".join(sorted(self.states, key=lambda word: (word not in _BASE_STATES, word)))


@dataclass(frozen=True)
class SlurmJob:
    """A job that is pending, running, suspended or completing."""

    id: int
    handle: str  # how scontrol and scancel name exactly this job; of an array the base's id would mean all its jobs
    name: str
    user: str
    partition: str
    states: frozenset[str]  # the base state and the flags, for example {"RUNNING"} or {"COMPLETED", "COMPLETING"}
    nodes: NodeSet  # empty while it is pending
    reason: str  # why it is pending

    @classmethod
    def from_json(cls, job):
        """One of the jobs of ``squeue --json``."""
        return cls(
            id=job["job_id"],
            handle=_handle(job),
            name=job["name"],
            user=job["user_name"],
            partition=job["partition"],
            states=frozenset(job["job_state"]),
            nodes=NodeSet(job["nodes"], resolver=RESOLVER_NOGROUP),
            reason=job["state_reason"],
        )


def _handle(job):
    """The id of an array's last job is the array's, and means all of them."""
    if array := job["array_job_id"]["number"]:
        task = job["array_task_id"]
        return f"{array}_{task['number']}" if task["set"] else f"{array}_[{job['array_task_string'].partition('%')[0]}]"
    return str(job["het_job_id"]["number"] or job["job_id"])  # a part of a heterogeneous job is refused
