"""
suspend: nodes from ready to disk, with their running jobs inside.

The order (docs/explain/suspend.md): drain, stop the jobs and see them stopped, freeze all machines, let the stand-in
answer for them, write their memory, undefine them. Until the last memory is written everything can be undone, and is:
then all that was frozen goes on.
"""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from saltmarsh import resuming, standin
from saltmarsh.errors import Conflict, InvalidInput, NotFound, OperationFailed, ProviderError, SaltmarshError
from saltmarsh.guest import GUEST_SECONDS, Guest
from saltmarsh.hostlist import fold_words
from saltmarsh.machine import PowerState, Suspension
from saltmarsh.model import State, nodeset

log = logging.getLogger(__name__)

STOP_SECONDS = 60  # for a job that starts or ends just now, and for Slurm's own pause before SIGSTOP (2 s)
BUSY_SECONDS = 600  # for a save that goes on after whoever began it has died
_POLL = 0.2
_TRIES = 3


@dataclass
class Seconds:
    """Where the time goes."""

    phases: dict = field(default_factory=dict)

    @contextmanager
    def of(self, phase):
        """Time a block."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.phases[phase] = round(time.monotonic() - begun, 2)


def plan(controller, names):
    """
    What :func:`suspend` would do, and nothing else; the same errors.

    :returns: by node its host, its jobs, and why it would be suspended although it was not named
    :rtype: dict
    """
    nodes, jobs, added = checked(controller, names)
    return {
        node.name: {
            "host": node.host,
            "jobs": sorted({job.handle for job in jobs if node.name in job.nodes}),
            **({"because": added[node.name]} if node.name in added else {}),
        }
        for node in nodes
    }


def suspend(controller, names, *, by, why, urgent=False, say=log.info):
    """
    Write nodes' memory to disk, with their running jobs in it; the hosts' memory and CPUs are free then.

    Nodes on which a parallel job of theirs runs as well are suspended with them.

    :param Controller controller: what to act through
    :param names: the nodes
    :param str by: who wants it
    :param str why: for Slurm's users and the history
    :param bool urgent: write before others that are not urgent
    :param say: called with lines of progress
    :returns: by node its host, its state file, the file's size in bytes, its jobs; and the seconds of each phase
    :rtype: dict
    :raises InvalidInput: a node is not ready, or a job of theirs also runs where it can't be suspended
    :raises NoCapacity: there is no room for their memory
    :raises Conflict: another operation holds a node
    :raises Unreachable: Slurm or a host does not answer; nothing was changed
    :raises OperationFailed: they could not be suspended; says what became of them
    """
    operation, done = carry_out(controller, "suspend", names, by=by, why=why, urgent=urgent, say=say)
    controller.ledger.finish(operation)
    return done


def carry_out(controller, verb, names, *, by, why, urgent, say, kept=False):
    """
    As :func:`suspend`, as the first part of an operation that still holds the nodes afterwards.

    :param str verb: what is being done
    :param bool kept: the state files become checkpoints when the nodes are back
    :returns: the operation, and what :func:`suspend` returns
    :rtype: tuple[Operation, dict]
    """
    for _ in range(_TRIES):
        nodes, _, added = checked(controller, names)
        for name, because in added.items():
            say(f"{name}: {because}")
        operation, nodes = controller.ledger.begin(
            verb,
            None,
            [node.name for node in nodes],
            expect={State.READY},
            to=State.SUSPENDING,
            reason=standin.reason(by, time.time(), why),
        )
        leaving = Leaving(controller, operation, nodes, Suspension(operation.started, by, why, kept=kept), urgent, say)
        try:
            if leaving.drain():
                return operation, leaving.carry_out()
            leaving.take_back("a job began that runs on other nodes, too")
        except BaseException as err:
            leaving.give_up(err)
            raise
    raise Conflict(f"{nodeset(names)}: parallel jobs begin faster than their nodes can be drained; try again")


class Leaving:
    """Nodes on their way to disk, held by an operation."""

    def __init__(self, controller, operation, nodes, suspension, urgent, say):
        self._controller = controller
        self._operation = operation
        self._nodes = {node.name: node for node in nodes}
        self._suspensions = dict.fromkeys(self._nodes, suspension)
        self._urgent = urgent
        self._say = say
        self._jobs = ()  # that held a node when it had been drained
        self._seconds = Seconds()
        self._machines = {name: controller.vmstates_of(name) for name in self._nodes}

    def drain(self):
        """Let no new job start on the nodes; False if one has begun meanwhile that runs on others as well."""
        slurm, names = self._controller.slurm, list(self._nodes)
        with self._seconds.of("drain"):
            before = slurm.nodes(names)
            for name in names:
                drained = before[name].reason or "drained" if "DRAIN" in before[name].states else ""
                # Marked first: who comes after a crash must know which drain is the administrator's.
                self._mark(name, drained=drained)
            first = self._suspensions[names[0]]
            slurm.drain(names, standin.reason(first.by, first.at, first.why))
            jobs = self._settled_jobs()
            self._jobs = self._ours(jobs)
            together, _, _ = expand(names, jobs)
            return self._nodes.keys() >= set(together)

    def carry_out(self):
        """Everything after the drain; returns what to tell of each node."""
        self.stop_jobs()
        with self._seconds.of("freeze"):
            self._freeze()
        with self._seconds.of("save"):
            saved = self._save()
        leave(self._controller, self._operation, self._nodes.values())
        self._say(f"{nodeset(self._nodes)}: suspended")
        return {
            name: {
                "host": self._nodes[name].host,
                "file": state.path,
                "size": state.size,
                "jobs": list(self._suspensions[name].jobs),
                "seconds": self._seconds.phases,
            }
            for name, state in saved.items()
        }

    def choose(self, states):
        """In place of the memory that they have, the nodes get that of these checkpoints; they are suspended then."""
        standin.stand_in(self._controller, self._nodes)
        for name, state in states.items():
            self._machines[name].choose(state, self._nodes[name].host, self._suspensions[name])
        give_up_memory(self._controller, self._operation, self._nodes.values())

    def take_back(self, why):
        """Let everything go on as before, and end the operation."""
        troubles = undo(self._controller, self._operation, self._nodes.values(), self._say)
        self._controller.ledger.finish(self._operation, "; ".join([why, *fold_words(troubles)]))
        return troubles

    def give_up(self, err):
        """
        Let everything go on because of an error.

        :raises OperationFailed: in place of the error; says what became of the nodes
        """
        interrupted = isinstance(err, (KeyboardInterrupt, SystemExit))
        why = "interrupted" if interrupted else str(err) or repr(err)
        if not self._controller.ledger.nodes(self._nodes, states={State.SUSPENDING}):
            self._controller.ledger.finish(self._operation, why)
            raise OperationFailed(f"{why}; {nodeset(self._nodes)} were suspended before that") from err
        self._say(f"{nodeset(self._nodes)}: going on, because: {why}")
        try:
            troubles = self.take_back(f"given up: {why}")
        except SaltmarshError as trouble:
            self._controller.ledger.abandon(self._operation)
            raise OperationFailed(f"{why}; left to the engine: {nodeset(self._nodes)} ({trouble})") from err
        became = "; ".join(fold_words(troubles)) or f"{nodeset(self._nodes)} and all jobs go on"
        raise OperationFailed(f"{why}; {became}") from err

    def _settled_jobs(self):
        """All jobs, once none of the nodes' is just beginning or ending: those can't be stopped."""
        deadline = time.monotonic() + STOP_SECONDS
        while True:
            jobs = self._controller.slurm.jobs()
            moving = [job for job in self._ours(jobs) if {"COMPLETING", "CONFIGURING"} & job.states]
            if not moving:
                return jobs
            if time.monotonic() > deadline:
                words = ", ".join(f"{job.handle} {'+'.join(sorted(job.states))}" for job in moving)
                raise Conflict(f"{nodeset(self._nodes)}: jobs neither run nor end: {words}")
            time.sleep(_POLL)

    def _ours(self, jobs):
        return [job for job in jobs if any(name in job.nodes for name in self._nodes)]

    def stop_jobs(self):
        """After the drain: stop the nodes' jobs until no process of theirs runs; returns the marks by node."""
        with self._seconds.of("stop"):
            self._stop_jobs()
        return self._suspensions

    def _stop_jobs(self):
        running = [job for job in self._jobs if "RUNNING" in job.states]
        for name in self._nodes:
            self._mark(name, jobs=tuple(sorted({job.handle for job in running if name in job.nodes})))
        if not running:
            return
        self._note(f"stopping jobs {', '.join(sorted({job.handle for job in running}))}")
        self._controller.slurm.suspend_jobs(sorted({job.handle for job in running}))
        ids = {name: [job.id for job in running if name in job.nodes] for name in self._nodes}
        self._each(lambda name, node: Guest(self._controller, node).wait_stopped(ids[name], STOP_SECONDS))

    def _mark(self, name, **changes):
        self._suspensions[name] = replace(self._suspensions[name], **changes)
        self._machines[name].mark(name, self._nodes[name].host, self._suspensions[name])

    def _freeze(self):
        self._note("frozen, writing memory")
        # First, so that no ping is on its way to a machine that stands still.
        standin.stand_in(self._controller, self._nodes)
        # All of them before the first is written: so a parallel job's connections survive.
        self._each(lambda name, node: self._machines[name].pause(name, node.host))

    def _save(self):
        return self._each(lambda name, node: self._machines[name].save(name, node.host, self._urgent))

    def _each(self, act):
        """Do something to all nodes at once; the first error counts, when all have ended."""
        with ThreadPoolExecutor(len(self._nodes)) as pool:
            futures = {name: pool.submit(act, name, node) for name, node in self._nodes.items()}
        return {name: future.result() for name, future in futures.items()}

    def _note(self, words):
        self._say(f"{nodeset(self._nodes)}: {words}")
        self._controller.ledger.move(self._operation, self._nodes, State.SUSPENDING, reason=words)


def give_up_memory(controller, operation, nodes):
    """Nodes for which a checkpoint has been chosen leave their hosts."""
    for node in nodes:
        Guest(controller, node).part()
        controller.vmstates_of(node.name).give_up(node.name, node.host)
    leave(controller, operation, nodes)


def leave(controller, operation, nodes):
    """Nodes whose memory is written leave their hosts."""
    for node in nodes:
        controller.vmstates_of(node.name).let_go(node.name, node.host)
    reasons = {node.name: _said(controller, node) for node in nodes}
    for reason in set(reasons.values()):
        names = {name for name, said in reasons.items() if said == reason}
        controller.ledger.move(operation, names, State.SUSPENDED, reason=reason)


def undo(controller, operation, nodes, say):
    """
    Let nodes go on that could not be suspended; restores those whose memory is on disk already.

    :returns: by name, why one is not ready again; it is failed then
    :rtype: dict[str, str]
    """
    looks = {node.name: wait_idle(controller, node) for node in nodes}
    written = {name for name, look in looks.items() if _is_written(look, operation)}
    for node in nodes:
        if node.name in written:
            controller.vmstates_of(node.name).restore(looks[node.name].state, node.host)
    living = {name for name, look in looks.items() if look.machine and not is_off(look.machine)}
    dead = looks.keys() - living - written
    return resuming.take_up(controller, operation, nodes, dead, say)


def recover(controller, operation):
    """
    Finish a suspend whose process died if all memory is written; otherwise let everything go on.

    :param Controller controller: what to act through
    :param Operation operation: the operation, adopted
    :raises SaltmarshError: that can't be done now
    """
    troubles = finish_or_undo(controller, operation)
    controller.ledger.finish(operation, "; ".join(["its process died", *fold_words(troubles)]))


def finish_or_undo(controller, operation):
    """
    Deal with the nodes that an adopted operation left in ``suspending``.

    :returns: by name, why one is failed now
    :rtype: dict[str, str]
    """
    nodes = resuming.unfinished(controller, operation, State.SUSPENDING)
    if not nodes:
        return {}
    if all(_is_written(wait_idle(controller, node), operation) for node in nodes):
        standin.stand_in(controller, [node.name for node in nodes])
        leave(controller, operation, nodes)
        return {}
    return undo(controller, operation, nodes, log.info)


def wait_idle(controller, node):
    """
    What there is of a node's machine, once libvirt is at work on it no more: a save goes on when its client has died.

    :rtype: saltmarsh.vmstate.Look
    """
    deadline = time.monotonic() + BUSY_SECONDS
    machines = controller.vmstates_of(node.name)
    while (look := machines.look(node.name, node.host)).busy:
        if time.monotonic() > deadline:
            raise ProviderError(f"{node.host}: still at work on {node.name} after {BUSY_SECONDS} s")
        time.sleep(_POLL)
    return look


def is_off(machine):
    """Whether a machine has ended, whichever way."""
    return machine.state in (PowerState.STOPPED, PowerState.CRASHED)


def _is_written(look, operation):
    """Whether a machine is off and its memory, as of this operation, is on disk; it has not run since."""
    state = look.state
    return bool(
        (look.machine is None or is_off(look.machine) and look.suspension and not look.suspension.ran)
        and state
        and state.machine
        and state.suspension
        and state.suspension.at >= operation.started
    )


def _said(controller, node):
    """Why a node is suspended, from its state file."""
    state = controller.vmstates_of(node.name).look(node.name, node.host).state
    return standin.reason(state.suspension.by, state.suspension.at, state.suspension.why)


def checked(controller, names):
    """
    The nodes that would be suspended, with all that must go with them; or what stands against it.

    :returns: the nodes, their jobs, and by name why one was added
    :rtype: tuple[tuple[Node, ...], list, dict[str, str]]
    """
    slurm, site = controller.slurm, controller.site
    for name in names:
        site.pool_of(name)
    together, added, jobs = expand(names, slurm.jobs())
    if foreign := [name for name in together if not any(name in pool for pool in site.pools.values())]:
        held = next(job for job in jobs if set(foreign) & set(job.nodes))
        raise InvalidInput(f"job {held.handle} also runs on {nodeset(foreign)}, which is no node of a pool")
    nodes = controller.ledger.nodes(together)
    known = {node.name: node for node in nodes}
    if free := [name for name in together if name not in known]:
        raise InvalidInput(f"{nodeset(free)}: not there, nothing to suspend")
    if wrong := {node.name: str(node.state) for node in nodes if node.state is not State.READY}:
        raise InvalidInput(f"can't be suspended: {'; '.join(fold_words(wrong))}")
    in_slurm = slurm.nodes(together)
    if unknown := [name for name in together if name not in in_slurm]:
        raise InvalidInput(f"can't be suspended: {nodeset(unknown)}: not in Slurm's configuration")
    if away := {name: node.state for name, node in in_slurm.items() if not node.registered}:
        raise InvalidInput(
            f"can't be suspended: {'; '.join(fold_words({n: f'Slurm has it {s}' for n, s in away.items()}))}"
        )
    _check_machines(controller, nodes)
    return nodes, jobs, added


def _check_machines(controller, nodes):
    for members in by_provider(controller, nodes):
        machines = controller.vmstates_of(members[0].name)
        for node in members:
            machine = machines.look(node.name, node.host).machine
            if machine is None or machine.state is not PowerState.RUNNING:
                raise NotFound(f"{node.host}: {node.name} does not run{f': it is {machine.state}' if machine else ''}")
        machines.check_room({node.name: node.host for node in members})
    with ThreadPoolExecutor(len(nodes)) as pool:
        list(pool.map(lambda node: Guest(controller, node).check_agent(GUEST_SECONDS), nodes))


def by_provider(controller, nodes):
    """
    Nodes that have the same provider together.

    :rtype: list[list[Node]]
    """
    together = {}
    for node in nodes:
        together.setdefault((node.pool, controller.profile_of(node.name)), []).append(node)
    return list(together.values())


def expand(names, jobs):
    """
    All nodes that must be suspended together with these: those on which their parallel jobs run as well.

    :param names: nodes
    :param jobs: SlurmJob
    :returns: all names, by added name why it was added, and the jobs that hold one of them
    :rtype: tuple[list[str], dict[str, str], list]
    """
    # A heterogeneous job's components have one handle.
    by_handle = {}
    for job in jobs:
        if job.states & {"RUNNING", "SUSPENDED", "COMPLETING"}:
            by_handle.setdefault(job.handle, []).append(job)
    together, added, touched, grew = list(names), {}, {}, True
    while grew:
        grew = False
        for handle, parts in by_handle.items():
            nodes = [name for part in parts for name in part.nodes]
            if handle in touched or not set(nodes) & set(together):
                continue
            touched[handle] = parts
            for name in nodes:
                if name not in together:
                    together.append(name)
                    added[name] = f"goes with {nodeset(set(nodes) & set(names) or nodes)}, as job {handle} runs on both"
                    grew = True
    return together, added, [part for parts in touched.values() for part in parts]
