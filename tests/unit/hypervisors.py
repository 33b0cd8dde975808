"""Hosts for tests: libvirt's own test driver, which is libvirt with hypervisors that live in this process's memory."""

from pathlib import Path
from xml.etree import ElementTree

import libvirt

from saltmarsh.machine import MachineSpec, ProviderConfig

IMAGE_GIB = 2

_HOST = """
<node>
  <cpu><mhz>2000</mhz><model>i686</model><active>4</active><nodes>1</nodes><sockets>1</sockets><cores>4</cores>
    <threads>1</threads></cpu>
  <memory>{memory}</memory>
  <pool type='dir'><name>images</name><target><path>/srv/images</path></target>
    {images}
  </pool>
  <pool type='dir'><name>nodes</name><target><path>/srv/nodes</path></target></pool>
  <pool type='dir'><name>states</name><target><path>{states}</path></target></pool>
  {domains}
</node>
"""
_IMAGE = """<volume><name>{}</name><capacity unit='GiB'>{}</capacity><target><format type='qcow2'/></target></volume>"""
_DOMAIN = """<domain type='test'><name>{}</name><memory unit='MiB'>{}</memory><os><type>hvm</type></os></domain>"""


def host_uri(directory, name, memory=4096, images=("golden.qcow2",), foreign=None):
    """
    The URI of a new host with ``memory`` MiB, 4 CPUs, these images, and ``foreign`` domains of other people.

    :param dict foreign: name to MiB
    """
    definition = directory / f"{name}.xml"
    definition.write_text(
        _HOST.format(
            memory=memory * 1024,
            images="".join(_IMAGE.format(image, IMAGE_GIB) for image in images),
            states=directory / "states",
            domains="".join(_DOMAIN.format(*each) for each in (foreign or {}).items()),
        )
    )
    return f"test://{definition}"


def complete(monkeypatch):
    """
    Teach the test driver what it lacks of saving memory: paused machines, volumes in the pool where a file appears,
    snapshots inside of a disk, and that nothing is under way.

    :returns: the snapshots there are, and those that were gone back to; by machine and name
    """
    snapshots = set()
    save, restore = libvirt.virDomain.saveFlags, libvirt.virConnect.restoreFlags
    delete = libvirt.virStorageVol.delete
    paused = libvirt.VIR_DOMAIN_SAVE_PAUSED

    def save_flags(domain, path, xml, flags):
        assert flags & paused
        pool = domain.connect().storagePoolLookupByName("states")
        pool.createXML(f"<volume><name>{Path(path).name}</name><capacity>4096</capacity></volume>")
        Path(path).touch()  # what there is when it fails
        return save(domain, path, xml, flags & ~paused)

    def restore_flags(connection, path, xml, flags):
        assert flags & paused
        name = Path(path).name.partition(".")[0]
        restore(connection, path, xml, flags & ~paused)
        return connection.lookupByName(name).suspend()

    def delete_file(volume, flags=0):
        Path(volume.path()).unlink(missing_ok=True)
        return delete(volume, flags)

    def snapshot_create(domain, description, flags):
        snapshot = Snapshot(snapshots, domain, ElementTree.fromstring(description).findtext("name"))
        if flags == libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA:
            assert not domain.isActive()
            snapshots.add(snapshot.key)
        else:
            assert flags == libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
        return snapshot

    def revert(domain, snapshot):
        assert not domain.isActive()
        if snapshot.key not in snapshots:
            raise libvirt.libvirtError("no such snapshot")
        reverted.append(snapshot.key)

    reverted = []
    monkeypatch.setattr(libvirt.virDomain, "snapshotCreateXML", snapshot_create)
    monkeypatch.setattr(libvirt.virDomain, "revertToSnapshot", revert)
    monkeypatch.setattr(libvirt.virDomain, "saveFlags", save_flags)
    monkeypatch.setattr(libvirt.virConnect, "restoreFlags", restore_flags)
    monkeypatch.setattr(libvirt.virStorageVol, "delete", delete_file)
    monkeypatch.setattr(libvirt.virDomain, "jobInfo", lambda domain: [libvirt.VIR_DOMAIN_JOB_NONE])
    return snapshots, reverted


class Snapshot:
    """What libvirt knows of one of them."""

    def __init__(self, snapshots, domain, name):
        self.key = (domain.name(), name)
        self._snapshots = snapshots

    def delete(self, flags=0):
        """One that is not there is no error, as with QEMU."""
        if not flags & libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY:
            self._snapshots.discard(self.key)


def provider(uris, **changes):
    """A provider configuration for these hosts (name to URI)."""
    hosts = {name: {"uri": uri} for name, uri in uris.items()}
    values = {"cluster": "lab", "hosts": hosts, "image_pool": "images", "disk_pool": "nodes", "reserved_memory": 1024}
    return ProviderConfig.read(values | changes, "provider")


def profile(**changes):
    """What salt-cloud would hand over for one machine; a change to None takes a key away."""
    values = {
        "name": "vn001",
        "image": "golden.qcow2",
        "cpus": 1,
        "memory": 256,
        "address": "10.77.0.101",
        "network": {
            "bridge": "br0",
            "prefix": 24,
            "gateway": "10.77.0.254",
            "nameservers": ["10.77.0.1"],
            "domain": "lab",
        },
    }
    return {key: value for key, value in (values | changes).items() if value is not None}


def spec(number=1, **changes):
    """Machine vn001, vn002, ... with its address."""
    return MachineSpec.read(profile(name=f"vn{number:03}", address=f"10.77.0.{100 + number}", **changes), "profile")
