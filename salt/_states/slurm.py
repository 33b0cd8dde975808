"""
Slurm's configuration as a state.
"""

from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "slurm"


def __virtual__():
    return __virtualname__


def config_pushed(name):
    """
    slurmctld and all nodes run the configuration that follows from pillar (``slurm.push_config``).

    For the controller. Where slurmctld does not run yet, the files are written for it to start with.

    name
        the directory of the configuration, for the reader

    .. code-block:: yaml

        /etc/slurm:
          slurm.config_pushed: []
    """
    return _config(name, "slurm.push_config")


def config_copied(name):
    """
    This minion's copy of Slurm's configuration is the one that follows from pillar (``slurm.fetch_config``).

    For nodes that keep a copy. Their slurmd reads it if it has changed.

    name
        the directory of the configuration, for the reader

    .. code-block:: yaml

        /etc/slurm:
          slurm.config_copied: []
    """
    return _config(name, "slurm.fetch_config")


def pools_parked(name):
    """
    Slurm tries to start no node of a pool by itself that is not ``on_demand`` (``slurm.park_pools``).

    For the controller, after slurmctld has started.

    name
        anything

    .. code-block:: yaml

        pools:
          slurm.pools_parked: []
    """
    test = __opts__["test"]
    try:
        parked = __salt__["slurm.park_pools"](test=test)
    except (CommandExecutionError, SaltInvocationError) as err:
        return _returned(name, False, str(err))
    if not parked:
        return _returned(name, True, "Slurm starts no node by itself")
    changes = {"parked": parked}
    if test:
        return _returned(name, None, f"{len(parked)} nodes would be parked", changes)
    return _returned(name, True, f"{len(parked)} nodes are parked", changes)


def _config(name, function):
    test = __opts__["test"]
    try:
        done = __salt__[function](test=test)
    except (CommandExecutionError, SaltInvocationError) as err:
        return _returned(name, False, str(err))
    if not done["changed"]:
        return _returned(name, True, f"configuration {done['digest'][:12]} is in place")
    changes = {"digest": done["digest"], "diff": done["diff"]}
    if test:
        return _returned(name, None, f"configuration {done['digest'][:12]} would be put in place", changes)
    return _returned(name, True, f"configuration {done['digest'][:12]} was put in place", changes)


def _returned(name, result, comment, changes=None):
    return {"name": name, "result": result, "comment": comment, "changes": changes or {}}
