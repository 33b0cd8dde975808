"""
The state of a machine's memory: suspend to disk and back, pause, move, and what must be asked of its guest for that.

Part of the seam to libvirt, on top of :mod:`saltmarsh.hypervisor`. A machine that is suspended has no domain anywhere:
it is its volumes and its state file. So nothing can boot it anew by mistake, neither ``virsh start`` nor a host that
comes back, and every host that sees its files can take it up. A host that doesn't answer is an error, never a machine
that isn't there.
"""

import base64
import contextlib
import fcntl
import json
import logging
import time
from pathlib import Path
from urllib.parse import urlsplit

import libvirt
import libvirt_qemu

from saltmarsh import domain as xml
from saltmarsh import statefiles
from saltmarsh.errors import InvalidInput, NoCapacity, NotFound, ProviderError, Unreachable
from saltmarsh.hypervisor import undefine
from saltmarsh.libvirt_link import asking
from saltmarsh.machine import Look
from saltmarsh.model import nodeset
from saltmarsh.storage import bytes_left

log = logging.getLogger(__name__)

# What a state file may have beyond the memory in use: device state, and what doesn't compress.
MARGIN = 1.1
_OVERHEAD = 32 * 1024**2  # bytes
_IMAGE_FORMAT = "image_format"  # VIR_DOMAIN_SAVE_PARAM_IMAGE_FORMAT, which libvirt-python before 11.2 has no name for
_AGENT_CALL = 10  # seconds for one answer of a guest agent
_CLOCK_OFFSET = 0.3  # seconds
_POLL = 0.05
_AGENT_AWAY = (
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
    libvirt.VIR_ERR_AGENT_UNSYNCED,
    libvirt.VIR_ERR_OPERATION_INVALID,
)


class VmStates:
    """
    The memory of one provider's machines. Cheap to make; safe to use from several threads and processes.

    :param Hypervisors hypervisors: the provider's hosts
    :param lock_directory: where it is kept whose turn it is to write; all who use this provider need the same one
    """

    gives_back = True
    """Whether the provider can use a suspended machine's room for another."""

    def __init__(self, hypervisors, lock_directory):
        self._hypervisors = hypervisors
        self._config = hypervisors.config
        self._locks = Path(lock_directory)

    def look(self, name, host=None):
        """
        What there is of a machine: domain, mark and state file.

        :param str name: the machine
        :param str host: the only host to look at; all if not given
        :rtype: Look
        :raises Unreachable: a host doesn't answer
        """
        hosts = [host] if host else None
        saved = self._hypervisors.state_files([name], hosts) if self._config.state_dir else []
        state = saved[0] if saved else None
        try:
            where, connection, domain = self._hypervisors.find(name, hosts)
        except NotFound:
            return Look(None, False, None, state)
        with asking(where, connection, f"can't look at {name}"):
            machine = self._hypervisors.describe(where, domain)
            busy = bool(domain.isActive()) and domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE
            return Look(machine, busy, self._suspension(domain), state)

    def latest(self, name, host):
        """
        The latest state file of a machine that is suspended, or None.

        :param str host: on which it was; where storage is shared, any host that answers will do
        :rtype: StateFile
        :raises Unreachable: no host that could have it answers
        """
        hosts = None if self._config.shared_storage else [host]
        return next(iter(self._hypervisors.state_files([name], hosts)), None)

    def state_files(self, names=None, hosts=None):
        """As :meth:`saltmarsh.hypervisor.Hypervisors.state_files`."""
        return self._hypervisors.state_files(names, hosts)

    def check_room(self, places):
        """
        Make sure that there is room for the memory of machines: what they use now, and a margin.

        :param dict places: the host of each machine by name
        :raises NoCapacity: there is not; says how much is needed and where
        """
        needed = {}
        for name, host in places.items():
            needed.setdefault(self._storage(host), []).append((name, host))
        for members in needed.values():
            total = sum(self._memory_in_use(name, host) for name, host in members)
            host = members[0][1]
            [connection] = self._hypervisors.connect([host]).values()
            pool = statefiles.directory(host, connection, self._config)
            with asking(host, connection, f"can't see how much space {self._config.state_dir} has"):
                left = bytes_left(pool)
            if left < (wanted := int(total * MARGIN) + _OVERHEAD * len(members)):
                raise NoCapacity(
                    f"{host}: {self._config.state_dir} has {left // 1024**2} MiB left, "
                    f"the memory of {', '.join(name for name, _ in members)} may need {wanted // 1024**2} MiB"
                )

    def mark(self, name, host, suspension):
        """
        Write on a machine that runs why it is suspended, or with None that it no longer is.

        The mark goes into the state file with the machine, and comes back with it.
        """
        where, connection, domain = self._hypervisors.find(name, [host])
        element = xml.suspension_xml(suspension) if suspension else None
        with asking(where, connection, f"can't mark {name}"):
            domain.setMetadata(
                libvirt.VIR_DOMAIN_METADATA_ELEMENT,
                element,
                xml.SUSPENSION_PREFIX,
                xml.SUSPENSION,
                libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG,
            )

    def pause(self, name, host):
        """Stop a machine's CPUs; its memory stays. One that is paused is no error."""
        where, connection, domain = self._hypervisors.find(name, [host])
        with asking(where, connection, f"can't pause {name}"):
            if domain.state()[0] != libvirt.VIR_DOMAIN_PAUSED:
                domain.suspend()

    def unpause(self, name, host):
        """Let a machine's CPUs go on. One that runs is no error."""
        where, connection, domain = self._hypervisors.find(name, [host])
        with asking(where, connection, f"can't unpause {name}"):
            if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                domain.resume()

    def save(self, name, host, urgent=False):
        """
        Write a machine's memory to a state file, after which QEMU ends; :meth:`let_go` is next.

        One machine at a time is written to each storage, urgent ones first. If it can't be written, the machine is as
        it was before, or paused.

        :param str name: the machine
        :param str host: the host on which it runs
        :param bool urgent: before those that are not
        :rtype: StateFile
        :raises ProviderError: the file could not be written
        :raises Unreachable: the host doesn't answer (any more); what became of it isn't known
        """
        where, connection, domain = self._hypervisors.find(name, [host])
        with self._turn_to_write(host, urgent):
            path = statefiles.next_path(name, self._hypervisors.state_files([name], [host]), self._config)
            self._write(where, connection, domain, path)
        for state in self._hypervisors.state_files([name], [host]):
            if state.path == path and state.machine:
                return state
        raise ProviderError(f"{host}: the memory of {name} was written, but there is no complete {path}")

    def save_to(self, name, host, path):
        """
        Write a machine's memory to a file of one's choice; the machine is nothing but this file and its volumes then.

        :raises ProviderError, Unreachable: as :meth:`save`
        """
        where, connection, domain = self._hypervisors.find(name, [host])
        self._write(where, connection, domain, path)
        statefiles.read(host, connection, self._config, path)
        with asking(where, connection, f"can't undefine {name}"):
            undefine(domain)

    def read(self, path, host):
        """
        A state file wherever it is on a host.

        :rtype: StateFile
        :raises ProviderError: it can't be restored from, or is not of this cluster
        """
        [connection] = self._hypervisors.connect([host]).values()
        return statefiles.read(host, connection, self._config, path)

    def let_go(self, name, host):
        """
        Make a machine whose memory was saved leave its host: from now on it is its volumes and its state file.

        :raises ProviderError: it runs, or it has no state file that is complete
        """
        try:
            where, connection, domain = self._hypervisors.find(name, [host])
        except NotFound:
            return
        saved = self._hypervisors.state_files([name], [host])
        if not saved or not saved[0].machine:
            raise ProviderError(f"{host}: {name} has no complete state file and must not be undefined")
        with asking(where, connection, f"can't undefine {name}"):
            if domain.isActive():
                raise ProviderError(f"{host}: {name} is still active")
            mark = self._suspension(domain)
            if mark is None or mark.ran:
                raise ProviderError(f"{host}: {name} has run since {saved[0].path} was written")
            undefine(domain)

    def choose_host(self, state, host=None, last=None):
        """
        On which host a machine would come back: the given one, else the last one if it can, else another.

        :param StateFile state: its memory
        :param str host: the host asked for
        :param str last: the host on which it was
        :returns: the host's name
        :raises InvalidInput: ``host`` is not a host of this provider, or does not see the file
        :raises NoCapacity: no host that sees the file has room
        :raises Unreachable: none that could take it answers
        """
        if host is not None and host not in self._config.hosts:
            raise InvalidInput(f"{host} is not a host of this provider: {', '.join(self._config.hosts)}")
        able = list(self._config.hosts) if self._config.shared_storage else [state.host]
        if host is not None and host not in able:
            raise InvalidInput(
                f"{host} does not see {state.path}, which is on {state.host}: "
                "for another host the provider needs shared_storage"
            )
        order = [host] if host else sorted(able, key=lambda each: each != last)
        trouble, full = [], []
        for each in order:
            try:
                [connection] = self._hypervisors.connect([each]).values()
                self._check_memory(each, connection, state.machine)
            except Unreachable as err:
                trouble.append(err)
            except NoCapacity as err:
                full.append(err)
            else:
                return each
        if full:
            raise NoCapacity("; ".join(map(str, full)))
        raise Unreachable("; ".join(map(str, trouble)))

    def restore(self, state, host):
        """
        Bring a machine back from its state file, paused; :meth:`unpause` is next. The file stays.

        :param StateFile state: the machine's memory
        :param str host: where
        :raises NoCapacity: the host has no room for it
        :raises ProviderError: the host refused; nothing is left of the attempt
        :raises Unreachable: the host doesn't answer (any more)
        """
        [connection] = self._hypervisors.connect([host]).values()
        with self._hypervisors.placing():
            self._refuse_active(state.name)
            self._check_memory(host, connection, state.machine)
            with asking(host, connection, f"can't define {state.name}"):
                domain = connection.defineXML(connection.saveImageGetXMLDesc(state.path))
        try:
            with asking(host, connection, f"can't restore {state.name} from {state.path}"):
                connection.restoreFlags(state.path, None, libvirt.VIR_DOMAIN_SAVE_PAUSED | self._cache_flag)
        except ProviderError:
            with asking(host, connection, f"can't undefine {state.name}"):
                undefine(domain)
            raise

    def put_back(self, name, host):
        """
        Undo a restore after which the machine never ran: its state file is what it was.

        :raises ProviderError: it runs
        """
        try:
            where, connection, domain = self._hypervisors.find(name, [host])
        except NotFound:
            return
        with asking(where, connection, f"can't put {name} back"):
            mark = self._suspension(domain)
            if domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING or mark is None or mark.ran:
                raise ProviderError(f"{host}: {name} has run already")
            if domain.isActive():
                domain.destroy()
        self.let_go(name, host)

    def forget(self, name, host):
        """Delete a machine's state files."""
        [connection] = self._hypervisors.connect([host]).values()
        saved = self._hypervisors.state_files([name], [host])
        statefiles.delete(host, connection, self._config, [state.path for state in saved])

    def check_target(self, places, target):
        """
        Make sure that machines that run could all be on another host.

        :param dict places: the host of each machine by name
        :param str target: the other host
        :raises InvalidInput: the hosts don't share their storage
        :raises NoCapacity: the target has no room for them
        :raises NotFound, Unreachable: as :meth:`saltmarsh.hypervisor.Hypervisors.show`
        """
        if not self._config.shared_storage:
            raise InvalidInput(f"{nodeset(places)} can't change hosts: for that the provider needs shared_storage")
        [other] = self._hypervisors.connect([target]).values()
        found = [self._hypervisors.find(name, [host]) for name, host in places.items()]
        self._check_memory(target, other, *(self._hypervisors.describe(where, domain) for where, _, domain in found))

    def migrate(self, name, host, target):
        """
        Move a machine that runs to another host, with hardly a pause.

        :param str host: where it is
        :param str target: where it shall be
        :raises NoCapacity: the target has no room for it
        :raises ProviderError: it could not be moved, and still runs where it was
        """
        where, connection, domain = self._hypervisors.find(name, [host])
        [other] = self._hypervisors.connect([target]).values()
        flags = (
            libvirt.VIR_MIGRATE_LIVE
            | libvirt.VIR_MIGRATE_PEER2PEER
            | libvirt.VIR_MIGRATE_PERSIST_DEST
            | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
            | libvirt.VIR_MIGRATE_TLS
            # libvirt knows few file systems as shared ones; shared_storage is the administrator's word for it.
            | libvirt.VIR_MIGRATE_UNSAFE
        )
        with self._hypervisors.placing():
            self._check_memory(target, other, self._hypervisors.describe(where, domain))
            with asking(where, connection, f"can't move {name} to {target}"):
                uri = self._config.hosts[target].uri
                # libvirtd there would give its own full name, which its certificate need not have.
                named = {libvirt.VIR_MIGRATE_PARAM_TLS_DESTINATION: urlsplit(uri).hostname}
                domain.migrateToURI3(uri, named, flags)

    def set_clock(self, name, host, patience):
        """
        Step the guest's clock to this machine's, and see that it is.

        Not by libvirt's own virDomainSetTime: the agent would write the hardware clock as well, for half a second under
        emulation (measured), and QEMU's has followed the host's all the time.

        :param float patience: seconds until its guest agent must have answered
        :returns: how far off it is now, in seconds
        :raises ProviderError: the agent does not answer, or the clock can't be set
        """
        where, connection, domain = self._hypervisors.find(name, [host])
        deadline = time.monotonic() + patience
        while True:
            try:
                code, _, said = self.run_in_guest(name, host, ["/usr/bin/date", f"--set=@{time.time():.6f}"])
                with asking(where, connection, f"can't read the clock of {name}"):
                    asked = time.time()
                    guest = domain.getTime()
                    offset = guest["seconds"] + guest["nseconds"] / 1e9 - (asked + time.time()) / 2
            except ProviderError as err:
                cause = err.__cause__
                away = isinstance(cause, libvirt.libvirtError) and cause.get_error_code() in _AGENT_AWAY
                if not away or time.monotonic() > deadline:
                    raise
                time.sleep(_POLL)
                continue
            if abs(offset) <= _CLOCK_OFFSET:
                return offset
            if time.monotonic() > deadline:
                why = f" ({' '.join(said.split())})" if code else ""
                raise ProviderError(f"{host}: the clock of {name} is {offset:+.3f} s off after it was set{why}")

    def run_in_guest(self, name, host, argv, text="", timeout=60):
        """
        Run a program in the guest, by its agent.

        :param argv: the program's path and its arguments
        :param str text: its standard input
        :param float timeout: seconds
        :returns: its exit status, and what it wrote to stdout and stderr
        :rtype: tuple[int, str, str]
        :raises ProviderError: the agent does not answer, or the program did not end in time
        """
        where, connection, domain = self._hypervisors.find(name, [host])

        def ask(command, **arguments):
            with asking(where, connection, f"can't ask the guest agent of {name}"):
                request = json.dumps({"execute": command, "arguments": arguments})
                return json.loads(libvirt_qemu.qemuAgentCommand(domain, request, _AGENT_CALL, 0))["return"]

        deadline = time.monotonic() + timeout
        program, *rest = argv
        given = {"input-data": base64.b64encode(text.encode()).decode()} if text else {}
        pid = ask("guest-exec", path=program, arg=rest, **{"capture-output": True}, **given)["pid"]
        while not (status := ask("guest-exec-status", pid=pid))["exited"]:
            if time.monotonic() > deadline:
                raise ProviderError(f"{host}: {program} in {name} has not ended within {timeout:g} s")
            time.sleep(_POLL)
        out, err = (base64.b64decode(status.get(key, "")).decode(errors="replace") for key in ("out-data", "err-data"))
        return status.get("exitcode", 128 + status.get("signal", 0)), out, err

    def _write(self, host, connection, domain, path):
        flags = libvirt.VIR_DOMAIN_SAVE_PAUSED | self._cache_flag
        with asking(host, connection, f"can't write the memory of {domain.name()} to {path}"):
            if self._config.state_format == "raw":
                domain.saveFlags(path, None, flags)
            else:
                format_ = {_IMAGE_FORMAT: self._config.state_format}
                domain.saveParams({libvirt.VIR_DOMAIN_SAVE_PARAM_FILE: path, **format_}, flags)

    @property
    def _cache_flag(self):
        return libvirt.VIR_DOMAIN_SAVE_BYPASS_CACHE if self._config.bypass_cache else 0

    def _suspension(self, domain):
        try:
            return xml.read_suspension(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, xml.SUSPENSION))
        except libvirt.libvirtError as err:
            if err.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_NO_DOMAIN):
                raise
            return None

    def _memory_in_use(self, name, host):
        """Bytes of host memory that a machine uses, which is never much more than it was given."""
        where, connection, domain = self._hypervisors.find(name, [host])
        with asking(where, connection, f"can't see the memory of {name}"):
            given = domain.info()[1]
            return min(given, domain.memoryStats().get("rss", given)) * 1024

    def _refuse_active(self, name):
        """Two machines on one disk would ruin it."""
        connections, _ = self._hypervisors.connect_to_reachable()
        for host, connection in connections.items():
            domain = self._hypervisors.lookup(host, connection, name)
            with asking(host, connection, f"can't look at {name}"):
                if domain and domain.isActive():
                    raise ProviderError(f"{host}: {name} is active already")

    def _check_memory(self, host, connection, *machines):
        with asking(host, connection, "can't list domains"):
            defined = {domain.name() for domain in connection.listAllDomains()}
        free = self._hypervisors.host_now(host, connection).memory_free
        missing = [machine for machine in machines if machine.name not in defined]
        if missing and free < (needed := sum(machine.memory for machine in missing)):
            names = nodeset(machine.name for machine in missing)
            raise NoCapacity(f"no room for {names} ({needed} MiB): {host} has {free} MiB")

    def _storage(self, host):
        return "shared" if self._config.shared_storage else host

    @contextlib.contextmanager
    def _turn_to_write(self, host, urgent):
        """
        One at a time per storage. Who is urgent holds a second lock, shared, from before it waits until it is done;
        who is not gives way as long as anybody holds that.
        """
        stem = f"writer-{self._config.cluster}-{self._storage(host)}"
        try:
            self._locks.mkdir(parents=True, exist_ok=True)
            turn, before = ((self._locks / f"{stem}.{kind}").open("a") for kind in ("lock", "urgent"))
        except OSError as err:
            raise ProviderError(f"memory can't be written without a lock: {err}") from err
        with turn, before:
            try:
                if urgent:
                    fcntl.flock(before, fcntl.LOCK_SH)
                    fcntl.flock(turn, fcntl.LOCK_EX)
                else:
                    self._wait_behind_urgent(turn, before)
                yield
            finally:
                for lock in (turn, before):
                    fcntl.flock(lock, fcntl.LOCK_UN)  # closing isn't enough if the process has forked meanwhile

    def _wait_behind_urgent(self, turn, before):
        while True:
            fcntl.flock(turn, fcntl.LOCK_EX)
            try:
                fcntl.flock(before, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fcntl.flock(turn, fcntl.LOCK_UN)
                fcntl.flock(before, fcntl.LOCK_EX)
                fcntl.flock(before, fcntl.LOCK_UN)
            else:
                fcntl.flock(before, fcntl.LOCK_UN)
                return
