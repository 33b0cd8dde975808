"""
The disk that fits a state file: as it was when the memory was written.

A machine's disk moves on as soon as the machine runs. So before the first run a snapshot of it is made, inside the
machine's own qcow2 file: a resume that goes wrong can begin anew, and a checkpoint can be put back.

Part of the seam to libvirt: used by :mod:`saltmarsh.vmstate`, nobody else. libvirt is told of a snapshot only for the
moment in which it is needed: a domain with snapshots can't be migrated, and another host doesn't know them.
"""

import libvirt

from saltmarsh import domain as xml

_DESCRIBED = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE


def make(domain, state):
    """Keep the disk of a machine that is off as the one that fits a state file; the last try counts."""
    _known(domain, state).delete()  # libvirt says nothing if there is none
    domain.snapshotCreateXML(xml.snapshot_xml(_name(state)), libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA)


def go_back(domain, state):
    """Make the disk of a machine that is off what it was."""
    snapshot = _known(domain, state)
    domain.revertToSnapshot(snapshot)
    snapshot.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)


def drop(domain, state):
    """The snapshot is no longer needed; the machine may run."""
    _known(domain, state).delete()


def _known(domain, state):
    description = xml.snapshot_xml(_name(state), domain.XMLDesc(_DESCRIBED))
    return domain.snapshotCreateXML(description, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)


def _name(state):
    return f"saltmarsh-{state.number}"
