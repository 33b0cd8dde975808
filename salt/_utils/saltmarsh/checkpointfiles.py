"""
Checkpoints of machines: copies of a suspended machine's memory and disk, beside the state files.

Part of the seam to libvirt, see :mod:`saltmarsh.vmstate`. A checkpoint is ``<machine>.<number>.checkpoint`` and
``<machine>.<number>.disk``; it is whole when both are there.
"""

import libvirt

from saltmarsh import domain as xml
from saltmarsh import statefiles
from saltmarsh.hypervisor import undefine
from saltmarsh.libvirt_link import asking, or_none
from saltmarsh.storage import copy_volume, find_volume


class Checkpoints:
    """
    The checkpoints of one provider's machines.

    :param Hypervisors hypervisors: the provider's hosts
    """

    def __init__(self, hypervisors):
        self._hypervisors = hypervisors
        self._config = hypervisors.config

    def of(self, name, host=None):
        """
        The checkpoints of a machine that are whole, latest first.

        :rtype: list[StateFile]
        """
        hosts = self._hypervisors.connect_to_reachable([host] if host else None)[0]
        for each, connection in hosts.items():
            pool = statefiles.directory(each, connection, self._config)
            kept = statefiles.listing(each, connection, self._config, [name], statefiles.CHECKPOINT)
            with asking(each, connection, f"can't list {self._config.state_dir}"):
                disks = set(pool.listVolumes())
            if whole := [one for one in kept if one.machine and _disk_of(one) in disks]:
                return whole
        return []

    def keep(self, name, host):
        """
        Make a checkpoint of a machine that is suspended: copies of its memory and its disk.

        :returns: its number
        :raises ProviderError: there was no room, or the host refused
        """
        [connection] = self._hypervisors.connect([host]).values()
        state = self._hypervisors.state_files([name], [host])[0]
        pool = statefiles.directory(host, connection, self._config)
        with asking(host, connection, f"can't make a checkpoint of {name}"):
            disks = connection.storagePoolLookupByName(self._config.disk_pool)
            number = 1 + max((each.number for each in self.of(name, host)), default=0)
            memory = f"{name}.{number}.{statefiles.CHECKPOINT}"
            for half in (memory, f"{name}.{number}.{statefiles.DISK}"):
                if left := or_none(lambda: pool.storageVolLookupByName(half), libvirt.VIR_ERR_NO_STORAGE_VOL):  # noqa: B023
                    left.delete()
            copy_volume(pool.storageVolLookupByName(state.path.rpartition("/")[2]), pool, memory)
            copy_volume(find_volume(disks, xml.disk_volume(name)), pool, f"{name}.{number}.{statefiles.DISK}", "qcow2")
        return number

    def lay_out(self, name, host, checkpoint):
        """Copy a checkpoint's memory to where :meth:`rewind` will restore it from; the machine is not touched."""
        [connection] = self._hypervisors.connect([host]).values()
        path = statefiles.next_path(name, self._hypervisors.state_files([name], [host]), self._config)
        pool = statefiles.directory(host, connection, self._config)
        with asking(host, connection, f"can't copy {checkpoint.path}"):
            copy_volume(find_volume(pool, checkpoint.path.rpartition("/")[2]), pool, path.rpartition("/")[2])

    def rewind(self, name, host, checkpoint):
        """
        Replace a machine's memory and disk by a checkpoint's, whose memory is laid out; the machine is suspended then.

        What it was doing is lost. Can be repeated if it ended halfway.
        """
        [connection] = self._hypervisors.connect([host]).values()
        domain = self._hypervisors.lookup(host, connection, name)
        pool = statefiles.directory(host, connection, self._config)
        with asking(host, connection, f"can't put {name} back to checkpoint {checkpoint.number}"):
            if domain and domain.isActive():
                domain.destroy()
            disks = connection.storagePoolLookupByName(self._config.disk_pool)
            if disk := find_volume(disks, xml.disk_volume(name)):
                disk.delete()
            copy_volume(find_volume(pool, _disk_of(checkpoint)), disks, xml.disk_volume(name), "qcow2")
            if domain:
                undefine(domain)


def _disk_of(checkpoint):
    """The name of the volume with a checkpoint's disk."""
    return f"{checkpoint.name}.{checkpoint.number}.{statefiles.DISK}"
