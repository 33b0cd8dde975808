"""
Slurm's commands, and what the states of a pool's node mean. Nothing else in the project calls Slurm, but for the
trial of a configuration (:mod:`saltmarsh.slurmtrial`).

A node of a pool is ``State=CLOUD`` in slurm.conf. Its life in Slurm (measured with 24.11.5, see
docs/decisions/0004-cloud-node-states.md):

===================================  ===========================================================================
``DOWN+CLOUD+POWERED_DOWN``          *not there*: no job is placed on it, slurmctld does not ping it
``DOWN+CLOUD+POWERED_DOWN``          *expected* (:func:`expect`): the same with its address set and another reason
``IDLE+CLOUD``                       its slurmd has registered; ``ReturnToService=2`` makes it so by itself
``IDLE+CLOUD+DRAIN``                 drained (:func:`drain`)
``DOWN+CLOUD+POWERING_DOWN``         being given back (:func:`release`), for ``SuspendTimeout``
``IDLE+CLOUD+POWERED_DOWN``          Slurm may start it for a job (:func:`offer`); :func:`park` makes it not there
``ALLOCATED+CLOUD+POWERING_UP``      Slurm has called ResumeProgram for a job: it is wanted
===================================  ===========================================================================

Every function raises :class:`Unreachable` when slurmctld does not answer, :class:`SlurmError` when it refuses.
Arguments that name nodes are a hostlist, a NodeSet or an iterable of names; one call is one request to slurmctld
for up to 4000 nodes.
"""

import os
import pwd
import re
import time
from collections import defaultdict

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet

from saltmarsh import slurmcommand
from saltmarsh.errors import SlurmError, Unreachable
from saltmarsh.hostlist import fold
from saltmarsh.slurmcommand import ask, run
from saltmarsh.slurmtypes import LEAVING, SlurmJob, SlurmNode

NOT_GROWN = "not grown"
GROWING = "elastic.grow"  # also what an idle node says until its first job

# 4000 literal addresses are 64 KB; one argument may have 128 KB (MAX_ARG_STRLEN, execve(2)).
_NODES_PER_REQUEST = 4000
_POLL = 0.25
_OFFER_SECONDS = 60  # SuspendTimeout, and slurmctld looks at what to power down now and then
_RECONFIGURE = 60  # seconds until a new slurmctld process has read the state of a large cluster


def ping():
    """
    Make sure that slurmctld answers.

    :raises Unreachable: it does not
    """
    slurmcommand.ping()


def wait_ping(timeout, is_active=lambda: True):
    """
    Wait until slurmctld answers.

    :param float timeout: seconds
    :param is_active: whether slurmctld still runs; there is nothing to wait for if not
    :raises Unreachable: it has not by then
    """
    end = time.monotonic() + timeout
    while True:
        active = is_active()
        try:
            return ping()
        except Unreachable:
            if not active or time.monotonic() >= end:
                raise
        time.sleep(_POLL)


def nodes(names=None):
    """
    Nodes as slurmctld sees them.

    :param names: nodes; None for all of the cluster
    :returns: SlurmNode by name; a name that is not in Slurm's configuration is not in it
    :rtype: dict[str, SlurmNode]
    """
    if names is None:
        found = ask("scontrol", "show", "nodes", "--json")["nodes"]
    else:
        found = [
            node
            for chunk in _chunks(_names(names))
            for node in ask("scontrol", "show", "nodes", fold(chunk), "--json")["nodes"]
        ]
    return {node["name"]: SlurmNode.from_json(node) for node in found}


def jobs(nodes=None):
    """
    Jobs that are pending, running, suspended or completing.

    :param nodes: only jobs that hold one of these nodes; None for all jobs, pending ones included
    :rtype: tuple[SlurmJob, ...]
    """
    found = tuple(map(SlurmJob.from_json, ask("squeue", "--json")["jobs"]))
    if nodes is None:
        return found
    wanted = NodeSet.fromlist(_names(nodes), resolver=RESOLVER_NOGROUP)
    return tuple(job for job in found if job.nodes & wanted)


def ids_by_node(jobs):
    """
    Which jobs hold each node.

    :param jobs: SlurmJob, as :func:`jobs` returns them
    :returns: ids by node; a node without jobs has an empty list
    :rtype: collections.defaultdict[str, list[int]]
    """
    ids = defaultdict(list)
    for job in jobs:
        for name in job.nodes:
            ids[name].append(job.id)
    return ids


def park(names):
    """
    Make nodes not there that Slurm would otherwise start by itself; others stay as they are.

    :param names: nodes of pools
    :returns: the names that were changed
    :rtype: tuple[str, ...]
    """
    startable = tuple(name for name, node in nodes(names).items() if node.startable)
    for chunk in _chunks(startable):
        _update_nodes(chunk, state="DOWN", reason=NOT_GROWN)
    return startable


def offer(names):
    """
    Let Slurm start nodes by itself that are not there; others stay as they are.

    A node that has only been resumed is one that does not respond, in Slurm's eyes: it would be passed over as soon as
    slurmctld restarts or reads its configuration anew (measured). So it is powered down as well, and this returns when
    slurmctld has done so, ``SuspendTimeout`` later.

    :param names: nodes of pools
    :raises SlurmError: also if slurmctld does not come to it
    """
    for chunk in _chunks(tuple(name for name, node in nodes(names).items() if node.absent)):
        _update_nodes(chunk, state="RESUME")
    offered = tuple(name for name, node in nodes(names).items() if node.passed_over)
    for chunk in _chunks(offered):
        _update_nodes(chunk, state="POWER_DOWN")
    end = time.monotonic() + _OFFER_SECONDS
    while late := [node for node in nodes(offered).values() if node.passed_over or "POWERING_DOWN" in node.states]:
        if time.monotonic() >= end:
            raise SlurmError(f"Slurm does not power nodes down within {_OFFER_SECONDS} s: it has {_listed(late)}")
        time.sleep(_POLL)


def expect(addresses):
    """
    Nodes that are not there are about to boot: set their addresses, and say so in their reason.

    One that Slurm wants for a job keeps its state, and its job. The address is set here because slurmctld keeps the one
    it last had for a CLOUD node, whatever slurm.conf says.

    :param dict addresses: the address of each node by name
    :raises SlurmError: also if a node is not in Slurm's configuration or is there already
    """
    known = nodes(addresses)
    if missing := [name for name in addresses if name not in known]:
        raise SlurmError(f"{fold(missing)} is not in Slurm's configuration: run slurm.push_config")
    if there := [node for node in known.values() if not (node.absent or node.startable or node.wanted)]:
        raise SlurmError(f"Slurm has {_listed(there)}: expected DOWN+CLOUD+POWERED_DOWN, release it first")
    set_addresses({name: address for name, address in addresses.items() if known[name].wanted})
    for chunk in _chunks(tuple(name for name in addresses if not known[name].wanted)):
        _update_nodes(chunk, nodeaddr=fold(map(addresses.get, chunk)), state="DOWN", reason=GROWING)


def drain(names, reason):
    """
    Let no new job start on nodes; running jobs go on.

    :param names: nodes
    :param str reason: why, for the administrator (``sinfo -R``)
    """
    for chunk in _chunks(_names(names)):
        _update_nodes(chunk, state="DRAIN", reason=reason)


def undrain(names):
    """
    Take a drain back. Slurm asks the node to register again, and uses it after that (about one second).

    :param names: nodes
    """
    for chunk in _chunks(_names(names)):
        _update_nodes(chunk, state="UNDRAIN")


def down(names, reason):
    """
    Set nodes down. Jobs on them are requeued or killed.

    :param names: nodes
    :param str reason: why, for the administrator
    """
    for chunk in _chunks(_names(names)):
        _update_nodes(chunk, state="DOWN", reason=reason)


def release(addresses, timeout):
    """
    The machines of nodes are gone: make the nodes not there. Jobs that Slurm still has on them are requeued or killed.

    Returns when slurmctld has all in that state, ``SuspendTimeout`` after it was asked. The node's name is its
    address by then; the literal one is set again.

    :param dict addresses: the address of each node by name; a name that is not in Slurm's configuration is left out
    :param float timeout: seconds, well above SuspendTimeout
    :raises SlurmError: also if Slurm has not given a node back by then
    """
    end = time.monotonic() + timeout
    while found := [node for node in nodes(addresses).values() if not node.absent or node.reason != NOT_GROWN]:
        if time.monotonic() >= end:
            raise SlurmError(f"Slurm did not give nodes back within {timeout:g} s: it has {_listed(found)}")
        # Asked for again on purpose: an answer of the node that was still under way takes DOWN back (ReturnToService).
        down([node.name for node in found if "DOWN" not in node.states or node.reason != NOT_GROWN], NOT_GROWN)
        for chunk in _chunks([node.name for node in found if not node.states & LEAVING]):
            _update_nodes(chunk, state="POWER_DOWN_FORCE")
        time.sleep(_POLL)
    set_addresses(addresses)


def set_addresses(addresses):
    """
    Set the addresses at which slurmctld speaks to nodes, where they differ.

    :param dict addresses: the address of each node by name
    :returns: the names that were changed
    :rtype: tuple[str, ...]
    """
    known = nodes(addresses)
    stale = tuple(name for name, node in known.items() if node.address != addresses[name])
    for chunk in _chunks(stale):
        _update_nodes(chunk, nodeaddr=fold(map(addresses.get, chunk)))
    return stale


def cancel_jobs(handles):
    """
    Cancel jobs; ones that have already ended are no error.

    :param handles: of jobs, or ids
    """
    if handles := [str(job) for job in handles]:
        run("scancel", *handles)


def requeue_jobs(handles):
    """
    Put running batch jobs back into the queue.

    :param handles: of jobs, or ids
    :raises SlurmError: also if a job has ended or may not be requeued
    """
    if handles := [str(job) for job in handles]:
        run("scontrol", "requeue", ",".join(handles))


def suspend_jobs(handles):
    """
    Stop the processes of running jobs; ones that have ended or are suspended already are no error.

    Returns at once: the processes are stopped about two seconds later. The jobs' CPUs are free in Slurm's eyes, so
    drain their nodes before.

    :param handles: of jobs, or ids
    :raises SlurmError: a job is neither suspended nor has it ended; all others are suspended
    """
    if handles := [str(job) for job in handles]:
        try:
            run("scontrol", "suspend", ",".join(handles))
        except SlurmError as err:  # the text names one job by its number, and tells no ended one from an unknown one
            if going := [job for job in _known(handles) if job.states & {"PENDING", "RUNNING"}]:
                raise SlurmError(f"not suspended: {_told(going)}: {err}") from err


def resume_jobs(handles, timeout):
    """
    Let suspended jobs go on; ones that have ended or run are no error.

    Their nodes must be back: slurmctld does not wait for their answers, and of a node that does not hear it the job is
    RUNNING with its processes stopped, until it is suspended and resumed once more (measured). Where slurmctld refuses,
    as for a node it takes for UNKNOWN, it is asked again.

    :param handles: of jobs, or ids
    :param float timeout: seconds
    :raises SlurmError: a job is suspended still; all others go on
    """
    end = time.monotonic() + timeout
    handles = [str(job) for job in handles]
    while handles:
        try:
            run("scontrol", "resume", ",".join(handles))
            return
        except SlurmError as err:
            still = [job for job in _known(handles) if "SUSPENDED" in job.states]
            if still and time.monotonic() >= end:
                raise SlurmError(f"not resumed: {_told(still)}: {err}") from err
            handles = sorted({job.handle for job in still})
        time.sleep(_POLL)


def submit_lease(name, lease, cpus, memory):
    """
    Submit the job that holds CPUs and memory of a host for a node's machine; it runs until it is ended.

    :param str name: the node, after which the job is named
    :param saltmarsh.pools.Lease lease: partition, account and user
    :param int cpus: how many
    :param int memory: MiB
    :returns: the job's id
    :rtype: int
    :raises SlurmError: slurmctld refuses it, or there is no such user
    """
    try:
        group = pwd.getpwnam(lease.user).pw_gid
    except KeyError as err:
        raise SlurmError(f"elastic:lease:user: there is no user {lease.user} here") from err
    who = (f"--uid={lease.user}", f"--gid={group}", f"--account={lease.account}", f"--partition={lease.partition}")
    what = ("--nodes=1", "--ntasks=1", f"--cpus-per-task={cpus}", f"--mem={memory}", "--requeue", f"--job-name={name}")
    script = ("--chdir=/", "--output=/dev/null", "--export=NIL", "--wrap=exec /usr/bin/sleep infinity")
    said = run("sbatch", "--parsable", *who, *what, *script)
    return int(said.partition(";")[0])


def start_now(number):
    """Let a job that waits for its time start as soon as it can."""
    run("scontrol", "update", f"jobid={number}", "starttime=now")


def hold_jobs(handles):
    """
    Let jobs that are pending, or put back into the queue just now, not start until they are released.

    :param handles: of jobs, or ids
    """
    run("scontrol", "hold", ",".join(map(str, handles)))


def reconfigure(is_active=lambda: True):
    """
    Let slurmctld and every slurmd read the configuration again; returns when slurmctld answers with the new one.

    slurmctld starts a new process for it; if that one does not accept the configuration the old one goes on with
    the old configuration, and this raises. In the foreground (``slurmctld -D``) it ends instead (measured).

    :param is_active: whether slurmctld still runs
    """
    run("scontrol", "reconfigure")
    wait_ping(_RECONFIGURE, is_active)


def is_config_current(controller=None):
    """
    Whether the configuration that commands on this machine use is the one slurmctld runs with.

    On a configless node that is what its slurmd has fetched. The request and its answer are authenticated both ways.

    :param str controller: where a machine without any configuration fetches one for this question
    :rtype: bool
    """
    server = {"SLURM_CONF_SERVER": controller} if controller else {}
    output = run("scontrol", "show", "config", env={**os.environ, **server})
    match = re.search(r"^HASH_VAL\s*=\s*(\S+)", output, re.MULTILINE)
    if not match:
        raise SlurmError("scontrol show config has no HASH_VAL")
    return match[1] == "Match"


def _known(handles):
    """Those of the jobs that slurmctld still has."""
    return [job for job in jobs() if not {job.handle, str(job.id)}.isdisjoint(handles)]


def _told(some):
    """Jobs by handle with their states, for a message."""
    return ", ".join(f"job {job.handle} ({'+'.join(sorted(job.states))})" for job in some)


def _update_nodes(names, **what):
    run("scontrol", "update", f"nodename={fold(names)}", *(f"{key}={value}" for key, value in what.items()))


def _listed(some):
    """Nodes by state and reason, for a message."""
    groups = {}
    for node in some:
        groups.setdefault(f"{node.state} ({node.reason})" if node.reason else node.state, []).append(node.name)
    return "; ".join(f"{fold(names)} {words}" for words, names in groups.items())


def _names(names):
    """The names that a hostlist, a NodeSet or an iterable stands for."""
    if isinstance(names, str):
        names = NodeSet(names, resolver=RESOLVER_NOGROUP)
    return tuple(names)


def _chunks(names):
    return (names[at : at + _NODES_PER_REQUEST] for at in range(0, len(names), _NODES_PER_REQUEST))
