"""
Bring a new configuration to Slurm so that it either runs everywhere, or the last good one still does.

The order: render and check, prove with a slurmctld on trial, replace the files, ``scontrol reconfigure``, see that
slurmctld and every slurmd took it, let the nodes with a copy of their own write theirs, compare digests everywhere.
"""

import contextlib
import difflib
import fcntl
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from saltmarsh import slurm, slurmconf, slurmtrial
from saltmarsh.errors import Conflict, SaltmarshError, SlurmError
from saltmarsh.hostlist import fold

CONFIG = Path("/etc/slurm")
FETCHED = Path("/run/slurm/conf")  # where a configless slurmd keeps what it has fetched (slurmd(8))
KEPT = Path("/var/lib/saltmarsh/slurm")

_KEEP = 10
_SETTLE = 60  # seconds for slurmds to take a configuration; they do within one
_POLL = 0.5


@dataclass(frozen=True)
class Pushed:
    """What a push did, or would do."""

    digest: str
    changed: bool
    diff: str  # unified; empty if the files were right already
    running: bool  # False: slurmctld does not run, only the files were written


class Controller:
    """
    The machine that runs slurmctld.

    :param dict pillar: the keys ``slurm`` and ``elastic``
    :param publish: called with names, a function of the execution module and its arguments, returns the answers by
        name; who does not answer is not in it
    :param is_active: whether the service manager has slurmctld running
    :param restart: restarts slurmctld by the service manager
    """

    def __init__(self, pillar, publish, is_active, restart):
        self._pillar = pillar
        self._publish = publish
        self._is_active = is_active
        self._restart = restart

    def push(self, test=False):
        """
        Make slurmctld and all nodes run the configuration that follows from pillar. Jobs go on.

        :param bool test: change nothing
        :rtype: Pushed
        :raises PillarError: pillar is not acceptable
        :raises SlurmError: Slurm does not accept it; the last good configuration runs
        :raises Unreachable: slurmctld runs but does not answer; nothing was changed
        """
        files = slurmconf.render(self._pillar)
        before = read(CONFIG)
        running = self._runs()
        changed = files != before or not _is_standin_current(files)
        result = Pushed(slurmconf.digest(files), changed, _diff(before, files), running)
        if running and not result.changed and not slurm.is_config_current():
            result = Pushed(result.digest, True, result.diff, running)
        if test or not result.changed:
            return result
        with _lock():
            if running:
                self._check_removed(slurmconf.node_names(self._pillar))
            self._try()
            if running:
                self._replace(files, before)
            else:
                _write_here(files)
            _keep(files)
        if running:
            self._spread(result.digest)
        return result

    def _runs(self):
        """Whether slurmctld runs; raises if that is in doubt."""
        try:
            slurm.ping()
        except SaltmarshError:  # without any configuration yet, scontrol can't even ask
            if self._is_active():
                raise
            return False
        return True

    def _check_removed(self, names):
        """slurmctld kills the jobs on nodes that leave its configuration; a VM would be left over."""
        leaving = {name: node for name, node in slurm.nodes().items() if name not in names}
        if grown := [name for name, node in leaving.items() if "CLOUD" in node.states and not _away(node)]:
            raise Conflict(f"{fold(grown)} would leave Slurm's configuration but has grown: shrink it first")
        if jobs := slurm.jobs(leaving) if leaving else ():
            held = ", ".join(f"job {job.id} on {job.nodes}" for job in jobs)
            raise Conflict(f"nodes would leave Slurm's configuration with jobs on them ({held}): drain them first")

    def _try(self):
        directory = Path(tempfile.mkdtemp(prefix="slurm-trial-"))
        try:
            # Plugins may have files of their own beside slurm.conf (gres.conf, job_submit.lua, ...).
            if CONFIG.exists():
                shutil.copytree(CONFIG, directory, symlinks=True, dirs_exist_ok=True)
            (directory / "state").mkdir()
            write(slurmconf.render_trial(self._pillar, str(directory)), directory)
            self._give_to_slurm_user(directory, directory / "state")
            slurmtrial.try_config(directory / "slurm.conf", slurmconf.controller(self._pillar).address)
        finally:
            shutil.rmtree(directory)

    def _give_to_slurm_user(self, *paths):
        user = slurmconf.slurm_user(self._pillar)
        try:
            for path in paths:
                shutil.chown(path, user)
        except LookupError as err:
            raise SlurmError(f"SlurmUser={user}: there is no such user on this machine") from err

    def _replace(self, files, before):
        # Files that somebody has edited are not what slurmctld runs with.
        good = before if slurm.is_config_current() else _latest_kept() or before
        started = self._started()
        try:
            addresses = slurmconf.pool_addresses(self._pillar)
            if addresses.keys() - slurm.nodes().keys():
                # Slurm would start a new node for a job that waits. So no job starts until the new ones are parked.
                self._apply(slurmconf.render_idle(self._pillar))
                slurm.park(slurmconf.parked(self._pillar))
            self._apply(files)
            if not slurm.is_config_current():
                raise SlurmError("slurmctld does not run with the new files after scontrol reconfigure")
            late = _wait_restarted(started)
            if late and len(late) == len(started):
                raise SlurmError(f"no slurmd came back with it within {_SETTLE} s ({fold(late)})")
        except SaltmarshError as err:
            self._roll_back(good, err)
        if late:
            raise SlurmError(f"the slurmd of {fold(late)} did not come back with the new configuration, all others did")
        slurm.set_addresses({name: addresses[name] for name, node in slurm.nodes(addresses).items() if _away(node)})

    def _apply(self, files):
        _write_here(files)
        slurm.reconfigure(self._is_active)

    def _roll_back(self, good, err):
        """Put the last good files back, make slurmctld run with them, and say why."""
        _write_here(good)
        try:
            slurm.reconfigure(self._is_active)
        except SaltmarshError:
            self._restart()
            slurm.wait_ping(_SETTLE)
        raise SlurmError(f"{err}; the last good configuration ({slurmconf.digest(good)[:12]}) is back") from err

    def _there(self):
        """Nodes whose own slurmd has registered: neither the stand-in nor one that it answers for."""
        standin = slurmconf.controller(self._pillar).address
        return [node for node in slurm.nodes().values() if node.registered and node.address != standin]

    def _started(self):
        """Since when each slurmd runs. It is known in whole seconds: wait until a new start is another one."""
        while True:
            started = {node.name: node.slurmd_start for node in self._there()}
            if not 0 <= time.time() - max(started.values(), default=0) < 1:
                return started
            time.sleep(_POLL)

    def _spread(self, digest):
        """Let copies be written, and compare digests on every node that is there."""
        copies = slurmconf.local_copies(self._pillar)
        live = [node.name for node in self._there()]
        told = {name: ("slurm.fetch_config", digest) if name in copies else ("slurm.config_hash",) for name in live}
        answers = {}
        for call in sorted(set(told.values())):
            answers |= self._publish([name for name in live if told[name] == call], *call)
        has = {name: said.get("digest") if isinstance(said, dict) else said for name, said in answers.items()}
        if wrong := [name for name in live if has.get(name) != digest]:
            said = "; ".join(f"{name}: {has.get(name, 'no answer')}" for name in wrong)
            raise SlurmError(f"slurmctld runs configuration {digest[:12]}, but not confirmed by {fold(wrong)} ({said})")


def write_copy(pillar, digest=None, test=False):
    """
    Write this machine's own copy of the configuration that follows from pillar.

    :param dict pillar: the keys ``slurm`` and ``elastic``
    :param str digest: what the result must be; None for whatever pillar leads to
    :param bool test: change nothing
    :rtype: Pushed
    :raises PillarError: pillar is not acceptable
    :raises Conflict: pillar leads to another configuration; nothing was written
    """
    files = slurmconf.render(pillar)
    before = read(CONFIG)
    result = Pushed(slurmconf.digest(files), files != before, _diff(before, files), running=True)
    if digest not in (None, result.digest):
        raise Conflict(f"pillar leads to configuration {result.digest[:12]} here, not to {digest[:12]}")
    if result.changed and not test:
        write(files, CONFIG)
    return result


def digest_here():
    """
    The digest of the configuration in use on this machine: what slurmd has fetched, else the one in /etc/slurm.

    :rtype: str
    :raises SlurmError: there is none
    """
    files = read(FETCHED) or read(CONFIG)
    if not files:
        raise SlurmError(f"there is no slurm.conf in {FETCHED} or {CONFIG}")
    return slurmconf.digest(files)


def read(directory):
    """
    The configuration in a directory.

    :param pathlib.Path directory: /etc/slurm, or where slurmd keeps what it has fetched
    :returns: the text of each file by name; nothing if there is none
    :rtype: dict[str, str]
    """
    return {path.name: path.read_text() for name in slurmconf.FILES if (path := directory / name).exists()}


def write(files, directory):
    """
    Replace a configuration; each file is there as a whole, before and after.

    :param dict files: the text of each file by name
    :param pathlib.Path directory: is made if need be
    :raises SlurmError: it can't be written (disk full, ...)
    """
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        present = read(directory)
        for name in dict.fromkeys((*slurmconf.FILES, *files)):
            if name not in files:
                (directory / name).unlink(missing_ok=True)
            elif files[name] != present.get(name):
                _replace_file(directory / name, files[name])
    except OSError as err:
        raise SlurmError(f"{err.filename or directory}: {err.strerror}") from err


def _replace_file(path, text):
    new = path.with_name(f".{path.name}.new")
    try:
        with new.open("w") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _write_here(files):
    """Replace the configuration on the controller: slurmctld's and the stand-in's."""
    write(files | slurmconf.for_standin(files), CONFIG)


def _is_standin_current(files):
    path = CONFIG / slurmconf.STANDIN
    return path.exists() and path.read_text() == slurmconf.for_standin(files)[slurmconf.STANDIN]


def _away(node):
    return node.absent or node.startable


def _wait_restarted(started):
    """Which slurmds have not started again: a reconfigure makes each a new process, which registers."""
    end = time.monotonic() + _SETTLE
    while True:
        known = slurm.nodes(started) if started else {}
        late = [name for name, at in started.items() if name in known and not _restarted(known[name], at)]
        if not late or time.monotonic() >= end:
            return late
        time.sleep(_POLL)


def _restarted(node, before):
    return node.registered and node.slurmd_start not in (0, before)  # 0: a new slurmctld has not heard of it yet


def _diff(before, after):
    lines = []
    for name in slurmconf.FILES:
        old, new = (files.get(name, "").splitlines(keepends=True) for files in (before, after))
        lines += difflib.unified_diff(old, new, str(CONFIG / name), str(CONFIG / name))
    return "".join(lines)


def _keep(files):
    """Keep this configuration under its digest, and of the older ones the latest few."""
    write(files, KEPT / slurmconf.digest(files))
    os.utime(KEPT / slurmconf.digest(files))
    for old in _kept()[:-_KEEP]:
        shutil.rmtree(old)


def _kept():
    """The directories of configurations that slurmctld has accepted, the latest last."""
    found = [path for path in KEPT.iterdir() if path.is_dir()]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def _latest_kept():
    kept = _kept()
    return read(kept[-1]) if kept else {}


@contextlib.contextmanager
def _lock():
    KEPT.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (KEPT / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise Conflict("another push of Slurm's configuration is under way") from err
        yield
