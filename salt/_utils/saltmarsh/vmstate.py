"""
The state of a machine's memory: suspend to disk and back, pause, move, and what must be asked of its guest for that.

Part of the seam to libvirt, on top of :mod:`saltmarsh.hypervisor`. A machine that is suspended has no domain anywhere:
it is its volumes and its state file. So nothing can boot it anew by mistake, neither ``virsh start`` nor a host that
comes back, and every host that sees its files can take it up. A host that doesn't answer is an error, never a machine
that isn't there.
"""

from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import libvirt

from saltmarsh import domain as xml
from saltmarsh import guestagent, snapshots, statefiles
from saltmarsh.errors import InvalidInput, NoCapacity, NotFound, ProviderError, Unreachable
from saltmarsh.hypervisor import undefine
from saltmarsh.libvirt_link import asking
from saltmarsh.machine import Look, Phase
from saltmarsh.model import nodeset
from saltmarsh.storage import bytes_left, check_image
from saltmarsh.turns import turn_to_write

# What a state file may have beyond the memory in use: device state, and what doesn't compress.
MARGIN = 1.1
_OVERHEAD = 32 * 1024**2  # bytes
_IMAGE_FORMAT = "image_format"  # VIR_DOMAIN_SAVE_PARAM_IMAGE_FORMAT, which libvirt-python before 11.2 has no name for


class VmStates:
    """
    The memory of one provider's machines. Cheap to make; safe to use from several threads and processes.

    :param Hypervisors hypervisors: the provider's hosts
    :param lock_directory: where it is kept whose turn it is to write; all who use this provider need the same one
    """

    gives_back = True
    """Whether the provider can use a suspended machine's room for another."""
    keeps_checkpoints = True
    """Whether a machine's memory and disk can be kept beside the machine."""

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
        state = self._latest(name, hosts) if self._config.state_dir else None
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
        return self._latest(name, None if self._config.shared_storage else [host])

    def state_files(self, names=None, hosts=None):
        """As :meth:`saltmarsh.hypervisor.Hypervisors.state_files`, without checkpoints."""
        return [state for state in self._hypervisors.state_files(names, hosts) if not state.is_checkpoint]

    def checkpoints(self, names=None, hosts=None):
        """As :meth:`saltmarsh.hypervisor.Hypervisors.state_files`, checkpoints only."""
        return [state for state in self._hypervisors.state_files(names, hosts) if state.is_checkpoint]

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
        with turn_to_write(self._locks, f"writer-{self._config.cluster}-{self._storage(host)}", urgent):
            path = statefiles.next_path(name, self._hypervisors.state_files([name], [host]), self._config)
            self._write(where, connection, domain, path)
        for state in self.state_files([name], [host]):
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
        state = self._latest(name, [host])
        if not state or not state.machine:
            raise ProviderError(f"{host}: {name} has no complete state file and must not be undefined")
        with asking(where, connection, f"can't undefine {name}"):
            if domain.isActive():
                raise ProviderError(f"{host}: {name} is still active")
            mark = self._suspension(domain)
            if mark is None or mark.ran:
                raise ProviderError(f"{host}: {name} has run since {state.path} was written")
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
        Bring a machine back from its state file, paused; :meth:`unpause` is next.

        The file stays, and the disk as it was with it, until :meth:`settle` or :meth:`forget`: until then it can be
        done again.

        :param StateFile state: the machine's memory
        :param str host: where
        :raises NoCapacity: the host has no room for it
        :raises ProviderError: it refused, or the machine's image has been replaced; nothing is left of the attempt
        :raises Unreachable: the host doesn't answer (any more)
        """
        [connection] = self._hypervisors.connect([host]).values()
        check_image(host, connection, self._config, state.machine)
        with self._hypervisors.placing():
            self._refuse_active(state.name)
            self._check_memory(host, connection, state.machine)
            with asking(host, connection, f"can't define {state.name}"):
                domain = connection.defineXML(connection.saveImageGetXMLDesc(state.path))
        try:
            if state.suspension:
                self._fit_disk(host, connection, domain, state)
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

    def settle(self, name, host):
        """A machine that was restored is fit for work: there is no way back any more, but to a checkpoint."""
        where, connection, domain = self._hypervisors.find(name, [host])
        state = self._latest(name, [host])
        if state and state.machine and state.suspension.phase is Phase.RESTORED and not state.suspension.kept:
            # In this order: a file that is over is never restored; what is left of a snapshot goes with its disk.
            self._enter(where, connection, state, Phase.OVER)
            with asking(where, connection, f"can't delete a snapshot of {name}"):
                snapshots.drop(domain, state)

    def forget(self, name, host):
        """Delete a machine's state files; one that was to be kept is a checkpoint from now on."""
        [connection] = self._hypervisors.connect([host]).values()
        saved = self.state_files([name], [host])
        kept = [
            each for each in saved if each.machine and each.suspension.kept and each.suspension.phase is Phase.RESTORED
        ]
        for state in kept:
            self._enter(host, connection, state, Phase.CHECKPOINT)
        statefiles.delete(host, connection, self._config, [state.path for state in saved if state not in kept])

    def choose(self, state, host, suspension):
        """
        Make a checkpoint what its machine will be restored from; :meth:`give_up` is next.

        :param StateFile state: the checkpoint
        :param Suspension suspension: why
        """
        [connection] = self._hypervisors.connect([host]).values()
        statefiles.amend(host, connection, state, replace(suspension, kept=True, phase=Phase.RESTORED))

    def give_up(self, name, host):
        """
        Throw away the memory that a machine has, for that in its state file.

        :raises ProviderError: it has none that it could be restored from
        """
        where, connection, domain = self._hypervisors.find(name, [host])
        state = self._latest(name, [host])
        if not state or not state.machine or state.suspension.phase is not Phase.RESTORED:
            raise ProviderError(f"{host}: {name} has no memory but its own, which must not be thrown away")
        with asking(where, connection, f"can't give up the memory of {name}"):
            if domain.isActive():
                domain.destroy()
            undefine(domain)

    def discard(self, state, host):
        """Delete a checkpoint of a machine that is there."""
        where, connection, domain = self._hypervisors.find(state.name, [host])
        statefiles.delete(where, connection, self._config, [state.path])
        with asking(where, connection, f"can't delete a snapshot of {state.name}"):
            snapshots.drop(domain, state)

    def check_target(self, places, target):
        """
        Make sure that machines that run could all be on another host.

        :param dict places: the host of each machine by name
        :param str target: the other host
        :raises InvalidInput: the hosts don't share their storage
        :raises ProviderError: an image has been replaced since a machine was made of it
        :raises NoCapacity: the target has no room for them
        :raises NotFound, Unreachable: as :meth:`saltmarsh.hypervisor.Hypervisors.show`
        """
        if not self._config.shared_storage:
            raise InvalidInput(f"{nodeset(places)} can't change hosts: for that the provider needs shared_storage")
        [other] = self._hypervisors.connect([target]).values()
        found = [self._hypervisors.find(name, [host]) for name, host in places.items()]
        machines = [self._hypervisors.describe(where, domain) for where, _, domain in found]
        for machine in machines:
            check_image(target, other, self._config, machine)
        self._check_memory(target, other, *machines)

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
        """As :func:`saltmarsh.guestagent.set_clock`."""
        return guestagent.set_clock(*self._hypervisors.find(name, [host]), patience)

    def run_in_guest(self, name, host, argv, text="", timeout=60):
        """As :func:`saltmarsh.guestagent.run`."""
        return guestagent.run(*self._hypervisors.find(name, [host]), argv, text, timeout)

    def _write(self, host, connection, domain, path):
        flags = libvirt.VIR_DOMAIN_SAVE_PAUSED | self._cache_flag
        with asking(host, connection, f"can't write the memory of {domain.name()} to {path}"):
            if self._config.state_format == "raw":
                domain.saveFlags(path, None, flags)
            else:
                format_ = {_IMAGE_FORMAT: self._config.state_format}
                domain.saveParams({libvirt.VIR_DOMAIN_SAVE_PARAM_FILE: path, **format_}, flags)

    def _fit_disk(self, host, connection, domain, state):
        with asking(host, connection, f"can't fit the disk of {state.name} to {state.path}"):
            match state.suspension.phase:
                case Phase.WRITTEN:
                    snapshots.make(domain, state)
                    self._enter(host, connection, state, Phase.RESTORED)
                case Phase.RESTORED:
                    snapshots.go_back(domain, state)
                case Phase.OVER | Phase.CHECKPOINT:
                    raise ProviderError(f"{host}: {state.name} has been at work since {state.path} was written")

    def _enter(self, host, connection, state, phase):
        statefiles.amend(host, connection, state, replace(state.suspension, phase=phase))

    def _latest(self, name, hosts):
        return next(iter(self.state_files([name], hosts)), None)

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
