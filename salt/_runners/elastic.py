"""
Grow and shrink a Slurm cluster with virtual machines.

Every function takes ``--out json``; progress goes to standard error. An error is one line, and a non-zero exit status:
2 where an argument or pillar is not acceptable (nothing was changed), 1 otherwise.
"""

import functools
import inspect
import logging
import os
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict

import salt.utils.event
from salt.exceptions import SaltException

from saltmarsh import (
    arguments,
    backfilling,
    breaker,
    checkpointing,
    growing,
    leasing,
    migrating,
    picture,
    reconciling,
    recovery,
    reporting,
    resuming,
    shrinking,
    suspending,
    utilization,
)
from saltmarsh import timeline as timelines
from saltmarsh.controller import Controller
from saltmarsh.errors import InvalidInput, SaltmarshError
from saltmarsh.pools import parse_count_or_nodes, parse_nodes

log = logging.getLogger(__name__)

NUDGE = "saltmarsh/nudge"


def _command(function):
    """Errors as one line and an exit status, not as a traceback."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        # Salt adds its own to what a reactor or an API passes.
        kwargs = {key: value for key, value in kwargs.items() if not key.startswith("__")}
        try:
            with _interrupted_by_signals():
                return function(*_bound(signature, args, kwargs).args)
        except (SaltmarshError, SaltException, OSError) as err:
            return _error(str(err), 2 if isinstance(err, InvalidInput) else 1)
        except (KeyboardInterrupt, SystemExit):
            return _error("interrupted; what was under way is left to the engine", 1)

    # Salt looks through it, and answers a wrong or missing argument with all the documentation and exit status 0.
    del wrapper.__wrapped__
    return wrapper


@contextmanager
def _interrupted_by_signals():
    """SIGINT and SIGTERM as KeyboardInterrupt: salt-run makes SystemExit of them, which Salt's loader may swallow."""
    if not _is_salt_run():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _error(line, retcode):
    __context__["retcode"] = retcode
    return {"error": line, "retcode": retcode}


def _bound(signature, args, kwargs):
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as err:
        raise InvalidInput(f"{err}; arguments are {', '.join(signature.parameters) or 'none'}") from err
    bound.apply_defaults()
    return bound


@_command
def grow(what, pool=None, min=None, host=None, timeout=None, map_out=None, test=False):
    """
    Create nodes and bring them into Slurm; returns when Slurm can use them.

    All of them or none: if one does not become ready, everything made is removed, and the reason is kept. Where a
    number is asked for, suspended nodes without jobs in their memory are resumed first.

    what
        How many, or which: a number or a hostlist. A number passes over free names for which there is a machine, a
        state file or volumes already.
    pool
        The pool; may be left out where there is only one, or where nodes are named.
    min
        Be content with so many.
    host
        The hypervisor on which they shall be, or one of the pool's providers; by default the hypervisor with most free
        memory, at the first provider that has room.
    timeout
        Seconds until a node must be ready; by default the pool's ``limits:boot_timeout``.
    map_out
        A file into which the salt-cloud map is written as well; ``salt-cloud -m`` can run it. Not over the API.
    test
        Only say what would be done.

    Returns, for each node, its address, its host, and the seconds of each phase.

    CLI Example:

    .. code-block:: bash

        salt-run elastic.grow 4 pool=virtual
        salt-run elastic.grow vn[001-002] host=hv1 test=True
    """
    what = parse_count_or_nodes(what)
    pool, host, map_out = arguments.text("pool", pool), arguments.text("host", host), _file("map_out", map_out)
    timeout = arguments.seconds("timeout", timeout)
    test = arguments.flag("test", test)
    controller = Controller.open(__opts__)
    pool = pool or arguments.pool_of(controller.site, what)
    if test:
        return {"would grow": growing.plan(controller, what, pool, min, host)}
    recovery.recover_abandoned(controller)
    return growing.grow(
        controller, what, pool, minimum=min, host=host, timeout=timeout, map_out=map_out, say=_progress()
    )


@_command
def shrink(what, pool=None, force=False, timeout=shrinking.DRAIN_SECONDS, test=False):
    """
    Drain nodes, wait for their jobs, destroy their machines, and free their names.

    what
        How many, or which: a number (failed nodes and idle ones first) or a hostlist.
    pool
        The pool; may be left out where there is only one, or where nodes are named.
    force
        Do not wait for jobs: Slurm requeues those that may be requeued, and kills the others.
    timeout
        Seconds to wait for running jobs; nodes that still have one then go back to work. Default: 600.
    test
        Only say which nodes would go, and which jobs they run.

    CLI Example:

    .. code-block:: bash

        salt-run elastic.shrink 2 pool=virtual
        salt-run elastic.shrink vn[003-004] force=True
    """
    what = parse_count_or_nodes(what)
    pool = arguments.text("pool", pool)
    timeout = arguments.seconds("timeout", timeout) or shrinking.DRAIN_SECONDS
    force, test = arguments.flag("force", force), arguments.flag("test", test)
    controller = Controller.open(__opts__)
    pool = pool or arguments.pool_of(controller.site, what)
    if test:
        return {"would shrink": shrinking.plan(controller, what, pool)}
    recovery.recover_abandoned(controller)
    gone = shrinking.shrink(
        controller, what, pool, force=force, timeout=timeout, reason=f"shrink by {_by()}", say=_progress()
    )
    return {"gone": gone}


@_command
def suspend(nodes, reason="", urgent=False, test=False):
    """
    Write nodes' memory to disk, with their running jobs in it; the hosts' memory and CPUs are free then.

    Nodes on which a parallel job of theirs runs as well are suspended with them. All of them or none: if one can't be,
    all go on, and their jobs as well.

    nodes
        A hostlist.
    reason
        Why, for Slurm's users (``sinfo -R``) and the history.
    urgent
        Write before others that are not urgent; one machine at a time is written to each storage.
    test
        Only say what would be done.

    Returns, for each node, its state file and its size (bytes), its jobs, and the seconds of each phase.

    CLI Example:

    .. code-block:: bash

        salt-run elastic.suspend vn001 reason='hv1 gets a new disk'
        salt-run elastic.suspend vn[001-004] test=True
    """
    nodes, reason = parse_nodes(nodes), arguments.line("reason", reason)
    urgent, test = arguments.flag("urgent", urgent), arguments.flag("test", test)
    controller = Controller.open(__opts__)
    if test:
        return {"would suspend": suspending.plan(controller, nodes)}
    recovery.recover_abandoned(controller)
    return suspending.suspend(controller, nodes, by=_by(), why=reason, urgent=urgent, say=_progress())


@_command
def resume(nodes, host=None, test=False):
    """
    Bring suspended nodes back; their jobs go on where they stopped.

    Nodes on which a parallel job of theirs runs as well come back with them. A node whose way back failed (clock,
    munge, mounts, DNS) is drained and keeps its job; mend it, and resume it again.

    nodes
        A hostlist.
    host
        The hypervisor on which they shall be; by default the last one if it can take them, else one that can.
    test
        Only say what would be done.

    CLI Example:

    .. code-block:: bash

        salt-run elastic.resume vn001
        salt-run elastic.resume vn[001-002] host=hv2
    """
    nodes, host, test = parse_nodes(nodes), arguments.text("host", host), arguments.flag("test", test)
    controller = Controller.open(__opts__)
    leasing.refuse(controller, nodes)
    if test:
        return {"would resume": resuming.plan(controller, nodes, host)}
    recovery.recover_abandoned(controller)
    return resuming.resume(controller, nodes, host, say=_progress())


@_command
def migrate(nodes, host, live=False, test=False):
    """
    Move nodes to another host, with the jobs that run on them.

    By default they are suspended and resumed there. The hosts must share their storage (``shared_storage`` of the
    provider).

    nodes
        A hostlist.
    host
        The hypervisor.
    live
        Let them run on while their memory is copied.
    test
        Only say what would be done.

    CLI Example:

    .. code-block:: bash

        salt-run elastic.migrate vn001 host=hv2
        salt-run elastic.migrate vn[001-002] host=hv2 live=True
    """
    nodes, host, live, test = (
        parse_nodes(nodes),
        arguments.text("host", host),
        arguments.flag("live", live),
        arguments.flag("test", test),
    )
    controller = Controller.open(__opts__)
    if test:
        return {"would migrate": migrating.plan(controller, nodes, host, live)}
    recovery.recover_abandoned(controller)
    return migrating.migrate(controller, nodes, host, by=_by(), live=live, say=_progress())


@_command
def checkpoint(node, reason="", test=False):
    """
    Keep a node's memory and disk as they are now, beside the node, which goes on after some seconds.

    node
        The node's name. It must run no parallel job: the ranks' memories would have to be of one moment.
    reason
        Why; kept with it.
    test
        Only say what would be done.

    Returns the checkpoint's number, its file and its size (bytes), the jobs in it, and the seconds.

    CLI Example:

    .. code-block:: bash

        salt-run elastic.checkpoint vn001 reason='before the big step'
    """
    node, reason, test = arguments.one_node(node), arguments.line("reason", reason), arguments.flag("test", test)
    controller = Controller.open(__opts__)
    if test:
        return {"would checkpoint": checkpointing.plan(controller, node)}
    recovery.recover_abandoned(controller)
    return checkpointing.checkpoint(controller, node, by=_by(), why=reason, say=_progress())


@_command
def checkpoints(node):
    """
    The checkpoints of a node by number, latest first: file, size (bytes), age (seconds), who made it, why, its jobs.

    node
        The node's name.

    CLI Example:

    .. code-block:: bash

        salt-run elastic.checkpoints vn001
    """
    return checkpointing.listing(Controller.open(__opts__), arguments.one_node(node))


@_command
def restore(node, checkpoint, reason="", test=False):
    """
    Put a node's memory and disk back to a checkpoint. What it has done since is lost; its jobs go on from there.

    Refused if a job runs on the node that is not in the checkpoint. The checkpoint stays. What the jobs have written
    elsewhere, for example over NFS, is not put back.

    node
        The node's name.
    checkpoint
        The checkpoint's number.
    reason
        Why, for Slurm's users (``sinfo -R``) and the history.
    test
        Only say what would be done.

    CLI Example:

    .. code-block:: bash

        salt-run elastic.restore vn001 checkpoint=3
    """
    node, reason, test = arguments.one_node(node), arguments.line("reason", reason), arguments.flag("test", test)
    controller = Controller.open(__opts__)
    if test:
        return {"would restore": checkpointing.plan_restore(controller, node, checkpoint)}
    recovery.recover_abandoned(controller)
    return checkpointing.restore(controller, node, checkpoint, by=_by(), why=reason, say=_progress())


@_command
def discard(node, checkpoint, test=False):
    """
    Delete a checkpoint of a node.

    node
        The node's name.
    checkpoint
        The checkpoint's number.
    test
        Only say what would be done.

    CLI Example:

    .. code-block:: bash

        salt-run elastic.discard vn001 checkpoint=3
    """
    node, test = arguments.one_node(node), arguments.flag("test", test)
    controller = Controller.open(__opts__)
    if test:
        return {"would discard": checkpointing.plan_discard(controller, node, checkpoint)}
    recovery.recover_abandoned(controller)
    checkpointing.discard(controller, node, checkpoint)
    return {"discarded": checkpoint}


@_command
def reconcile(grace=reconciling.GRACE, test=False):
    """
    Compare the ledger, the providers, Slurm, minion keys and DNS, and mend what differs; the engine does so by itself.

    Only what bears this cluster's mark and a name of a pool is ever removed. What can't be asked, or answers only in
    part, is left alone.

    grace
        Seconds that a difference must have lasted before something is removed for it. Default: 900.
    test
        Only say what differs, why, and what would be done about it.

    Returns, for each node, machine or host, what differs, since when, and what is done about it.

    CLI Example:

    .. code-block:: bash

        salt-run elastic.reconcile test=True
        salt-run elastic.reconcile grace=0
    """
    grace, test = arguments.whole_seconds("grace", grace), arguments.flag("test", test)
    controller = Controller.open(__opts__)
    if not test:
        recovery.recover_abandoned(controller)
    return reporting.differences(reconciling.reconcile(controller, grace=grace, test=test, say=_progress()), grace)


@_command
def backfill(verb, pool=None, target=None, force=False, timeout=shrinking.DRAIN_SECONDS, test=False):
    """
    Let nodes of a pool soak up bare metal that is idle, and step aside for others with their jobs intact.

    Each node has a lease, a job of low priority on bare metal that Slurm preempts and queues again by itself.

    verb
        ``start``: see to it that from now on ``target`` leases are queued or running; it returns at once. The engine
        ``backfill`` submits another one for each that is lost or cancelled. If there are more, those without a node
        end at once, and the others are not replaced when they end. ``stop``: end leases until ``target`` (default: 0)
        are left; their nodes are drained and shrunk before. ``status``: how many leases are wanted and how many there
        are, every lease, and its node.
    pool
        The pool; may be left out where there is only one.
    target
        How many leases.
    force
        ``stop`` only: do not wait for jobs.
    timeout
        ``stop`` only: seconds to wait for running jobs. Default: 600.
    test
        Only say what would be done.

    CLI Example:

    .. code-block:: bash

        salt-run elastic.backfill start pool=virtual target=8
        salt-run elastic.backfill status
        salt-run elastic.backfill stop pool=virtual
    """
    pool, force, test = arguments.text("pool", pool), arguments.flag("force", force), arguments.flag("test", test)
    timeout = arguments.seconds("timeout", timeout)
    if verb not in ("start", "stop", "status"):
        raise InvalidInput(f"{verb!r}: expected start, stop or status")
    if target is None:
        target = 0
    if type(target) is not int or target < 0 or (verb == "start" and target == 0):
        raise InvalidInput(f"target={target!r}: expected a number of leases")
    controller = Controller.open(__opts__)
    if verb == "status":
        return backfilling.status(controller, pool)
    if not test:
        recovery.recover_abandoned(controller)
    if verb == "start":
        submitted, ended = backfilling.start(controller, target, pool, test=test)
        if test:
            return {"would submit": list(submitted), "would end": ended}
        return {"submitted": submitted, "ended": ended}
    ended = backfilling.stop(controller, target, pool, force=force, timeout=timeout, test=test, say=_progress())
    return {"would end" if test else "ended": ended}


@_command
def timeline(out=None, since="1h"):
    """
    What was where and when: a row for each host and each node, bars for jobs on bare metal, leases, and what the
    nodes did.

    Needs in Slurm ``JobCompType=jobcomp/filetxt``, and to draw it altair and vl-convert-python.

    out
        A file for the picture: ``.html``, where each bar tells what it is when it is pointed at, or ``.svg``. Not over
        the API. By default, the bars are the answer.
    since
        How long ago it begins (``90s``, ``30m``, ``12h``, ``7d``), or a time such as ``2026-11-21T08:00``.

    CLI Example:

    .. code-block:: bash

        salt-run elastic.timeline out=/root/timeline.html since=2h
        salt-run elastic.timeline --out json
    """
    out, since, until = _file("out", out), arguments.since(since), time.time()
    controller = Controller.open(__opts__)
    bars, _ = timelines.gather(controller, since, until)
    if out is None:
        return [asdict(bar) for bar in bars]
    picture.draw(bars, list(controller.site.hosts), out)
    return {"out": out, "bars": len(bars)}


@_command
def report(since="1d"):
    """
    What hosts and nodes were used for: shares of the hosts' CPUs, node-hours by state and pool, preemptions, the work
    that they did not cost, and the seconds that saving and restoring took.

    since
        As of ``elastic.timeline``.

    CLI Example:

    .. code-block:: bash

        salt-run elastic.report since=7d
    """
    since, until = arguments.since(since), time.time()
    controller = Controller.open(__opts__)
    site = controller.site
    bars, runs = timelines.gather(controller, since, until)
    hosts = controller.slurm.nodes(site.hosts)
    cpus = {name: node.cpus for name, node in hosts.items()}
    pools = {name: pool.name for pool in site.pools.values() for name in pool.nodes}
    return utilization.report(bars, runs, cpus, pools, site.lease.partition, since, until)


@_command
def status(nodes=None):
    """
    Every node that is not free: state, since when, host, address, reason, Slurm's own state, jobs; and why Slurm can't
    use it, and what else differs, if anything.

    nodes
        A hostlist; then exactly these nodes, free ones too.

    CLI Example:

    .. code-block:: bash

        salt-run elastic.status
        salt-run elastic.status vn[001-004] --out json
    """
    names = None if nodes is None else list(parse_nodes(nodes))
    return reporting.status(Controller.open(__opts__), names)


@_command
def pools():
    """
    Every pool: what it is, how many of its nodes are in which state, and why it does not grow if it does not.

    CLI Example:

    .. code-block:: bash

        salt-run elastic.pools
    """
    return reporting.pools(Controller.open(__opts__))


@_command
def reset(pool):
    """
    Let a pool grow again that was stopped because its nodes failed one after the other.

    pool
        The pool.

    Returns what had kept it from growing.

    CLI Example:

    .. code-block:: bash

        salt-run elastic.reset virtual
    """
    controller = Controller.open(__opts__)
    pool = controller.site.pool(arguments.text("pool", pool))
    return {pool.name: breaker.reset(controller, pool)}


@_command
def history(node):
    """
    Everything that happened to a node, oldest first.

    node
        The node's name.

    CLI Example:

    .. code-block:: bash

        salt-run elastic.history vn001
    """
    return reporting.history(Controller.open(__opts__), arguments.one_node(node))


@_command
def nudge(node=None):
    """
    Tell the engine to look at a node now, or at all that are booting; the reactor's way of passing on a minion's start.

    The engine believes nothing of it: it looks into the ledger, and asks the minion.

    node
        The node's name.

    CLI Example:

    .. code-block:: bash

        salt-run elastic.nudge vn001
    """
    names = [] if node is None else list(parse_nodes(node))
    with salt.utils.event.get_master_event(__opts__, __opts__["sock_dir"], listen=False) as bus:
        return bus.fire_event({"nodes": names}, NUDGE)


def _progress():
    """How lines of progress are said: on standard error of salt-run; in the master's processes, in its log."""
    if not _is_salt_run():
        return log.info
    start = time.monotonic()

    def say(line):
        print(f"{time.monotonic() - start:7.1f} s  {line}", file=sys.stderr, flush=True)

    return say


def _is_salt_run():
    """Whether an administrator runs this, and not the master: for a user of the API, a minion, or a reactor."""
    return os.path.basename(sys.argv[0]) == "salt-run"


def _by():
    """Who asks, as far as Salt can tell."""
    if _is_salt_run():
        return os.environ.get("SUDO_USER") or __opts__.get("user", "root")
    return __user__


def _file(name, value):
    # The master writes wherever it likes: nobody may tell it to who could not do so himself.
    if value is not None and not _is_salt_run():
        raise InvalidInput(f"{name}={value!r}: only salt-run on the controller writes files")
    return arguments.text(name, value)
