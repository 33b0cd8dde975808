"""
migrate: nodes to another host with their running jobs, over the disk that both see, or live.
"""

import logging
import time

from saltmarsh import resuming, suspending
from saltmarsh.errors import InvalidInput, OperationFailed, ProviderError, SaltmarshError
from saltmarsh.hostlist import fold_words
from saltmarsh.leasing import leases
from saltmarsh.model import State, nodeset

log = logging.getLogger(__name__)


def plan(controller, names, host, live=False):
    """
    What :func:`migrate` would do, and nothing else; the same errors.

    :returns: by node, from where and to where, and its jobs
    :rtype: dict
    """
    nodes = _checked(controller, names, host, live)
    if live:
        return {node.name: {"from": node.host, "to": host} for node in nodes}
    leaving = suspending.plan(controller, names)
    return {name: {"from": each["host"], "to": host, "jobs": each["jobs"]} for name, each in leaving.items()}


def migrate(controller, names, host, *, by, live=False, say=log.info):
    """
    Move nodes to another host, with the jobs that run on them.

    By default they are suspended and resumed there, with all nodes on which a parallel job of theirs runs; with
    ``live`` each one runs on while its memory is copied.

    :param Controller controller: what to act through
    :param names: the nodes
    :param str host: the hypervisor
    :param str by: who wants it
    :param bool live: do not stop the jobs
    :param say: called with lines of progress
    :returns: by node its host, and the seconds
    :rtype: dict
    :raises InvalidInput: a node is not ready, is there already, or can't be on that host
    :raises NoCapacity: the host has no room
    :raises Conflict: another operation holds a node
    :raises Unreachable: Slurm or a host does not answer; nothing was changed
    :raises OperationFailed: they are not all there; says what became of them
    """
    nodes = _checked(controller, names, host, live)
    if live:
        return _migrate_live(controller, nodes, host, say)
    begun = time.monotonic()
    operation, done = suspending.carry_out(
        controller, "migrate", names, by=by, why=f"migrate to {host}", urgent=False, say=say
    )
    bring_back(controller, operation, done, host, say)
    seconds = round(time.monotonic() - begun, 2)
    return {node.name: {"host": node.host, "seconds": seconds} for node in controller.ledger.nodes(done)}


def bring_back(controller, operation, names, host, say):
    """
    Resume nodes that the operation has suspended, and end it.

    :param str host: where, if it can; None leaves them where they were
    :raises OperationFailed: they are not all back there; says what became of them
    """
    try:
        troubles = _come_back(controller, operation, names, host, say)
    except BaseException as err:
        _give_up(controller, operation, err)
        raise
    resuming.finish(controller, operation, troubles)


def recover(controller, operation):
    """
    Finish a migrate whose process died: its nodes go on, wherever they can.

    :param Controller controller: what to act through
    :param Operation operation: the operation, adopted
    :raises SaltmarshError: that can't be done now
    """
    troubles = suspending.finish_or_undo(controller, operation) | resuming.go_on(controller, operation)
    held = [node for node in controller.ledger.nodes(operation.nodes) if node.operation == operation.id]
    if away := [node.name for node in held if node.state is State.SUSPENDED]:
        troubles |= _come_back(controller, operation, away, None, log.info)
    _note_hosts(controller, operation)
    controller.ledger.finish(operation, "; ".join(["its process died", *fold_words(troubles)]))


def _note_hosts(controller, operation):
    """Where nodes are that may have moved while they ran; a move goes on when its client has died."""
    for node in controller.ledger.nodes(operation.nodes, states={State.READY}):
        suspending.wait_idle(controller, node)
        machine = controller.vmstates_of(node.name).look(node.name).machine
        if machine and machine.host != node.host:
            controller.ledger.move(operation, {node.name}, State.READY, host=machine.host, reason="moved")


def _checked(controller, names, host, live):
    """The nodes, if they could move to that host."""
    if host not in controller.site.hosts:
        raise InvalidInput(f"host {host!r} does not exist; hosts: {', '.join(controller.site.hosts)}")
    for name in names:
        controller.site.pool_of(name)
    controller.slurm.ping()
    nodes = controller.ledger.nodes(names)
    if free := set(names) - {node.name for node in nodes}:
        raise InvalidInput(f"{nodeset(free)}: not there, nothing to migrate")
    if wrong := {node.name: str(node.state) for node in nodes if node.state is not State.READY}:
        raise InvalidInput(f"can't be migrated: {'; '.join(fold_words(wrong))}")
    if there := [node.name for node in nodes if node.host == host]:
        raise InvalidInput(f"{nodeset(there)} is on {host} already")
    if not live:
        nodes, _, _ = suspending.checked(controller, names)
    _refuse_leased(controller, nodes)
    for members in suspending.by_provider(controller, (node for node in nodes if node.host != host)):
        controller.vmstates_of(members[0].name).check_target({node.name: node.host for node in members}, host)
    return nodes


def _refuse_leased(controller, nodes):
    """A node lives where its lease does: elsewhere it would use what Slurm has given to nobody, or to somebody else."""
    held = leases(controller)
    leased = {
        node.name: f"lives on {node.host} under lease {held[node.name].id}" for node in nodes if node.name in held
    }
    if leased:
        raise InvalidInput(
            f"can't be migrated: {'; '.join(fold_words(leased))}: drain that host in Slurm and requeue the lease"
        )


def _come_back(controller, operation, names, host, say):
    """Resume nodes that the operation has suspended: on that host, or where they were if it can't restore them."""
    nodes = controller.ledger.nodes(names)
    failed = None
    try:
        resuming.restore_all(controller, operation, _returns(controller, nodes, host), say)
    except SaltmarshError as err:
        # Restored on two hosts, they would ruin their disks: so only if nothing is left of the first attempt.
        if host is None or controller.ledger.nodes(names, states={State.RESUMING}):
            raise
        failed = err
        say(f"{nodeset(names)}: back to where they were, because: {err}")
        resuming.restore_all(controller, operation, _returns(controller, nodes, None), say)
    troubles = resuming.take_up(controller, operation, controller.ledger.nodes(names), (), say)
    if failed:
        became = "; ".join(fold_words(troubles)) or f"{nodeset(names)} and all jobs go on where they were"
        raise OperationFailed(f"{failed}; {became}") from failed
    return troubles


def _returns(controller, nodes, host):
    returns = []
    for node in nodes:
        machines = controller.vmstates_of(node.name)
        state = machines.look(node.name).state
        returns.append(resuming.Return(node, machines.choose_host(state, host, node.host), state))
    return returns


def _give_up(controller, operation, err):
    """
    End the operation if its nodes rest; otherwise leave it to the engine.

    :raises OperationFailed: in place of the error if something is left
    """
    interrupted = isinstance(err, (KeyboardInterrupt, SystemExit))
    why = "interrupted" if interrupted else str(err) or repr(err)
    try:
        _note_hosts(controller, operation)
        nodes = controller.ledger.nodes(operation.nodes)
        left = [node.name for node in nodes if node.state not in (State.READY, State.FAILED)]
    except SaltmarshError as trouble:
        log.warning("migrate %s: %s", operation.id, trouble)
        left = operation.nodes
    if left:
        controller.ledger.abandon(operation)
        raise OperationFailed(f"{why}; left to the engine: {nodeset(left)}") from err
    controller.ledger.finish(operation, f"given up: {why}")
    if interrupted:
        raise OperationFailed(why) from err


def _migrate_live(controller, nodes, host, say):
    ledger = controller.ledger
    names = [node.name for node in nodes]
    operation, _ = ledger.begin("migrate", None, names, expect={State.READY}, to=State.READY, reason=f"to {host}, live")
    moved, troubles = {}, {}
    try:
        for node in nodes:
            begun = time.monotonic()
            try:
                controller.vmstates_of(node.name).migrate(node.name, node.host, host)
            except ProviderError as err:
                troubles[node.name] = f"{err}; it stays where it is"
                continue
            ledger.move(operation, {node.name}, State.READY, host=host, reason=f"moved from {node.host}, live")
            moved[node.name] = {"host": host, "seconds": round(time.monotonic() - begun, 2)}
            say(f"{node.name}: on {host}")
    except BaseException as err:
        _give_up(controller, operation, err)
        raise
    resuming.finish(controller, operation, troubles)
    return moved
