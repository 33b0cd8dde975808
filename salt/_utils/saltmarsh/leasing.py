"""
Leases, seen from a host: the node of a lease that starts comes back, the node of one that ends goes to disk.

A lease is a job on bare metal, named after its node. It holds the CPUs and the memory that the node's machine uses
there, so that Slurm decides where machines may be and when they must go. All here happens on the host, by its own
slurmd, and does not need the Salt master (docs/explain/backfill.md).
"""

import logging
import time
from dataclasses import replace

from saltmarsh import resuming, standin, suspending
from saltmarsh.errors import Conflict, InvalidInput, OperationFailed, SaltmarshError, Unreachable
from saltmarsh.hostlist import fold_words
from saltmarsh.machine import Phase
from saltmarsh.model import State, nodeset
from saltmarsh.record import Record, seen

log = logging.getLogger(__name__)

KILLED = "killed, because it could not be suspended"
DIED = "its machine died when it was just back"
PATIENCE = 60  # seconds in which what stands in the way of a suspend may pass
_POLL = 0.5


def leases(controller, pool=None):
    """
    All leases, by node. What else is submitted to their partition, by whomever, is none.

    :param controller: what to ask
    :param saltmarsh.pools.Pool pool: only of this pool's nodes
    :rtype: dict[str, saltmarsh.slurmtypes.SlurmJob]
    """
    return first(submitted(controller, pool))


def submitted(controller, pool=None):
    """
    All leases as they are in Slurm, also a second one of a node.

    :param controller: what to ask
    :param saltmarsh.pools.Pool pool: only of this pool's nodes
    :rtype: list[saltmarsh.slurm.SlurmJob]
    """
    lease, pools = controller.site.lease, [pool] if pool else list(controller.site.pools.values())
    return [
        job
        for job in controller.slurm.jobs()
        if (job.partition, job.user) == (lease.partition, lease.user) and any(job.name in each for each in pools)
    ]


def first(jobs):
    """
    Of each node the lease that was submitted first: its host may be at work for it already.

    :param jobs: of :func:`submitted`
    :rtype: dict[str, saltmarsh.slurm.SlurmJob]
    """
    found = {}
    for job in sorted(jobs, key=lambda job: job.id):
        found.setdefault(job.name, job)
    return found


def refuse(controller, names):
    """
    Nodes with leases are brought back by those alone: only then has Slurm given them a host.

    :param controller: what to ask
    :param names: nodes that somebody wants to resume
    :raises InvalidInput: one of them has a lease
    """
    held = leases(controller)
    if leased := {name: f"lease {held[name].id} brings it back" for name in names if name in held}:
        raise InvalidInput(f"can't be resumed by hand: {'; '.join(fold_words(leased))}")


def node_of(controller, number):
    """
    The node of a lease.

    :param HostController controller: what to act through
    :param int number: the lease's job
    :rtype: str | None
    """
    return next((name for name, job in leases(controller).items() if job.id == number), None)


def bring_back(controller, name, wait=time.sleep):
    """
    Restore the node of a lease that has started here, with the nodes with which it shares jobs.

    Returns when the node is here, or when there is nothing to restore: then the controller makes the node. As long as a
    node that must come with it has a lease that does not run, it waits; the lease that starts last brings all back.

    :param HostController controller: what to act through
    :param str name: the node
    :param wait: called with seconds to wait
    :raises SaltmarshError: it is not back
    """
    while True:
        scope = _scope(controller, name)
        with controller.locked(scope):
            if set(_scope(controller, name)) == set(scope):
                places = _places(controller, scope)
                away = [node for node in places.values() if node.state is not State.READY]
                if name not in places or not away:
                    return
                waiting, hosts = _hosts(controller, places)
                if not waiting:
                    _resume(controller, away, hosts)
                    return
                log.info("%s waits for the leases of %s", name, nodeset(waiting))
        wait(_POLL)


def put_away(controller, name, why):
    """
    Write the node of a lease that has ended here to disk, with the nodes with which it shares jobs.

    :param HostController controller: what to act through
    :param str name: the node
    :param str why: for Slurm's users
    :returns: whether there was a machine to be written
    :rtype: bool
    :raises SaltmarshError: it could not be, and goes on
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            scope = _scope(controller, name)
            with controller.locked(scope):
                if set(_scope(controller, name)) == set(scope):
                    return _put_away(controller, name, scope, why)
        except (Conflict, Unreachable) as err:
            if time.monotonic() > deadline:
                raise
            log.warning("%s: trying again: %s", name, err)
        time.sleep(_POLL)


def _put_away(controller, name, scope, why):
    places = _places(controller, scope)
    if halfway := [node for node in places.values() if node.state is State.FAILED]:
        if not _still_runs(controller, halfway):
            for node in halfway:
                _write_again(controller, node)
            return True
        # Whoever was about to stop these jobs has died: all go on, then they are stopped.
        _resume(controller, halfway, {})
        places = _places(controller, scope)
    if name not in places or places[name].host != controller.host or places[name].state is not State.READY:
        return False
    if _is_being_made(controller, name):
        controller.destroy(name)
        return True
    ready = [node for node in places.values() if node.state is State.READY]
    suspending.suspend(
        controller.with_record(Record(ready)), [node.name for node in ready], by="a lease", why=why, urgent=True
    )
    return True


def _still_runs(controller, nodes):
    jobs = controller.slurm.jobs([node.name for node in nodes])
    return any("RUNNING" in job.states for job in jobs)


def _is_being_made(controller, name):
    """Whether a node has never been one: Slurm waits for it, so there can't be a job on it."""
    known = controller.slurm.nodes([name])
    return name in known and known[name].absent and not controller.slurm.jobs([name])


def _write_again(controller, node):
    """A node whose way to disk or back has ended halfway: its jobs are stopped."""
    machines = controller.vmstates_of(node.name)
    mark = machines.look(node.name, node.host).suspension
    log.info("%s: is there halfway, writing its memory", node.name)
    controller.slurm.drain([node.name], standin.reason(mark.by, mark.at, mark.why))
    standin.stand_in(controller, [node.name])
    machines.pause(node.name, node.host)
    if mark.ran:
        machines.settle(node.name, node.host)  # its disk has moved on
        machines.forget(node.name, node.host)
    machines.mark(node.name, node.host, replace(mark, at=time.time(), ran=False))
    machines.save(node.name, node.host, urgent=True)
    machines.let_go(node.name, node.host)


def give_up(controller, name, number, err):
    """
    What becomes of a host whose node can't be written to disk, as pillar has it (``elastic:lease:on_save_failure``).

    ``keep``: the host stays the node's; it is drained, and the lease is held, until an administrator has mended it.
    ``kill``: the machine is removed, Slurm requeues its jobs, and the host is free. So it is with a machine that has
    died, whatever pillar has. One that is gone has been removed by somebody else.

    :param HostController controller: what to act through
    :param str name: the node
    :param int number: the lease's job
    :param err: why it can't be written
    """
    slurm, host = controller.slurm, controller.host
    look = controller.vmstates_of(name).look(name, host)
    if look.machine is None:
        log.warning("%s: %s is gone: %s", host, name, err)
        return
    if _is_written(look):
        controller.vmstates_of(name).let_go(name, host)
        return
    if controller.site.lease.on_save_failure == "keep" and not suspending.is_off(look.machine):
        log.error("%s: %s can't be suspended and keeps its host: %s", host, name, err)
        slurm.drain([host], f"{name} can't be suspended and keeps this host: {err}")
        slurm.hold_jobs([number])
        return
    log.error("%s: %s can't be suspended and is killed, its jobs are requeued: %s", host, name, err)
    slurm.set_addresses({name: controller.site.pool_of(name).address_of(name)})
    slurm.down([name], f"{KILLED}: {err}")
    controller.destroy(name)


def _resume(controller, away, hosts):
    names = [node.name for node in away]
    log.info("%s: restoring", nodeset(names))
    try:
        resuming.resume(controller.with_record(Record(away)), names, hosts)
    except SaltmarshError as err:
        raise OperationFailed(f"{nodeset(names)} not back: {err}") from err


def _scope(controller, name):
    """A node and those with which it shares jobs, in the order in which they are locked."""
    together, _, _ = suspending.expand([name], controller.slurm.jobs())
    return sorted(together)


def _places(controller, scope):
    """By name, the nodes of the scope that are there, as they are found."""
    found = {}
    for name in scope:
        machines = controller.vmstates_of(name)
        look = _look(controller, name)
        if _is_written(look):
            machines.let_go(name, look.machine.host)  # whoever wrote it has died
            look = _look(controller, name)
        elif _can_come_anew(look):
            machines.give_up(name, look.machine.host)  # its host has died
            look = _look(controller, name)
        if node := seen(controller.site, name, look, controller.host):
            found[name] = node
            if node.state is State.READY and look.state:
                machines.settle(name, node.host)  # it is back for good
                machines.forget(name, node.host)
    return found


def _look(controller, name):
    """What there is of a machine; no other host is asked for what is here, so that none can hold an urgent job up."""
    machines = controller.vmstates_of(name)
    look = machines.look(name, controller.host)
    return look if look.machine else machines.look(name)


def _is_written(look):
    """Whether a machine is off, and its memory on disk."""
    off = look.machine is not None and suspending.is_off(look.machine)
    return off and look.suspension and not look.suspension.ran and look.state and look.state.machine


def _can_come_anew(look):
    """Whether a machine died on its way back, before its jobs went on: its state file and the disk with that count."""
    off = look.machine is not None and suspending.is_off(look.machine)
    ran = off and look.suspension and look.suspension.ran and look.state and look.state.machine
    # A checkpoint is restored to on purpose, never because of this.
    return ran and look.state.suspension.phase is Phase.RESTORED and not look.state.suspension.kept


def _hosts(controller, places):
    """Nodes whose leases don't run yet, and by name the hosts of those that do; one without a lease needs none."""
    waiting, hosts = [], {}
    for name, job in leases(controller).items():
        if name in places and "RUNNING" in job.states:
            hosts[name] = next(iter(job.nodes))
        elif name in places and places[name].state is not State.READY:
            waiting.append(name)
    return waiting, hosts
