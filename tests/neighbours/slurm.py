"""slurmctld, as far as nodes of pools and the jobs on them go: what tests/functional/slurm sees the real one do."""

import functools
import pickle
import threading
from dataclasses import replace

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet

from saltmarsh.errors import SlurmError, Unreachable
from saltmarsh.slurm import GROWING, NOT_GROWN
from saltmarsh.slurmtypes import SlurmJob, SlurmNode

_NOT_THERE = frozenset({"DOWN", "CLOUD", "POWERED_DOWN"})


def _asked(function):
    @functools.wraps(function)
    def wrapper(self, *args, **kwargs):
        self.calls.append(function.__name__)
        if act := self.before.get(function.__name__):
            act()
        if not self.reachable:
            raise Unreachable("slurmctld on ctl does not answer")
        return function(self, *args, **kwargs)

    return wrapper


class Slurm:
    """
    The functions of saltmarsh.slurm that the verbs use.

    ``reachable`` says whether it answers; ``before`` holds what happens when a function is called, by its name;
    ``kept`` are nodes that it does not give back; ``foreign`` are nodes of no pool, on which jobs may run as well;
    ``killed`` are the jobs that lost a node, ``held`` those that were held, ``drained_hosts`` bare metal that was
    drained, with the reason.
    """

    def __init__(self, site):
        self._standin = site.controller.address
        self.reachable = True
        self.before = {}
        self.calls = []
        self.kept = set()
        self.foreign = NodeSet("metal[1-9]", resolver=RESOLVER_NOGROUP)
        self.killed = []
        self.held = []
        self.drained_hosts = {}
        self._file = None
        self._jobs = {}
        self._nodes = {
            name: SlurmNode(
                name=name,
                states=_NOT_THERE,
                reason=NOT_GROWN,
                address=pool.address_of(name),
                partitions=(pool.partition,),
                features=pool.features,
                cpus=pool.cpus,
                memory=pool.memory,
                slurmd_start=0,
            )
            for pool in site.pools.values()
            for name in pool.nodes
        }

    def go_down(self):
        """Answer nobody from now on."""
        self.reachable = False

    def keep_in(self, file):
        """Know what one in another process knew, and let others know from now on."""
        if file.exists():
            self._nodes, self._jobs, self.killed = pickle.loads(file.read_bytes())
        self._file = file
        self._save()

    def memory(self):
        """What it knows now, as it is written to its disk."""
        return pickle.dumps((self._nodes, self._jobs))

    def die(self, memory):
        """It is killed, and comes back with what was on its disk."""
        self._nodes, self._jobs = pickle.loads(memory)
        self._save()

    def register(self, name):
        """A slurmd registers (ReturnToService=2)."""
        node = self._nodes[name]
        away = {"DOWN", "POWERED_DOWN", "POWERING_UP", "NOT_RESPONDING"}
        base = set() if "ALLOCATED" in node.states else {"IDLE"}
        self._set([name], states=node.states - away | base, reason="")
        for job in [job for job in self._jobs.values() if name in job.nodes and "CONFIGURING" in job.states]:
            if all(self._nodes[other].registered for other in job.nodes):
                self.change_job(job.id, "RUNNING")

    def resume_by_hand(self, name):
        """Somebody tells slurmctld that a node may be started."""
        self._set([name], states=frozenset({"IDLE", "CLOUD", "POWERED_DOWN"}), reason="")

    def lose(self, name):
        """A slurmd does not answer any more; its jobs go on until SlurmdTimeout."""
        self._set([name], states=self._nodes[name].states | {"NOT_RESPONDING"})

    def complete(self, name):
        """A job of a node has ended, and something of it is still there."""
        self._set([name], states=self._nodes[name].states | {"COMPLETING"})

    def completed(self, name):
        """Nothing is there any more of jobs that have ended."""
        self._set([name], states=self._nodes[name].states - {"COMPLETING"})

    def usable(self, name):
        """Whether a job could start on a node, or runs there."""
        return self._nodes[name].registered and "DRAIN" not in self._nodes[name].states

    def stood_in(self, name):
        """Whether the stand-in is asked instead of a node."""
        return self._nodes[name].address == self._standin

    def job_states(self, number):
        """The states of a job; none if it has ended."""
        return set(self._jobs[number].states) if number in self._jobs else set()

    def start_job(self, number, nodes, handle=None, states=("RUNNING",)):
        """A job starts; ``handle`` is what it shares with the other parts of a heterogeneous one."""
        nodes = NodeSet(nodes, resolver=RESOLVER_NOGROUP)
        assert all(map(self.usable, nodes - self.foreign))
        self._jobs[number] = SlurmJob(
            number, handle or str(number), "job", "alice", "virtual", frozenset(states), nodes, "None"
        )
        self._save()

    def queue_lease(self, number, name, host=None, user="slurm"):
        """A node's lease is pending, or runs on a host; or somebody else's job that looks like one."""
        nodes = NodeSet(host, resolver=RESOLVER_NOGROUP) if host else NodeSet()
        states = frozenset({"RUNNING" if host else "PENDING"})
        self._jobs[number] = SlurmJob(number, str(number), name, user, "lease", states, nodes, "None")
        self._save()

    def delay(self, number):
        """A job that was put back into the queue waits for its time."""
        self._jobs[number] = replace(self._jobs[number], reason="BeginTime")

    def change_job(self, number, *states):
        """A job is in other states from now on."""
        self._jobs[number] = replace(self._jobs[number], states=frozenset(states))
        self._save()

    def end_job(self, number):
        """A job ends by itself."""
        del self._jobs[number]
        self._save()

    def forget(self, name):
        """A node is no longer in Slurm's configuration."""
        del self._nodes[name]

    @_asked
    def ping(self):
        pass

    @_asked
    def nodes(self, names=None):
        return {name: self._nodes[name] for name in (self._nodes if names is None else names) if name in self._nodes}

    @_asked
    def jobs(self, nodes=None):
        wanted = None if nodes is None else set(nodes)
        return tuple(job for job in self._jobs.values() if wanted is None or not wanted.isdisjoint(job.nodes))

    @_asked
    def expect(self, addresses):
        if missing := [name for name in addresses if name not in self._nodes]:
            raise SlurmError(f"{missing[0]} is not in Slurm's configuration: run slurm.push_config")
        known = self._nodes
        if there := [n for n in addresses if not (known[n].absent or known[n].startable or known[n].wanted)]:
            raise SlurmError(f"Slurm has {there[0]} {self._nodes[there[0]].state}: release it first")
        for name, address in addresses.items():
            if known[name].wanted:
                self._set([name], address=address)
            else:
                self._set([name], states=_NOT_THERE, reason=GROWING, address=address)

    def want(self, names, job=None):
        """Slurm wants nodes, for a job or because somebody has resumed them; it waits for them to boot."""
        names = list(NodeSet(names, resolver=RESOLVER_NOGROUP))
        assert all(self._nodes[name].startable for name in names)
        self._set(names, states=frozenset({"ALLOCATED", "CLOUD", "POWERING_UP"}), reason="")
        if job:
            self._jobs[job] = SlurmJob(job, str(job), "job", "alice", "virtual", frozenset({"RUNNING", "CONFIGURING"}),
                                       NodeSet.fromlist(names, resolver=RESOLVER_NOGROUP), "None")  # fmt: skip
            self._save()

    def give_up(self, name):
        """A node has been idle for long enough: Slurm gives it up."""
        assert self.usable(name)
        self._set([name], states=frozenset({"IDLE", "CLOUD", "POWERING_DOWN"}))

    @_asked
    def offer(self, names):
        absent = [name for name in names if name in self._nodes and self._nodes[name].absent]
        self._set(absent, states=frozenset({"IDLE", "CLOUD", "POWERED_DOWN"}), reason="")

    @_asked
    def park(self, names):
        startable = tuple(name for name in names if self._nodes[name].startable)
        self._set(startable, states=_NOT_THERE, reason=NOT_GROWN)
        return startable

    @_asked
    def drain(self, names, reason):
        for name in names:
            if name not in self._nodes:
                self.drained_hosts[name] = reason
                continue
            self._set([name], states=self._nodes[name].states | {"DRAIN"}, reason=reason)

    @_asked
    def undrain(self, names):
        for name in names:
            self._set([name], states=self._nodes[name].states - {"DRAIN"}, reason="")

    @_asked
    def down(self, names, reason):
        for name in names:
            self._kill_jobs(name)
            self._set([name], states=self._nodes[name].states - {"IDLE"} | {"DOWN"}, reason=reason)

    @_asked
    def set_addresses(self, addresses):
        stale = tuple(
            name for name in addresses if name in self._nodes and self._nodes[name].address != addresses[name]
        )
        for name in stale:
            self._set([name], address=addresses[name])
        return stale

    @_asked
    def suspend_jobs(self, handles):
        self._change_jobs(handles, "RUNNING", "SUSPENDED")

    @_asked
    def resume_jobs(self, handles, timeout):
        self._change_jobs(handles, "SUSPENDED", "RUNNING")

    @_asked
    def hold_jobs(self, handles):
        self.held += handles

    @_asked
    def submit_lease(self, name, lease, cpus, memory):
        number = 1000 + max(self._jobs, default=0)
        self.queue_lease(number, name)
        return number

    @_asked
    def start_now(self, number):
        self._jobs[number] = replace(self._jobs[number], reason="None")

    @_asked
    def cancel_jobs(self, handles):
        for handle in handles:
            self._jobs.pop(int(handle), None)
        self._save()

    @_asked
    def release(self, addresses, timeout):
        for name, address in addresses.items():
            if name not in self.kept and name in self._nodes:
                self._kill_jobs(name)
                self._set([name], states=_NOT_THERE, reason=NOT_GROWN, address=address)
        if kept := self.kept & addresses.keys():
            raise SlurmError(f"Slurm did not give nodes back within {timeout:g} s: it has {', '.join(sorted(kept))}")

    def _kill_jobs(self, name):
        self.killed += [job.id for job in self._jobs.values() if name in job.nodes]
        self._jobs = {number: job for number, job in self._jobs.items() if name not in job.nodes}

    def _change_jobs(self, handles, before, after):
        wanted = set(map(str, handles))
        for number, job in self._jobs.items():
            if job.handle in wanted and before in job.states:
                self._jobs[number] = replace(job, states=job.states - {before} | {after})
        self._save()

    def _set(self, names, **changes):
        for name in names:
            self._nodes[name] = replace(self._nodes[name], **changes)
        self._save()

    def _save(self):
        if self._file:
            fresh = self._file.with_name(f".{self._file.name}.{threading.get_ident()}")
            fresh.write_bytes(pickle.dumps((self._nodes, self._jobs, self.killed)))
            fresh.rename(self._file)
