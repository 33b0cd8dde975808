"""
The one place that speaks to libvirt: several hosts, and this cluster's machines on them.

A host that doesn't answer is an error, never a host without machines. A machine is this cluster's if its domain bears
the cluster's mark (:mod:`saltmarsh.domain`); no other is ever changed. Its domain is defined before any volume of it is
made and undefined after the last one is gone, so that whatever a crash leaves behind still says whose it is.
"""

import contextlib
import fcntl
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import libvirt

from saltmarsh import domain as xml
from saltmarsh import statefiles
from saltmarsh.errors import InvalidInput, NoCapacity, NotFound, ProviderError, SaltmarshError, Unreachable
from saltmarsh.libvirt_link import asking, drop_link, link, or_none
from saltmarsh.machine import Host, Image, Machine, PowerState
from saltmarsh.storage import (
    check_image,
    delete_volumes,
    find_volume,
    image_written,
    make_volumes,
    pool_directory,
    refresh,
    volumes_of,
)

log = logging.getLogger(__name__)

_MIB = 1024  # KiB, libvirt's unit of memory
_GIB = 1024**3  # bytes

_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: PowerState.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: PowerState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: PowerState.STOPPING,
    libvirt.VIR_DOMAIN_SHUTOFF: PowerState.STOPPED,
    libvirt.VIR_DOMAIN_CRASHED: PowerState.CRASHED,
}


class Hypervisors:
    """
    The hosts of one provider.

    Cheap to make; safe to use from several threads, and from several processes at once.

    :param config: a :class:`saltmarsh.machine.ProviderConfig`
    :param lock_directory: where the lock is kept under which machines are placed; all who use this provider need the
        same one
    """

    def __init__(self, config, lock_directory):
        self.config = config
        self._lock_file = Path(lock_directory) / f"libvirt-{config.cluster}.lock"

    def reachable(self):
        """
        The names of the hosts that answer; each other one is logged as a warning.

        :returns: a list, in the order of the configuration; empty if none answers
        """
        connections, silent = self.connect_to_reachable()
        for err in silent:
            log.warning("%s", err)
        return list(connections)

    def hosts(self, hosts=None):
        """
        The hosts, and what memory they have left for new machines.

        :param list hosts: names; all hosts if not given
        :returns: a list of :class:`saltmarsh.machine.Host`
        :raises Unreachable: one of them doesn't answer
        """
        return [asked.result() for asked in self._survey(self.connect(hosts))]

    def machines(self, hosts=None):
        """
        This cluster's machines.

        :param list hosts: names of the hosts to ask; all if not given
        :returns: a list of :class:`saltmarsh.machine.Machine`, by name
        :raises Unreachable: one of them doesn't answer
        """
        found = []
        for host, connection in self.connect(hosts).items():
            with asking(host, connection, "can't list domains"):
                each = (self.describe(host, domain) for domain in connection.listAllDomains())
                found += [machine for machine in each if machine]
        if self.config.state_dir:
            there = {machine.name for machine in found}
            files = [state for state in self.state_files(hosts=hosts) if state.machine and not state.is_checkpoint]
            saved = {state.name: state.machine for state in files}
            found += [machine for name, machine in saved.items() if name not in there]
        return sorted(found, key=lambda machine: machine.name)

    def state_files(self, names=None, hosts=None):
        """
        The state files of this cluster's machines, the latest of each machine first; checkpoints are among them.

        :param names: only of these machines
        :param list hosts: names of the hosts to ask; all if not given. Of those that share their storage, one answers
        :rtype: list[saltmarsh.machine.StateFile]
        :raises Unreachable: a host doesn't answer; with shared storage, none does
        :raises ProviderError: a host has no storage pool for them
        """
        if self.config.shared_storage:
            connections, silent = self.connect_to_reachable(hosts)
            if not connections:
                raise Unreachable("; ".join(map(str, silent)))
            connections = dict([next(iter(connections.items()))])
        else:
            connections = self.connect(hosts)
        return [
            state
            for host, connection in connections.items()
            for state in statefiles.listing(host, connection, self.config, names)
        ]

    def images(self, hosts=None):
        """
        The master images.

        :param list hosts: names of the hosts to ask; all if not given
        :returns: a list of :class:`saltmarsh.machine.Image`, by name
        :raises Unreachable: one of them doesn't answer
        :raises ProviderError: a host has no such storage pool
        """
        found = {}
        for host, connection in self.connect(hosts).items():
            with asking(host, connection, f"can't list storage pool {self.config.image_pool}"):
                pool = connection.storagePoolLookupByName(self.config.image_pool)
                refresh(pool)
                for volume in pool.listAllVolumes():
                    format_ = xml.volume_format(volume.XMLDesc())
                    found.setdefault((volume.name(), format_, volume.info()[1]), []).append(host)
        return [
            Image(name, format_, round(capacity / _GIB, 2), tuple(hosts))
            for (name, format_, capacity), hosts in sorted(found.items())
        ]

    def show(self, name):
        """
        One machine of this cluster.

        :raises NotFound: no host has it
        :raises Unreachable: no host that answers has it, and not all answer
        """
        host, connection, domain = self.find(name)
        return self._described(host, connection, domain, name)

    def place(self, spec):
        """
        Where a machine would be made now: on the host that has it in ``spec.host``, or the one with most free memory.

        :returns: a :class:`saltmarsh.machine.Host`
        :raises NoCapacity: no host that answers has room
        :raises Unreachable: ``spec.host``, or every host, doesn't answer
        :raises InvalidInput: ``spec.host`` is not a host of this provider
        :raises ProviderError: no host that answers has the image
        """
        return self._place(spec, self._candidates(spec))

    def create(self, spec, identity):
        """
        Make a machine and start it.

        It is placed as :meth:`place` says; several at once, also from several processes, never get more memory than
        the hosts have. If it can't be made, what there is of it is removed again.

        :param spec: a :class:`saltmarsh.machine.MachineSpec`
        :param identity: a :class:`saltmarsh.identity.Identity`
        :returns: a :class:`saltmarsh.machine.Machine`
        :raises ProviderError: a host that answers has a domain of this name already, or the host refused
        :raises NoCapacity, Unreachable, InvalidInput: as :meth:`place`
        """
        candidates = self._candidates(spec)
        with self.placing():
            self.refuse_existing(spec.name)
            host = self._place(spec, candidates).name
            connection = candidates[host]
            image_directory, disk_directory = (
                pool_directory(host, connection, pool) for pool in (self.config.image_pool, self.config.disk_pool)
            )
            self._refuse_strays(host, connection, spec.name)
            written = image_written(host, connection, self.config, spec.image)
            with asking(host, connection, f"can't define {spec.name}"):
                domain = connection.defineXML(
                    xml.domain_xml(spec, self.config.cluster, identity, image_directory, disk_directory, written)
                )
        try:
            make_volumes(host, connection, self.config, spec, identity)
            with asking(host, connection, f"can't start {spec.name}"):
                domain.create()
            return self._described(host, connection, domain, spec.name)
        except BaseException:
            try:
                self._remove(host, connection, spec.name)
            except SaltmarshError as err:
                log.error("What was made of %s could not be removed: %s", spec.name, err)
            raise

    def destroy(self, name, host=None):
        """
        Remove a machine, its volumes and all that its host keeps of it, and see that they are gone.

        Nothing happens to a machine that isn't there or isn't this cluster's.

        :param str name: the machine
        :param str host: the only host to look at; all if not given, or if it is no host of this provider any more
        :raises Unreachable: a host doesn't answer, so it isn't known to be gone; it is removed from all that do
        :raises ProviderError: a host can't remove it
        """
        silent = []
        for each in [host] if host in self.config.hosts else self.config.hosts:
            try:
                [connection] = self.connect([each]).values()
                self._remove(each, connection, name)
            except Unreachable as err:
                silent.append(err)
        if silent:
            raise Unreachable(f"{name} may still exist: " + "; ".join(str(err) for err in silent))

    def start(self, name):
        """
        Start a machine that is stopped.

        :raises NotFound, Unreachable: as :meth:`show`
        :raises ProviderError: the host refused, for example because it runs; or its image has been replaced
        """
        host, connection, domain = self.find(name)
        check_image(host, connection, self.config, self._described(host, connection, domain, name))
        with asking(host, connection, f"can't start {name}"):
            domain.create()

    def stop(self, name, timeout=120):
        """
        Ask a machine's operating system to shut down, and wait until it has.

        :param float timeout: seconds
        :raises NotFound, Unreachable: as :meth:`show`
        :raises ProviderError: it still runs after ``timeout``
        """
        host, connection, domain = self.find(name)
        with asking(host, connection, f"can't stop {name}"):
            domain.shutdown()
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with asking(host, connection, f"can't see whether {name} has stopped"):
                if not domain.isActive():
                    return
            time.sleep(0.2)
        raise ProviderError(f"{host}: {name} still runs {timeout} s after it was asked to shut down")

    def reboot(self, name):
        """
        Ask a machine's operating system to reboot.

        :raises NotFound, Unreachable: as :meth:`show`
        :raises ProviderError: the host refused, for example because it doesn't run
        """
        host, connection, domain = self.find(name)
        with asking(host, connection, f"can't reboot {name}"):
            domain.reboot()

    def _begin(self, hosts):
        """Start to connect to all of them, so that the waits for silent ones don't add up."""
        for host in hosts:
            if host not in self.config.hosts:
                raise InvalidInput(f"{host} is not a host of this provider: {', '.join(self.config.hosts)}")
            link(self.config.hosts[host].uri).begin()

    def connect(self, hosts=None):
        """Connections by host name, all or an error."""
        hosts = list(self.config.hosts) if hosts is None else hosts
        self._begin(hosts)
        return {host: link(self.config.hosts[host].uri).wait(host) for host in hosts}

    def disconnect(self):
        """Close this process's connections; they are made anew when somebody needs them."""
        for host in self.config.hosts.values():
            drop_link(host.uri)

    def connect_to_reachable(self, hosts=None):
        """Connections by host name, and why there is none to the other hosts."""
        hosts = list(self.config.hosts) if hosts is None else hosts
        self._begin(hosts)
        connections, silent = {}, []
        for host in hosts:
            try:
                connections |= self.connect([host])
            except Unreachable as err:
                silent.append(err)
        return connections, silent

    def host_now(self, name, connection):
        """A host, and what memory it has left now."""
        with asking(name, connection, "can't take stock of memory"):
            _, memory, cpus, *_ = connection.getInfo()
            used = sum(info[1] for info in map(_info, connection.listAllDomains()) if info) // _MIB
        return Host(name, memory, memory - self.config.reserved_memory - used, cpus)

    def describe(self, host, domain):
        """The machine that a domain is, or None if it isn't this cluster's."""
        mark = _mark(domain)
        info = _info(domain)
        if mark is None or info is None or mark["cluster"] != self.config.cluster:
            return None
        state, memory, _, cpus, _ = info
        return Machine(
            name=domain.name(),
            host=host,
            state=_STATES.get(state, PowerState.UNKNOWN),
            cluster=mark["cluster"],
            memory=memory // _MIB,
            cpus=cpus,
            address=mark["address"],
            image=mark["image"],
            image_written=float(mark["image_written"]),
            uuid=domain.UUIDString(),
        )

    def _described(self, host, connection, domain, name):
        with asking(host, connection, f"can't look at {name}"):
            machine = self.describe(host, domain)
        if machine is None:
            raise NotFound(f"{host}: {name} has been removed meanwhile")
        return machine

    def find(self, name, hosts=None):
        """
        Where a machine's domain is.

        :param list hosts: names of the hosts to look at; all if not given
        :returns: the host, the connection to it, and the domain
        :raises NotFound, Unreachable: as :meth:`show`
        """
        silent = []
        for host in self.config.hosts if hosts is None else hosts:
            try:
                [connection] = self.connect([host]).values()
                domain = self.lookup(host, connection, name)
            except Unreachable as err:
                silent.append(err)
                continue
            if domain:
                return host, connection, domain
        if silent:
            raise Unreachable(f"{name} was not found, but: " + "; ".join(str(err) for err in silent))
        saved = self.state_files([name], hosts) if self.config.state_dir else []
        if path := next((state.path for state in saved if not state.is_checkpoint), None):
            raise NotFound(f"machine {name} is suspended, its memory is in {path}")
        there = ", ".join(self.config.hosts if hosts is None else hosts)
        raise NotFound(f"no machine {name} of cluster {self.config.cluster} on {there}")

    def lookup(self, host, connection, name):
        """This cluster's domain of that name on a host, or None."""
        with asking(host, connection, f"can't look for {name}"):
            domain = or_none(lambda: connection.lookupByName(name), libvirt.VIR_ERR_NO_DOMAIN)
            return domain if domain and self.describe(host, domain) else None

    def _candidates(self, spec):
        """Connections to the hosts on which a machine could be made, memory aside."""
        hosts = [spec.host] if spec.host else list(self.config.hosts)
        self._begin(hosts)
        fit, unfit = {}, []
        for host in hosts:
            try:
                [connection] = self.connect([host]).values()
                self._see_files(host, connection, spec)
            except (Unreachable, ProviderError) as err:
                unfit.append(err)
            else:
                fit[host] = connection
        if not fit:
            kind = Unreachable if all(isinstance(err, Unreachable) for err in unfit) else ProviderError
            raise kind(f"no host can take {spec.name}: " + "; ".join(str(err) for err in unfit))
        for err in unfit:
            log.warning("Not a candidate for %s: %s", spec.name, err)
        return fit

    def _see_files(self, host, connection, spec):
        with asking(host, connection, f"can't look into storage pool {self.config.image_pool}"):
            pool = connection.storagePoolLookupByName(self.config.image_pool)
            for name in filter(None, (spec.image, spec.kernel, spec.initrd)):
                if find_volume(pool, name) is None:
                    raise ProviderError(f"{host}: {name} is not in storage pool {self.config.image_pool}")

    def _survey(self, connections):
        """Ask all hosts at once: each one answers no sooner than the domains that start on it just now have started."""
        with ThreadPoolExecutor(len(connections)) as pool:
            return [pool.submit(self.host_now, name, connection) for name, connection in connections.items()]

    def _place(self, spec, connections):
        hosts, unasked = [], []
        for asked in self._survey(connections):
            try:
                hosts.append(asked.result())
            except Unreachable as err:
                log.warning("Not a candidate for %s: %s", spec.name, err)
                unasked.append(err)
        if not hosts:
            raise unasked[0]
        fitting = [host for host in hosts if host.memory_free >= spec.memory and host.cpus >= spec.cpus]
        if not fitting:
            left = ", ".join(f"{host.name} has {host.memory_free} MiB and {host.cpus} CPUs" for host in hosts)
            raise NoCapacity(f"no room for {spec.name} ({spec.memory} MiB, {spec.cpus} CPUs): {left}")
        return max(fitting, key=lambda host: host.memory_free)

    def refuse_existing(self, name):
        """:raises ProviderError: a host that answers has a domain of that name, whosever it is"""
        connections, _ = self.connect_to_reachable()
        for host, connection in connections.items():
            with asking(host, connection, f"can't look for {name}"):
                if or_none(lambda: connection.lookupByName(name), libvirt.VIR_ERR_NO_DOMAIN):  # noqa: B023
                    raise ProviderError(f"{host} already has a domain {name}")

    def _refuse_strays(self, host, connection, name):
        """Volumes without a domain may belong to a machine on a host that is down; ours would be removed with them."""
        with asking(host, connection, f"can't look into storage pool {self.config.disk_pool}"):
            pool = connection.storagePoolLookupByName(self.config.disk_pool)
            strays = volumes_of(pool, name)
        if strays:
            names = ", ".join(volume.name() for volume in strays)
            raise ProviderError(
                f"{host}: storage pool {self.config.disk_pool} has {names}, but there is no domain {name}; "
                "if no other host uses them, remove them by hand"
            )

    @contextlib.contextmanager
    def placing(self):
        """From choosing a host until its memory is spoken for, one at a time: threads and processes alike."""
        try:
            self._lock_file.parent.mkdir(parents=True, exist_ok=True)
            lock = self._lock_file.open("a")
        except OSError as err:
            raise ProviderError(f"machines can't be placed without a lock: {err}") from err
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)  # closing isn't enough if the process has forked meanwhile

    def _remove(self, host, connection, name):
        domain = self.lookup(host, connection, name)
        saved = statefiles.listing(host, connection, self.config, [name]) if self.config.state_dir else []
        if domain is None and not any(state.machine for state in saved):
            return
        with asking(host, connection, f"can't remove {name}"):
            if domain and domain.isActive():
                or_none(domain.destroy, libvirt.VIR_ERR_OPERATION_INVALID)  # it has stopped meanwhile
            delete_volumes(host, connection.storagePoolLookupByName(self.config.disk_pool), name)
        if saved:
            statefiles.delete(host, connection, self.config, [state.path for state in reversed(saved)])
        if domain:
            with asking(host, connection, f"can't remove {name}"):
                undefine(domain)
            if self.lookup(host, connection, name):
                raise ProviderError(f"{host} still has a domain {name} after it was undefined")


def undefine(domain):
    """Undefine a domain, and delete what its host keeps of it."""
    flags = libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    if (description := or_none(domain.XMLDesc, libvirt.VIR_ERR_NO_DOMAIN)) is None:
        return
    if xml.has_nvram(description):
        flags |= libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    or_none(lambda: domain.undefineFlags(flags), libvirt.VIR_ERR_NO_DOMAIN)


def _info(domain):
    """State, memory, ... of a domain; None if it has been undefined since it was listed."""
    return or_none(domain.info, libvirt.VIR_ERR_NO_DOMAIN)


def _mark(domain):
    try:
        return xml.read_mark(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, xml.MARK))
    except libvirt.libvirtError as err:
        if err.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_NO_DOMAIN):
            raise
        return None
