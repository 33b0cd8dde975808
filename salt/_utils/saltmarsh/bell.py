"""
The bell that slurmctld rings when it wants nodes or has given some up: files in a directory that is SlurmUser's.

What it wants is asked of slurmctld itself. Its states are the queue: they outlast a restart of the master and one of
slurmctld, and a request can be neither lost nor forged.
"""

from pathlib import Path

DIRECTORY = Path("/var/lib/saltmarsh/power")


def rung(directory=DIRECTORY):
    """
    Whether somebody has rung since this was last asked. Nothing in the directory is opened or followed.

    :param pathlib.Path directory: where the programs of salt/slurm/files ring
    :rtype: bool
    """
    found = False
    for name in ("up", "down", "failed"):
        try:
            (directory / name).unlink()
            found = True
        except OSError:  # nobody has, or it is nothing that can be rung
            pass
    return found
