"""
resume: nodes from disk to ready, and their jobs go on where they stopped.

The order (docs/explain/suspend.md): restore all machines, paused; let them run; step each clock; check the gate again;
only then let Slurm speak to the node, its jobs go on, and new ones come. Until the first machine runs, everything can
be undone. From then on a node that fails stays as it is: drained, its job suspended, nothing lost, and it can be
resumed again.
"""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from saltmarsh import standin
from saltmarsh.errors import InvalidInput, NotEnoughFree, OperationFailed, ProviderError, SaltmarshError
from saltmarsh.guest import Guest
from saltmarsh.hostlist import fold_words
from saltmarsh.machine import Look, Phase, PowerState
from saltmarsh.model import State, nodeset

log = logging.getLogger(__name__)

REGISTER_SECONDS = 60
LEFTOVER_SECONDS = 120  # Slurm's KillWait comes first
ASK_AGAIN = 12
_POLL = 0.1
_RESUMABLE = frozenset({State.SUSPENDED, State.FAILED})
_THERE = (PowerState.RUNNING, PowerState.PAUSED)


@dataclass(frozen=True)
class Return:
    """A node that comes back: where from, and where to. ``state`` is None for one that is there already."""

    node: object
    host: str
    state: object


def plan(controller, names, host=None):
    """
    What :func:`resume` would do, and nothing else; the same errors.

    :returns: by node, the host on which it would be, and its state file
    :rtype: dict
    """
    return {
        each.node.name: {"host": each.host, "file": each.state.path if each.state else None}
        for each in _checked(controller, names, host)
    }


def resume(controller, names, host=None, say=log.info):
    """
    Bring suspended nodes back, with the jobs that are in them.

    Nodes on which a parallel job of theirs runs as well come back with them. A node that failed on its way back can be
    resumed again.

    :param Controller controller: what to act through
    :param names: the nodes
    :param host: the hypervisor, or a dict of them by node; by default the last one if it can take them, else one that
        can
    :param say: called with lines of progress
    :returns: by node its host, its jobs, and the seconds
    :rtype: dict
    :raises InvalidInput: a node is not suspended, or can't come back on that host
    :raises NoCapacity: no host has room
    :raises ProviderError: a state file is lost or damaged; nothing was changed
    :raises Conflict: another operation holds a node
    :raises Unreachable: Slurm or a host does not answer; nothing was changed
    :raises OperationFailed: they are not all back; says what became of them
    """
    standin.remind(controller)
    returns = _checked(controller, names, host)
    operation, _ = controller.ledger.begin(
        "resume", None, [each.node.name for each in returns], expect=_RESUMABLE, to=State.RESUMING, reason="restoring"
    )
    begun = time.monotonic()
    try:
        troubles, jobs = come_back(controller, operation, returns, say)
    except BaseException as err:
        _give_up(controller, operation, err)
        raise
    finish(controller, operation, troubles)
    seconds = round(time.monotonic() - begun, 2)
    return {each.node.name: {"host": each.host, "jobs": jobs[each.node.name], "seconds": seconds} for each in returns}


def come_back(controller, operation, returns, say):
    """
    Restore and take up nodes that an operation holds in ``resuming``.

    :returns: by name why one is not ready, and by name the jobs that go on
    :raises SaltmarshError: no machine could run; all are suspended again
    """
    restore_all(controller, operation, returns, say)
    names = {each.node.name for each in returns}
    nodes = controller.ledger.nodes(names)
    jobs = {node.name: _jobs_of(controller, node) for node in nodes}
    return take_up(controller, operation, nodes, (), say), jobs


def finish(controller, operation, troubles):
    """
    End an operation that brought nodes back.

    :raises OperationFailed: not all are
    """
    lines = fold_words(troubles)
    controller.ledger.finish(operation, "; ".join(lines) or "done")
    if lines:
        raise OperationFailed("; ".join(lines))


def restore_all(controller, operation, returns, say):
    """Restore machines, all of them or none; they are paused then."""
    if missing := [each for each in returns if each.state]:
        say(f"{nodeset(each.node.name for each in missing)}: restoring")
    for target in {each.host for each in returns}:
        members = {each.node.name for each in returns if each.host == target}
        controller.ledger.move(operation, members, State.RESUMING, host=target, reason=f"restoring on {target}")
    try:
        with ThreadPoolExecutor(len(returns)) as pool:
            list(pool.map(lambda each: _restore(controller, each), missing))
    except BaseException:
        put_back(controller, operation, returns)
        raise


def put_back(controller, operation, returns):
    """Undo restores after which no machine has run; the nodes are what they were, on the hosts where they were."""
    for each in returns:
        was = each.node
        if each.state:
            controller.vmstates_of(was.name).put_back(was.name, each.host)
        to = State.FAILED if was.state is State.FAILED else State.SUSPENDED
        controller.ledger.move(operation, {was.name}, to, host=was.host, reason=was.reason)


def take_up(controller, operation, nodes, dead, say):
    """
    Let Slurm and the jobs go on with nodes whose machines are there, running or paused.

    :param nodes: nodes in ``suspending`` or ``resuming``, held by the operation
    :param dead: names of those whose machine is lost; their jobs are Slurm's to requeue
    :param say: called with lines of progress
    :returns: by name, why it is not ready; it is failed then
    :rtype: dict[str, str]
    """
    living = [node for node in nodes if node.name not in dead]
    looks = {node.name: _look(controller, node) for node in living}
    marks = {name: look.suspension for name, look in looks.items()}
    away = [node for node in living if _was_away(looks[node.name])]
    troubles = dict.fromkeys(dead, "its machine died, and the memory of its jobs with it")
    _bury(controller, [node for node in nodes if node.name in dead])
    each_node(away, lambda node: _unpause(controller, node, marks[node.name]))
    if away:
        say(f"{nodeset(node.name for node in away)}: running, checking clock, munge, mounts, DNS")
    checked = each_node(away, lambda node: _gate(controller, node))
    troubles |= {name: trouble for name, trouble in checked.items() if trouble}
    troubles |= _waiting(marks, troubles)
    for name, why in troubles.items():
        controller.ledger.move(operation, {name}, State.FAILED, reason=why)
        if name not in dead:
            controller.slurm.drain([name], f"not back: {why}")
    if ready := [node for node in living if node.name not in troubles]:
        troubles |= _hand_over(controller, operation, ready, marks, {node.name for node in away}, say)
    return troubles


def each_node(nodes, act):
    """Do something to all nodes at once; by name what came of it. The first error counts, when all have ended."""
    if not nodes:
        return {}
    with ThreadPoolExecutor(len(nodes)) as pool:
        futures = {node.name: pool.submit(act, node) for node in nodes}
    return {name: future.result() for name, future in futures.items()}


def recover(controller, operation):
    """
    Finish a resume whose process died: if no machine runs yet, the nodes are suspended again; else they go on.

    :param Controller controller: what to act through
    :param Operation operation: the operation, adopted
    :raises SaltmarshError: that can't be done now
    """
    troubles = go_on(controller, operation)
    controller.ledger.finish(operation, "; ".join(["its process died", *fold_words(troubles)]))


def go_on(controller, operation):
    """
    Deal with the nodes that an adopted operation left in ``resuming``: take them up if one runs.

    :returns: by name, why one is failed now
    :rtype: dict[str, str]
    """
    nodes = unfinished(controller, operation, State.RESUMING)
    if not nodes:
        return {}
    looks = {node.name: _look(controller, node) for node in nodes}
    if not any(map(_may_have_run, looks.values())):
        for node in nodes:
            controller.vmstates_of(node.name).put_back(node.name, node.host)
        controller.ledger.move(operation, looks, State.SUSPENDED, reason="suspended; a resume died before it ran")
        return {}
    absent = [node for node in nodes if not _is_there(looks[node.name])]
    dead = {node.name for node in absent if lost(looks[node.name])}
    for node in absent:
        if node.name not in dead:
            controller.vmstates_of(node.name).restore(looks[node.name].state, node.host)
    return take_up(controller, operation, nodes, dead, log.info)


def unfinished(controller, operation, state):
    """
    The nodes that an adopted operation left in a state.

    If there are any, also those that it has failed meanwhile, in ``resuming`` again: nodes that share a job go on
    together or not at all.

    :rtype: list[Node]
    """
    held = [node for node in controller.ledger.nodes(operation.nodes) if node.operation == operation.id]
    if not any(node.state is state for node in held):
        return []
    if failed := [node.name for node in held if node.state is State.FAILED]:
        controller.ledger.move(operation, failed, State.RESUMING, reason="its process died, checking again")
    return [node for node in held if node.state in (state, State.FAILED)]


def _gate(controller, node):
    """What keeps a node from its work, in one line, or None."""
    guest = Guest(controller, node)
    try:
        guest.set_clock()
        wrong = guest.ready_again()
        if not wrong:
            wrong = _end_leftovers(controller, node, guest)
    except ProviderError as err:
        wrong = [str(err)]
    return "; ".join(wrong) or None


def _end_leftovers(controller, node, guest):
    """Processes of jobs that ended while the node was away: slurmctld has them killed when slurmd registers."""
    deadline, ask_at = time.monotonic() + LEFTOVER_SECONDS, 0.0
    while left := guest.jobs() - {job.id for job in controller.slurm.jobs([node.name])}:
        if time.monotonic() > deadline:
            return [f"processes of jobs {', '.join(map(str, sorted(left)))}, which have ended, are still there"]
        if time.monotonic() >= ask_at:
            # The order to kill them must reach the node itself; it is fit by now, and drained.
            controller.slurm.set_addresses({node.name: node.address})
            # Again and again: of a job that ended less than MessageTimeout ago slurmctld takes no notice (measured).
            guest.restart_slurmd()
            ask_at = time.monotonic() + ASK_AGAIN
        time.sleep(_POLL)
    return []


def _waiting(marks, troubles):
    """Nodes that are well, but have a parallel job on a node that is not: their job can't go on, so they wait."""
    waiting, grew = {}, True
    while grew:
        grew = False
        for name, mark in marks.items():
            if not mark or name in troubles or name in waiting:
                continue
            for other in [*troubles, *waiting]:
                shared = set(mark.jobs) & set(marks[other].jobs if marks.get(other) else ())
                if shared:
                    waiting[name] = f"waits with job {', '.join(sorted(shared))} for {other}"
                    grew = True
                    break
    return waiting


def _hand_over(controller, operation, nodes, marks, away, say):
    """Slurm speaks to the nodes again, their jobs go on, new ones come; returns by name why one does not register."""
    slurm = controller.slurm
    names = [node.name for node in nodes]
    # Before the first job does anything that must not be done twice.
    each_node(nodes, lambda node: controller.vmstates_of(node.name).settle(node.name, node.host))
    slurm.set_addresses({node.name: node.address for node in nodes})
    stopped = sorted({job for name in names if marks[name] for job in marks[name].jobs})
    if stopped:
        # One that somebody has resumed meanwhile runs for Slurm alone: its processes never heard of it (measured).
        awake = {job.handle for job in slurm.jobs(away) if "RUNNING" in job.states}
        slurm.suspend_jobs(sorted(awake & set(stopped)))
        slurm.resume_jobs(stopped, REGISTER_SECONDS)
        say(f"{nodeset(names)}: jobs {', '.join(stopped)} go on")
    drained = {name: marks[name].drained for name in names if marks[name] and marks[name].drained}
    for name, reason in drained.items():
        slurm.drain([name], reason)
    # One without a mark has not been drained by us.
    slurm.undrain([name for name in names if marks[name] and name not in drained])
    late = _wait_registered(slurm, names)
    _tell_again(slurm, names, stopped, drained)
    for name, why in late.items():
        controller.ledger.move(operation, {name}, State.FAILED, reason=why)
    ready = [node for node in nodes if node.name not in late]
    for node in ready:
        machines = controller.vmstates_of(node.name)
        if marks[node.name]:
            machines.mark(node.name, node.host, None)
        machines.forget(node.name, node.host)
    if ready:
        controller.ledger.move(operation, [node.name for node in ready], State.READY, reason="back at work")
        say(f"{nodeset(node.name for node in ready)}: back at work")
    return late


def _tell_again(slurm, names, jobs, drained):
    """What a slurmctld that was killed in between has forgotten, and nobody would remind it of (standin)."""
    asleep = {job.handle for job in slurm.jobs(names) if "SUSPENDED" in job.states} if jobs else set()
    if forgotten := sorted(asleep & set(jobs)):
        slurm.resume_jobs(forgotten, REGISTER_SECONDS)
    known = slurm.nodes(drained) if drained else {}
    for name, node in known.items():
        if node.reason != drained[name]:
            slurm.drain([name], drained[name])


def _wait_registered(slurm, names):
    deadline = time.monotonic() + REGISTER_SECONDS
    while late := {name: node.state for name, node in slurm.nodes(names).items() if not node.registered}:
        if time.monotonic() > deadline:
            return {
                name: f"slurmd did not register in {REGISTER_SECONDS} s: Slurm has it {state}"
                for name, state in late.items()
            }
        time.sleep(_POLL)
    return {}


def _bury(controller, dead):
    """Slurm is told that nodes are lost: their jobs are requeued if they may be, else they end with NODE_FAIL."""
    if dead:
        # The stand-in's answers would take DOWN back (ReturnToService).
        controller.slurm.set_addresses({node.name: node.address for node in dead})
        controller.slurm.down([node.name for node in dead], "its machine died while it was suspended or resumed")


def _unpause(controller, node, mark):
    machines = controller.vmstates_of(node.name)
    if mark:
        machines.mark(node.name, node.host, replace(mark, ran=True))
    machines.unpause(node.name, node.host)


def _was_away(look):
    """Whether a machine has stood still: not if it was only marked and drained."""
    return look.machine.state is PowerState.PAUSED or bool(look.suspension and look.suspension.ran)


def _may_have_run(look):
    """Whether a machine's disk may no longer be what its state file knows."""
    running = look.machine is not None and look.machine.state is PowerState.RUNNING
    return running or bool(look.suspension and look.suspension.ran)


def _restore(controller, each):
    controller.vmstates_of(each.node.name).restore(each.state, each.host)


def _look(controller, node):
    return controller.vmstates_of(node.name).look(node.name, node.host)


def _is_there(look):
    return look.machine is not None and look.machine.state in _THERE


def lost(look):
    """
    Why a machine that is not there can't be restored, or None.

    :param Look look: what there is of it
    :rtype: str | None
    """
    if _is_there(look):
        return "it was not suspended"
    if look.state is None:
        return "its state file is lost" if look.machine is None else "its machine is off, and has no state file"
    if look.state.machine is None:
        return look.state.trouble
    has_run = look.machine is not None and (look.suspension is None or look.suspension.ran)
    phase = look.state.suspension.phase
    if phase is Phase.OVER or (has_run and phase is not Phase.RESTORED):
        return f"its machine died after it had been resumed: {look.state.path} no longer fits its disk"
    return None


def _jobs_of(controller, node):
    mark = _look(controller, node).suspension
    return list(mark.jobs) if mark else []


def _checked(controller, names, host):
    """How each node would come back, with all that must come with it; or what stands against it."""
    for name in names:
        controller.site.pool_of(name)
    controller.slurm.ping()
    returns, names = {}, list(names)
    while missing := [name for name in names if name not in returns]:
        for node in _resumable(controller, missing):
            target = host.get(node.name) if isinstance(host, dict) else host
            returns[node.name] = each = _return(controller, node, target)
            mark = each.state.suspension if each.state else _look(controller, node).suspension
            names += [name for name in _together(controller, mark) if name not in names]
    _check_room(controller, returns)
    return list(returns.values())


def _check_room(controller, names):
    """Where others were grown in the place of suspended nodes, they must be gone before those come back."""
    for pool in {pool.name: pool for pool in map(controller.site.pool_of, names)}.values():
        nodes = controller.ledger.nodes(pool=pool.name)
        awake = sum(node.state is not State.SUSPENDED or node.name in names for node in nodes)
        if pool.limits.overcommit_suspended and pool.limits.max_nodes and awake > pool.limits.max_nodes:
            raise NotEnoughFree(
                f"pool {pool.name}: {awake} nodes would be awake, its limit is {pool.limits.max_nodes}; "
                "suspend or shrink others first"
            )


def _resumable(controller, names):
    nodes = {node.name: node for node in controller.ledger.nodes(names)}
    if free := [name for name in names if name not in nodes]:
        raise InvalidInput(f"{nodeset(free)}: not there, nothing to resume")
    if wrong := {name: str(node.state) for name, node in nodes.items() if node.state not in _RESUMABLE}:
        raise InvalidInput(f"not suspended: {'; '.join(fold_words(wrong))}")
    return nodes.values()


def _together(controller, mark):
    """The nodes that wait for the jobs of one of them."""
    if not mark or not mark.jobs:
        return []
    jobs = [job for job in controller.slurm.jobs() if job.handle in mark.jobs and "SUSPENDED" in job.states]
    waiting = {node.name for node in controller.ledger.nodes(states=_RESUMABLE)}
    return [name for job in jobs for name in job.nodes if name in waiting]


def _return(controller, node, host):
    machines = controller.vmstates_of(node.name)
    if node.state is State.SUSPENDED:
        # It left its host before it came into this state, so no host need answer that has not its file.
        look = Look(None, False, None, machines.latest(node.name, node.host))
    else:
        look = machines.look(node.name, node.host)
    if _is_there(look) and look.suspension:
        if host not in (None, look.machine.host):
            raise InvalidInput(f"{node.name} is on {look.machine.host} already; resume it there, then migrate it")
        return Return(node, look.machine.host, None)
    if trouble := lost(look):
        if node.state is State.FAILED:
            raise InvalidInput(f"{node.name} is failed ({node.reason}) and can't be resumed: {trouble}")
        raise ProviderError(
            f"{node.name} can't come back, nor can its jobs: {trouble}; "
            f"give it up with elastic.shrink {node.name} force=True"
        )
    return Return(node, machines.choose_host(look.state, host, node.host), look.state)


def _give_up(controller, operation, err):
    """
    End an operation that brought nothing back, or leave it to the engine if something is on its way.

    :raises OperationFailed: in place of the error, if that is an interruption or something is left
    """
    interrupted = isinstance(err, (KeyboardInterrupt, SystemExit))
    why = "interrupted" if interrupted else str(err) or repr(err)
    nodes = controller.ledger.nodes(operation.nodes)
    left = [node.name for node in nodes if node.state is State.RESUMING]
    try:
        if left:
            controller.ledger.abandon(operation)
        else:
            controller.ledger.finish(operation, f"given up: {why}")
    except SaltmarshError as trouble:
        log.error("resume %s: %s", operation.id, trouble)
    if left:
        raise OperationFailed(f"{why}; left to the engine: {nodeset(left)}") from err
    rest = {node.name: "suspended as before" if node.state is State.SUSPENDED else node.reason for node in nodes}
    raise OperationFailed(f"{why}; {'; '.join(fold_words(rest))}") from err
