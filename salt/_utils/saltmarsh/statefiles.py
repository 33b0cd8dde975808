"""
State files on one host: the memory of suspended machines.

A state file is what ``virsh save`` writes: the domain's XML, then QEMU's stream. Its XML carries the cluster's mark and
why the machine was suspended, so a state file tells all about itself on any host that sees it, whatever becomes of the
ledger. While it is the only thing that says whose the machine's volumes are, it is deleted last.

Part of the seam to libvirt: used by :mod:`saltmarsh.hypervisor` and :mod:`saltmarsh.vmstate`, nobody else.
"""

import re
from collections import Counter

import libvirt

from saltmarsh import domain as xml
from saltmarsh.errors import ProviderError
from saltmarsh.libvirt_link import asking, one_line, or_none
from saltmarsh.machine import Machine, PowerState, StateFile
from saltmarsh.storage import refresh

_NAME = re.compile(r"(?P<machine>[a-z0-9-]+)\.(?P<number>[0-9]{1,9})\.state")


def directory(host, connection, config):
    """
    The storage pool in which the provider's state files are.

    :raises ProviderError: the provider names no ``state_dir``, or the host has no storage pool there
    """
    if config.state_dir is None:
        raise ProviderError("the provider has no state_dir (cloud.providers.d): machines can't be suspended")
    with asking(host, connection, "can't list storage pools"):
        for pool in connection.listAllStoragePools():
            if pool.isActive() and xml.pool_directory(pool.XMLDesc()) == config.state_dir:
                return pool
    raise ProviderError(f"{host}: no active storage pool is at {config.state_dir}, the provider's state_dir")


def listing(host, connection, config, names=None):
    """
    The state files of this cluster's machines, checkpoints among them, the latest of each machine first.

    Whose an incomplete or damaged one is can't be read: it counts as the machine's whose name it bears.

    :param names: only of these machines
    :rtype: list[StateFile]
    """
    pool = directory(host, connection, config)
    found = []
    with asking(host, connection, f"can't list {config.state_dir}"):
        refresh(pool)
        for volume in pool.listAllVolumes():
            match = _NAME.fullmatch(volume.name())
            if match and (names is None or match["machine"] in names):
                found.append(_state_file(host, connection, volume, match, config.cluster))
    return sorted(filter(None, found), key=lambda each: (each.name, -each.number))


def sizes(host, connection, config, before):
    """
    How much space state files take, whosever they are; no file is opened.

    Each is asked until it has grown no more since the last time, and not again: none is ever written over.

    :param dict before: what this returned the last time
    :returns: by file name the bytes on disk, and whether they are final
    :rtype: dict[str, tuple[int, bool]]
    """
    pool = directory(host, connection, config)
    found = {}
    with asking(host, connection, f"can't list {config.state_dir}"):
        refresh(pool)
        for volume in pool.listAllVolumes():
            name = volume.name()
            if not _NAME.fullmatch(name):
                continue
            size, final = before.get(name, (None, False))
            if not final:
                now = volume.info()[2]
                size, final = now, now == size
            found[name] = size, final
    return found


def by_machine(sizes):
    """
    The bytes of all state files of each machine, from what :func:`sizes` has returned.

    :rtype: dict[str, int]
    """
    total = Counter()
    for name, (size, _) in sizes.items():
        total[_NAME.fullmatch(name)["machine"]] += size
    return dict(total)


def read(host, connection, config, path):
    """
    A state file wherever it is on the host.

    :returns: what is known of the machine in it; its size and number are not
    :rtype: StateFile
    :raises ProviderError: it can't be restored from, or has the memory of a machine that is not this cluster's
    """
    with asking(host, connection, f"can't restore from {path}"):
        description = connection.saveImageGetXMLDesc(path)
    machine, suspension = _known(host, description, config.cluster)
    if machine is None:
        raise ProviderError(f"{host}: {path} is of no machine of cluster {config.cluster}")
    return StateFile(machine.name, 0, path, host, 0, 0.0, machine, suspension)


def amend(host, connection, state, suspension):
    """Write into a state file another word on its suspension."""
    with asking(host, connection, f"can't write to {state.path}"):
        description = connection.saveImageGetXMLDesc(state.path, libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)
        connection.saveImageDefineXML(state.path, xml.with_suspension(description, suspension))


def next_path(name, existing, config):
    """Where the next state file of a machine goes: no file is ever written over."""
    number = 1 + max((each.number for each in existing if each.name == name), default=0)
    return f"{config.state_dir}/{name}.{number}.state"


def delete(host, connection, config, paths):
    """Delete state files; ones that are not there are no error."""
    pool = directory(host, connection, config)
    with asking(host, connection, f"can't delete in {config.state_dir}"):
        refresh(pool)
        for path in paths:
            name = path.rpartition("/")[2]
            volume = or_none(lambda: pool.storageVolLookupByName(name), libvirt.VIR_ERR_NO_STORAGE_VOL)  # noqa: B023
            if volume:
                volume.delete()


def _state_file(host, connection, volume, match, cluster):
    """A state file, or None if it is somebody else's."""
    path = volume.path()
    machine, suspension, trouble = None, None, ""
    try:
        machine, suspension = _known(host, connection.saveImageGetXMLDesc(path), cluster)
    except libvirt.libvirtError as err:
        if not connection.isAlive():
            raise
        trouble = f"{path} can't be restored from: {one_line(err)}"
    else:
        if machine is None or machine.name != match["machine"]:
            return None
    return StateFile(
        name=match["machine"],
        number=int(match["number"]),
        path=path,
        host=host,
        size=volume.info()[2],
        written=xml.volume_times(volume.XMLDesc()),
        machine=machine,
        suspension=suspension,
        trouble=trouble,
    )


def _known(host, description, cluster):
    """The machine of a state file and why it was suspended; None for a machine that is somebody else's."""
    name, uuid, memory, cpus, mark, suspension = xml.read_saved(description)
    if mark is None or mark["cluster"] != cluster:
        return None, None
    machine = Machine(
        name=name,
        host=host,
        state=PowerState.SUSPENDED,
        cluster=cluster,
        memory=memory,
        cpus=cpus,
        address=mark["address"],
        image=mark["image"],
        image_written=float(mark["image_written"]),
        uuid=uuid,
    )
    return machine, suspension
