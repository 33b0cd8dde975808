"""
Machines in libvirt's XML: the domain, its volumes, and the mark that says whose they are.

Pure text in, text out (libvirt.org/formatdomain.html, libvirt.org/formatstorage.html); nothing here talks to libvirt.
"""

import os.path
from dataclasses import dataclass, field
from xml.etree import ElementTree

from saltmarsh.machine import Phase, Suspension

# The mark: an element of our own in <metadata>. A domain without it, or with another cluster in it, is not ours.
MARK = "urn:saltmarsh:machine:1"
# Why a machine is suspended: a second one, which comes and goes.
SUSPENSION = "urn:saltmarsh:suspension:1"
SUSPENSION_PREFIX = "saltmarsh-suspension"
ElementTree.register_namespace("saltmarsh", MARK)
ElementTree.register_namespace(SUSPENSION_PREFIX, SUSPENSION)

# systemd looks for credentials under this fw_cfg name (systemd(1), "Credentials"; QEMU allows 55 characters).
_CREDENTIAL = "opt/io.systemd.credentials/"
# The translation cache of software emulation is 1 GiB if nothing is said (measured with QEMU 10): more than the guest.
_TCG_CACHE = 128  # MiB


@dataclass(frozen=True)
class Volume:
    """A volume that belongs to one machine: its name in the disk pool, its format, and what is in it."""

    name: str
    format: str = "raw"
    content: bytes = field(default=b"", repr=False)  # may be a secret


def disk_volume(name, cluster):
    """The name of a machine's disk: an overlay on the image."""
    return f"{name}.{cluster}.qcow2"


def console_volume(name, cluster):
    """The name of the file that a machine's serial console is logged to."""
    return f"{name}.{cluster}.console"


def seed_volume(name, cluster):
    """The name of a machine's NoCloud seed."""
    return f"{name}.{cluster}.seed.iso"


def secret_volume(name, cluster, credential):
    """The name of the file that holds one of a machine's secret credentials."""
    return f"{name}.{cluster}.{credential.removeprefix('salt.')}"


def machine_of(volume, cluster):
    """
    The name of the machine to which a volume belongs, or None if its name does not bear the mark of this cluster.

    :param str volume: the volume's name
    """
    name, _, rest = volume.partition(".")
    return name if rest.startswith(f"{cluster}.") else None


def volumes(name, cluster, identity):
    """
    The volumes of a machine besides its disk.

    :param str name: the machine
    :param str cluster: whose it is
    :param identity: its :class:`saltmarsh.identity.Identity`
    :returns: what to put into the disk pool before the machine starts
    """
    made = [Volume(console_volume(name, cluster))]
    made += [
        Volume(secret_volume(name, cluster, each.name), "raw", each.value.encode())
        for each in identity.credentials
        if each.secret
    ]
    if identity.seed is not None:
        made.append(Volume(seed_volume(name, cluster), "iso", identity.seed))
    return made


def overlay_xml(name, capacity, backing_path, backing_format):
    """
    A qcow2 volume on top of another.

    :param str name: of the volume
    :param int capacity: bytes, as the guest sees it
    :param str backing_path: the image's path on the host
    :param str backing_format: the image's format, said and not guessed by QEMU from what a guest may have written
    """
    volume = _volume(name, capacity, "qcow2")
    backing = ElementTree.SubElement(volume, "backingStore")
    ElementTree.SubElement(backing, "path").text = backing_path
    ElementTree.SubElement(backing, "format", type=backing_format)
    return _text(volume)


def volume_xml(volume):
    """A volume as large as its content, which only the host's root and QEMU may read."""
    return _text(_volume(volume.name, len(volume.content), volume.format))


def domain_xml(spec, cluster, identity, image_directory, disk_directory, image_written):
    """
    A machine as a libvirt domain.

    :param spec: its :class:`saltmarsh.machine.MachineSpec`
    :param str cluster: whose it is
    :param identity: its :class:`saltmarsh.identity.Identity`
    :param str image_directory: where the image pool is on the host
    :param str disk_directory: where the disk pool is on the host
    :param float image_written: when the image was last written, in seconds since the epoch
    """
    domain = ElementTree.Element("domain", type=spec.virtualisation)
    add = _adder(domain)
    add("name", spec.name)
    mark = {"cluster": cluster, "image": spec.image, "address": str(spec.address)}
    mark["image_written"] = repr(image_written)
    ElementTree.SubElement(add("metadata"), f"{{{MARK}}}machine", mark)
    add("memory", spec.memory, unit="MiB")
    add("vcpu", spec.cpus)
    if identity.credentials:
        sysinfo = add("sysinfo", type="fwcfg")
        for each in identity.credentials:
            entry = ElementTree.SubElement(sysinfo, "entry", name=_CREDENTIAL + each.name)
            if each.secret:
                entry.set("file", os.path.join(disk_directory, secret_volume(spec.name, cluster, each.name)))
            else:
                entry.text = each.value
    boot = _adder(add("os"))
    boot("type", "hvm", arch="x86_64", machine=spec.machine)
    if spec.kernel:
        boot("kernel", os.path.join(image_directory, spec.kernel))
        if spec.initrd:
            boot("initrd", os.path.join(image_directory, spec.initrd))
        if spec.cmdline:
            boot("cmdline", spec.cmdline)
    features = _adder(add("features"))
    features("acpi")
    if spec.virtualisation == "qemu":
        tcg = features("tcg")
        ElementTree.SubElement(tcg, "tb-cache", unit="MiB").text = str(_TCG_CACHE)
    domain.append(_cpu(spec))
    add("clock", offset="utc")
    add("on_poweroff", "destroy")
    add("on_reboot", "restart")
    add("on_crash", "destroy")
    domain.append(_devices(spec, cluster, identity, disk_directory))
    return _text(domain)


def read_mark(metadata):
    """
    What the mark of a domain says.

    :param str metadata: the mark's element, as libvirt returns it
    :returns: a mapping with ``cluster``, ``image``, ``image_written``, ``address``
    """
    return dict(ElementTree.fromstring(metadata).attrib)


def suspension_xml(suspension):
    """The element that says why a machine is suspended."""
    return _text(_suspension_element(suspension))


def with_suspension(description, suspension):
    """The description of a domain, saying this of its suspension."""
    domain = ElementTree.fromstring(description)
    metadata = domain.find("metadata")
    if (old := metadata.find(f"{{{SUSPENSION}}}suspension")) is not None:
        metadata.remove(old)
    element = _suspension_element(suspension)
    element.tag = f"{{{SUSPENSION}}}suspension"
    metadata.append(element)
    return _text(domain)


def snapshot_xml(name, description=None):
    """
    A snapshot of a machine's disks while it is off.

    :param str name: the snapshot's
    :param str description: the domain's XML, for a snapshot that is there already
    """
    snapshot = ElementTree.Element("domainsnapshot")
    ElementTree.SubElement(snapshot, "name").text = name
    if description:
        ElementTree.SubElement(snapshot, "state").text = "shutoff"
        ElementTree.SubElement(snapshot, "creationTime").text = "0"
        snapshot.append(ElementTree.fromstring(description))
    return _text(snapshot)


def read_suspension(element):
    """
    Why a machine is suspended.

    :param str element: as libvirt returns it
    :rtype: saltmarsh.machine.Suspension
    """
    return _suspension(ElementTree.fromstring(element))


def read_saved(description):
    """
    What the description of a domain in a state file says.

    :param str description: the domain's XML
    :returns: its name, UUID, MiB, CPUs, mark, or None if it is nobody's, and why it was suspended, or None
    """
    domain = ElementTree.fromstring(description)
    mark = domain.find(f"metadata/{{{MARK}}}machine")
    suspension = domain.find(f"metadata/{{{SUSPENSION}}}suspension")
    return (
        domain.findtext("name"),
        domain.findtext("uuid"),
        int(domain.findtext("memory")) // 1024,
        int(domain.findtext("vcpu")),
        None if mark is None else dict(mark.attrib),
        None if suspension is None else _suspension(suspension),
    )


def _suspension_element(suspension):
    said = {"at": repr(suspension.at), "phase": suspension.phase}
    said |= {name: getattr(suspension, name) for name in ("by", "why", "drained")}
    said |= {name: "yes" for name in ("ran", "kept") if getattr(suspension, name)}
    element = ElementTree.Element("suspension", said)
    for job in suspension.jobs:
        ElementTree.SubElement(element, "job").text = job
    return element


def _suspension(element):
    said = element.attrib
    return Suspension(
        at=float(said["at"]),
        by=said["by"],
        why=said["why"],
        jobs=tuple(job.text for job in element),
        drained=said["drained"],
        ran="ran" in said,
        kept="kept" in said,
        phase=Phase(said["phase"]),
    )


def pool_directory(pool_xml):
    """The directory of a storage pool on its host."""
    return ElementTree.fromstring(pool_xml).findtext("target/path")


def volume_times(volume_description):
    """When a volume was last written, in seconds since the epoch."""
    return float(ElementTree.fromstring(volume_description).findtext("target/timestamps/mtime") or 0)


def volume_format(volume_description):
    """The format of a volume, for example ``qcow2``."""
    return ElementTree.fromstring(volume_description).find("target/format").get("type")


def has_nvram(description):
    """Whether a domain has a file with firmware variables of its own."""
    return ElementTree.fromstring(description).find("os/nvram") is not None


def _volume(name, capacity, format_):
    volume = ElementTree.Element("volume")
    ElementTree.SubElement(volume, "name").text = name
    ElementTree.SubElement(volume, "capacity", unit="bytes").text = str(capacity)
    target = ElementTree.SubElement(volume, "target")
    ElementTree.SubElement(target, "format", type=format_)
    permissions = ElementTree.SubElement(target, "permissions")
    ElementTree.SubElement(permissions, "mode").text = "0600"
    return volume


def _cpu(spec):
    model = spec.cpu or ("host-model" if spec.virtualisation == "kvm" else "maximum")
    if model in ("host-model", "host-passthrough", "maximum"):
        return ElementTree.Element("cpu", mode=model)
    cpu = ElementTree.Element("cpu", mode="custom", match="exact")
    ElementTree.SubElement(cpu, "model", fallback="forbid").text = model
    return cpu


def _devices(spec, cluster, identity, directory):
    devices = ElementTree.Element("devices")
    add = _adder(devices)
    devices.append(_disk(os.path.join(directory, disk_volume(spec.name, cluster)), "qcow2", "vda"))
    if identity.seed is not None:
        # A disk and no CD-ROM: the kernels of cloud images have virtio, and not always IDE or SATA.
        seed = _disk(os.path.join(directory, seed_volume(spec.name, cluster)), "raw", "vdb")
        ElementTree.SubElement(seed, "readonly")
        devices.append(seed)
    interface = _adder(add("interface", type="bridge"))
    interface("mac", address=spec.mac)
    interface("source", bridge=spec.network.bridge)
    interface("model", type="virtio")
    serial = _adder(add("serial", type="pty"))
    serial("log", file=os.path.join(directory, console_volume(spec.name, cluster)), append="on")
    ElementTree.SubElement(add("channel", type="unix"), "target", type="virtio", name="org.qemu.guest_agent.0")
    rng = _adder(add("rng", model="virtio"))
    rng("backend", "/dev/urandom", model="random")
    add("controller", type="usb", model="none")
    add("memballoon", model="virtio")
    return devices


def _disk(path, format_, target):
    disk = ElementTree.Element("disk", type="file", device="disk")
    ElementTree.SubElement(disk, "driver", name="qemu", type=format_, discard="unmap")
    ElementTree.SubElement(disk, "source", file=path)
    ElementTree.SubElement(disk, "target", dev=target, bus="virtio")
    return disk


def _adder(parent):
    def add(tag, text=None, **attributes):
        element = ElementTree.SubElement(parent, tag, attributes)
        if text is not None:
            element.text = str(text)
        return element

    return add


def _text(element):
    return ElementTree.tostring(element, encoding="unicode")
