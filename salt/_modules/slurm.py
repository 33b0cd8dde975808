"""
Slurm's nodes, jobs and configuration.

Needs Slurm's commands on the minion. Pushing the configuration belongs on the controller; it asks the nodes for theirs,
which the master must allow it (``peer``, see docs/howto/slurm.md).
"""

import functools
import re

from salt.exceptions import CommandExecutionError, SaltInvocationError

from saltmarsh import slurm, slurmconf, slurmpush
from saltmarsh.errors import InvalidInput, SaltmarshError
from saltmarsh.pools import parse_nodes

__virtualname__ = "slurm"

_PUBLISH_TIMEOUT = 30
_JOB = re.compile(r"[1-9][0-9]*(_([0-9]+|\[[0-9,:-]+\]))?")


def __virtual__():
    return __virtualname__


def _errors_of_salt(function):
    """Let callers of Salt see Salt's own errors."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except InvalidInput as err:
            raise SaltInvocationError(str(err)) from err
        except SaltmarshError as err:
            raise CommandExecutionError(str(err)) from err

    return call


@_errors_of_salt
def ping():
    """
    Make sure that slurmctld answers.

    Returns True; an error if it does not answer.

    CLI Example:

    .. code-block:: bash

        salt ctl slurm.ping
    """
    slurm.ping()
    return True


@_errors_of_salt
def nodes(names=None):
    """
    Nodes as slurmctld sees them: state, reason, address, partitions, features, CPUs and memory (MiB) by name.

    names
        a hostlist; all nodes of the cluster if it is left out

    CLI Example:

    .. code-block:: bash

        salt ctl slurm.nodes 'vn[001-004]'
    """
    found = slurm.nodes(names and parse_nodes(names))
    return {
        name: {
            "state": node.state,
            "reason": node.reason,
            "address": node.address,
            "partitions": list(node.partitions),
            "features": list(node.features),
            "cpus": node.cpus,
            "memory": node.memory,
        }
        for name, node in found.items()
    }


@_errors_of_salt
def jobs(nodes=None):
    """
    Jobs that are pending, running, suspended or completing, by id. The handle is how Slurm's commands name exactly this
    job, for example ``4711_3`` for one of an array.

    nodes
        a hostlist: only jobs on these nodes; all jobs if it is left out

    CLI Example:

    .. code-block:: bash

        salt ctl slurm.jobs nodes='vn[001-004]'
    """
    return {
        job.id: {
            "handle": job.handle,
            "name": job.name,
            "user": job.user,
            "partition": job.partition,
            "state": "+".join(sorted(job.states)),
            "nodes": str(job.nodes),
            "reason": job.reason,
        }
        for job in slurm.jobs(nodes and parse_nodes(nodes))
    }


@_errors_of_salt
def drain(names, reason):
    """
    Let no new job start on nodes; jobs that run go on.

    names
        a hostlist

    reason
        why, for the administrator (``sinfo -R``)

    CLI Example:

    .. code-block:: bash

        salt ctl slurm.drain hv1 reason='new disk'
    """
    slurm.drain(parse_nodes(names), reason)
    return True


@_errors_of_salt
def undrain(names):
    """
    Take a drain back.

    names
        a hostlist

    CLI Example:

    .. code-block:: bash

        salt ctl slurm.undrain hv1
    """
    slurm.undrain(parse_nodes(names))
    return True


@_errors_of_salt
def down(names, reason):
    """
    Set nodes down. Jobs on them are requeued, or killed if they can't be.

    names
        a hostlist

    reason
        why, for the administrator (``sinfo -R``)

    CLI Example:

    .. code-block:: bash

        salt ctl slurm.down hv1 reason='on fire'
    """
    slurm.down(parse_nodes(names), reason)
    return True


@_errors_of_salt
def cancel(*ids):
    """
    Cancel jobs.

    ids
        one or more job ids or handles; a job that has already ended is no error

    CLI Example:

    .. code-block:: bash

        salt ctl slurm.cancel 4711 4712
    """
    slurm.cancel_jobs(_job_ids(ids))
    return True


@_errors_of_salt
def requeue(*ids):
    """
    Put running batch jobs back into the queue.

    ids
        one or more job ids or handles

    CLI Example:

    .. code-block:: bash

        salt ctl slurm.requeue 4711
    """
    slurm.requeue_jobs(_job_ids(ids))
    return True


@_errors_of_salt
def suspend_jobs(*ids):
    """
    Stop the processes of running jobs. For Slurm their CPUs are free then: drain the nodes before, or another job
    starts there.

    ids
        one or more job ids or handles; a job that has ended or is suspended already is no error

    CLI Example:

    .. code-block:: bash

        salt ctl slurm.suspend_jobs 4711 4712_3
    """
    slurm.suspend_jobs(_job_ids(ids))
    return True


@_errors_of_salt
def resume_jobs(*ids, timeout=60):
    """
    Let suspended jobs go on.

    ids
        one or more job ids or handles; a job that has ended or runs is no error

    timeout
        for how many seconds to try again while Slurm refuses

    CLI Example:

    .. code-block:: bash

        salt ctl slurm.resume_jobs 4711 4712_3
    """
    if type(timeout) not in (int, float) or timeout < 0:
        raise SaltInvocationError(f"timeout: expected seconds, got {timeout!r}")
    slurm.resume_jobs(_job_ids(ids), timeout)
    return True


@_errors_of_salt
def reconfigure():
    """
    Let slurmctld and every slurmd read the configuration again, as it is now. To change it, use ``slurm.push_config``.

    CLI Example:

    .. code-block:: bash

        salt ctl slurm.reconfigure
    """
    slurm.reconfigure()
    return True


@_errors_of_salt
def render_config():
    """
    The files of Slurm's configuration that follow from this minion's pillar, by name. Nothing is written.

    CLI Example:

    .. code-block:: bash

        salt ctl slurm.render_config
    """
    return slurmconf.render(_pillar())


@_errors_of_salt
def config_hash():
    """
    The digest of the configuration that Slurm uses on this minion: what slurmd has fetched, or else /etc/slurm.

    CLI Example:

    .. code-block:: bash

        salt '*' slurm.config_hash
    """
    return slurmpush.digest_here()


@_errors_of_salt
def push_config(test=False):
    """
    Make slurmctld and all nodes run the configuration that follows from pillar. Jobs that run or wait go on.

    The new configuration is proven by a slurmctld on trial before it replaces the old one. If slurmctld
    does not take it nevertheless, the old one is put back. Nodes that keep a copy write theirs, and every node that
    is there must then have the same digest. Where slurmctld does not run, only the files are written.

    test
        change nothing, only say what would change

    CLI Example:

    .. code-block:: bash

        salt ctl slurm.push_config test=True
    """
    controller = slurmpush.Controller(
        _pillar(),
        publish=_publish,
        is_active=lambda: __salt__["service.status"]("slurmctld"),
        restart=lambda: __salt__["service.restart"]("slurmctld"),
    )
    pushed = controller.push(test=test)
    return {
        "changed": pushed.changed,
        "digest": pushed.digest,
        "diff": pushed.diff,
        "slurmctld_runs": pushed.running,
    }


@_errors_of_salt
def fetch_config(digest=None, test=False):
    """
    Bring this minion's copy of Slurm's configuration up to date, from its pillar, and let its slurmd read it.

    digest
        what the result must be; nothing is written if pillar leads to another configuration

    test
        change nothing, only say what would change

    CLI Example:

    .. code-block:: bash

        salt hv1 slurm.fetch_config
    """
    copied = slurmpush.write_copy(_pillar(), digest, test)
    if copied.changed and not test and __salt__["service.status"]("slurmd"):
        __salt__["service.reload"]("slurmd")
    return {"changed": copied.changed, "digest": copied.digest, "diff": copied.diff}


@_errors_of_salt
def park_pools(test=False):
    """
    Make nodes of pools not there for Slurm that it would otherwise try to start for a job: new ones, all of them after
    slurmctld has lost its state, and ones that somebody has resumed. Not those of pools that are ``on_demand``.

    test
        change nothing, only say which

    Returns the names.

    CLI Example:

    .. code-block:: bash

        salt ctl slurm.park_pools
    """
    names = slurmconf.parked(_pillar())
    if test:
        return [name for name, node in slurm.nodes(names).items() if node.startable]
    return list(slurm.park(names))


def _pillar():
    """Pillar as the master has it now; what the minion remembers may be older."""
    pillar = __salt__["pillar.items"](unmask=True)
    if errors := pillar.get("_errors"):
        raise CommandExecutionError(f"pillar can't be rendered: {'; '.join(errors)}")
    return pillar


def _publish(names, function, *args):
    return __salt__["publish.publish"](",".join(names), function, list(args), tgt_type="list", timeout=_PUBLISH_TIMEOUT)


def _job_ids(ids):
    if not ids or any(isinstance(job, bool) or not _JOB.fullmatch(str(job)) for job in ids):
        raise SaltInvocationError(f"expected one or more job ids or handles such as 4711 and 4711_3, got {ids!r}")
    return ids
