"""
Volumes in libvirt's storage pools on one host.

Part of the seam to libvirt: used by :mod:`saltmarsh.hypervisor` and what stands on it or beside it, nobody else.
"""

import contextlib
import time

import libvirt

from saltmarsh import domain as xml
from saltmarsh.errors import InvalidInput, NoCapacity, ProviderError
from saltmarsh.libvirt_link import asking, or_none

_POOL_BUSY = 60  # seconds
_FULL = 1024**2  # bytes: less than an empty overlay and a machine's other volumes take together
_GIB = 1024**3  # bytes


def pool_directory(host, connection, name):
    """Where a storage pool is on its host."""
    with asking(host, connection, f"can't use storage pool {name}"):
        return xml.pool_directory(connection.storagePoolLookupByName(name).XMLDesc())


def image_written(host, connection, config, image):
    """
    When a master image was last written, in seconds since the epoch.

    :raises ProviderError: it is gone
    """
    with asking(host, connection, f"can't look up {image}"):
        volume = find_volume(connection.storagePoolLookupByName(config.image_pool), image)
        if volume is None:
            raise ProviderError(f"{host}: {image} is no longer in storage pool {config.image_pool}")
        return xml.volume_times(volume.XMLDesc())


def check_image(host, connection, config, machine):
    """
    Make sure that a machine's image is the one it was made of: its disk has only what differs from that.

    :raises ProviderError: it is not, and the machine would ruin its file systems
    """
    if image_written(host, connection, config, machine.image) != machine.image_written:
        raise ProviderError(
            f"{host}: {machine.image} has been replaced since {machine.name} was made of it: the disk no longer fits; "
            "put the old image back with its time (cp -p), or remove the node"
        )


def make_volumes(host, connection, config, spec, identity):
    """
    Make a machine's volumes in the disk pool.

    :param str host: for messages
    :param connection: to that host
    :param config: a :class:`saltmarsh.machine.ProviderConfig`
    :param spec: a :class:`saltmarsh.machine.MachineSpec`
    :param identity: a :class:`saltmarsh.identity.Identity`
    :raises NoCapacity: the pool is full
    :raises ProviderError: the image is gone, or the host refused
    """
    with asking(host, connection, f"can't look up {spec.image}"):
        image = find_volume(connection.storagePoolLookupByName(config.image_pool), spec.image)
        if image is None:
            raise ProviderError(f"{host}: {spec.image} is no longer in storage pool {config.image_pool}")
        capacity = image.info()[1]
        backing = image.path(), xml.volume_format(image.XMLDesc())
    if spec.disk:
        if spec.disk * _GIB < capacity:
            raise InvalidInput(
                f"{spec.name}: disk: {spec.disk} GiB is less than the {capacity / _GIB:.1f} GiB of {spec.image}"
            )
        capacity = spec.disk * _GIB
    overlay = xml.disk_volume(spec.name, config.cluster)
    with _writing(host, connection, config.disk_pool, overlay):
        pool = connection.storagePoolLookupByName(config.disk_pool)
        pool.createXML(xml.overlay_xml(overlay, capacity, *backing))
    for volume in xml.volumes(spec.name, config.cluster, identity):
        with _writing(host, connection, config.disk_pool, volume.name):
            made = pool.createXML(xml.volume_xml(volume))
            if volume.content:
                _upload(connection, made, volume.content)


def delete_volumes(host, pool, name):
    """
    Delete all volumes of a machine in a pool, and see that they are gone.

    :raises ProviderError: one is still there
    """
    for volume in volumes_of(pool, name):
        or_none(volume.delete, libvirt.VIR_ERR_NO_STORAGE_VOL)
    if left := volumes_of(pool, name):
        names = ", ".join(volume.name() for volume in left)
        raise ProviderError(f"{host}: storage pool {pool.name()} still has {names}")


def find_volume(pool, name):
    """A volume by its name, or None; looks again if it may have come since the pool was last listed."""
    for look_again in (False, True):
        if look_again:
            refresh(pool)
        volume = or_none(lambda: pool.storageVolLookupByName(name), libvirt.VIR_ERR_NO_STORAGE_VOL)
        if volume:
            return volume
    return None


def volumes_of(pool, name):
    """All volumes of a machine that are there now; also what QEMU or virtlogd have made of their own."""
    refresh(pool)
    return [volume for volume in pool.listAllVolumes() if volume.name().startswith(f"{name}.")]


def marked(pool, cluster):
    """The names of machines of which a pool has volumes with this cluster's mark; as far as libvirt knows."""
    return {name for volume in pool.listVolumes() if (name := xml.machine_of(volume, cluster))}


def refresh(pool):
    """List a pool's directory anew. A pool in which volumes are being made refuses, so wait for its turn."""
    deadline = time.monotonic() + _POOL_BUSY
    while True:
        try:
            pool.refresh()
            return
        except libvirt.libvirtError as err:
            # "pool has asynchronous jobs running" has no code of its own.
            if err.get_error_code() != libvirt.VIR_ERR_INTERNAL_ERROR or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def bytes_left(pool):
    """How many bytes can still be written to a pool."""
    refresh(pool)
    return pool.info()[3]


@contextlib.contextmanager
def _writing(host, connection, pool_name, name):
    """Says so if there was no space for a volume: QEMU's tools and libvirt's streams each say it their own way."""
    try:
        with asking(host, connection, f"can't make {name} in storage pool {pool_name}"):
            yield
    except ProviderError as err:
        with asking(host, connection, "can't see how much space is left"):
            left = bytes_left(connection.storagePoolLookupByName(pool_name))
        if left < _FULL:
            raise NoCapacity(
                f"{host}: storage pool {pool_name} is full ({left // 1024} KiB left), can't make {name}"
            ) from err
        raise


def _upload(connection, volume, content):
    stream = connection.newStream()
    try:
        volume.upload(stream, 0, len(content))
        view = memoryview(content)
        while view:
            view = view[stream.send(bytes(view[: 1 << 18])) :]
        stream.finish()
    except libvirt.libvirtError:
        with contextlib.suppress(libvirt.libvirtError):  # the first error is the one that tells
            stream.abort()
        raise
