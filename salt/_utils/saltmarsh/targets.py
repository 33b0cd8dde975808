"""
How many leases each pool is to have (:mod:`saltmarsh.backfilling`): what was last asked for, until something else is.

There is one file for each pool, as a whole or not at all. Nobody looks at that of a pool that has left pillar; should
the pool come back, it counts again.
"""

import os
import tempfile
from pathlib import Path

from saltmarsh.errors import LedgerError


def wanted(controller, pool):
    """
    How many leases a pool is to have.

    :param Controller controller: what to ask
    :param Pool pool: the pool
    :returns: the number; None if nobody has ever said
    :rtype: int | None
    :raises LedgerError: there is something else in its place
    """
    path = _directory(controller) / pool.name
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as err:
        raise LedgerError(f"{path}: expected a number; salt-run elastic.backfill start writes it anew") from err


def keep(controller, pool, target):
    """
    Keep it; when this returns, it outlasts a power cut.

    :param Controller controller: what to act through
    :param Pool pool: the pool
    :param int target: the number
    """
    directory = _directory(controller)
    directory.mkdir(mode=0o755, exist_ok=True)
    handle, new = tempfile.mkstemp(prefix=".", dir=directory)  # no pool's name begins with a dot
    with os.fdopen(handle, "w") as file:
        file.write(f"{target}\n")
        file.flush()
        os.fsync(file.fileno())
    Path(new).rename(directory / pool.name)
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _directory(controller):
    return Path(controller.site.state_dir, "leases")
