"""Machines as libvirt's XML."""

from xml.etree import ElementTree

import pytest
from hypervisors import spec

from saltmarsh import domain
from saltmarsh.identity import Credential, Identity
from saltmarsh.machine import Suspension

GIVEN = Identity(
    credentials=(
        Credential("system.hostname", "vn001"),
        Credential("network.network.10-eth0", "[Match]\nType=ether\n"),
        Credential("salt.minion.pem", "-----BEGIN RSA PRIVATE KEY-----\n", secret=True),
    )
)


def xml(asked=None, identity=GIVEN):
    return domain.domain_xml(asked or spec(), "lab", identity, "/srv/images", "/srv/nodes", 1.5)


def element(text, path):
    return ElementTree.fromstring(text).find(path)


def test_the_mark_says_whose_a_machine_is_and_what_it_was_made_of():
    marked = ElementTree.fromstring(xml()).find(f"metadata/{{{domain.MARK}}}machine")
    mark = domain.read_mark(ElementTree.tostring(marked, encoding="unicode"))
    assert mark == {"cluster": "lab", "image": "golden.qcow2", "image_written": "1.5", "address": "10.77.0.101"}


def test_credentials_are_fw_cfg_entries_systemd_knows():
    entries = {entry.get("name"): entry.text for entry in ElementTree.fromstring(xml()).iterfind("sysinfo/entry")}
    assert entries["opt/io.systemd.credentials/system.hostname"] == "vn001"
    assert entries["opt/io.systemd.credentials/network.network.10-eth0"] == "[Match]\nType=ether\n"


def test_a_secret_is_a_file_and_not_in_the_domain():
    assert "PRIVATE KEY" not in xml()
    entry = element(xml(), "sysinfo/entry[@name='opt/io.systemd.credentials/salt.minion.pem']")
    assert (entry.get("file"), entry.text) == ("/srv/nodes/vn001.lab.minion.pem", None)


def test_a_secret_is_in_no_representation():
    volumes = domain.volumes("vn001", "lab", GIVEN)
    assert [volume.content for volume in volumes if volume.name == "vn001.lab.minion.pem"]
    assert "PRIVATE KEY" not in f"{GIVEN} {volumes}"


def test_names_of_credentials_fit_into_fw_cfg():
    # QEMU, docs/specs/fw_cfg.rst: a name has at most 55 characters.
    names = [entry.get("name") for entry in ElementTree.fromstring(xml()).iterfind("sysinfo/entry")]
    assert max(map(len, names)) <= 55


def test_all_volumes_begin_with_the_machine_and_its_cluster_and_are_for_root_alone():
    volumes = domain.volumes("vn001", "lab", GIVEN) + domain.volumes("vn001", "lab", Identity(seed=b"iso"))
    names = [volume.name for volume in volumes] + [domain.disk_volume("vn001", "lab")]
    assert set(names) == {"vn001.lab.console", "vn001.lab.minion.pem", "vn001.lab.seed.iso", "vn001.lab.qcow2"}
    assert {element(domain.volume_xml(volume), "target/permissions/mode").text for volume in volumes} == {"0600"}
    assert {domain.machine_of(name, "lab") for name in names} == {"vn001"}


@pytest.mark.parametrize("name", ["vn001.qcow2", "vn001.other.qcow2", "vn001.laboratory.qcow2", "vn001.lab", "lab"])
def test_a_volume_that_does_not_bear_the_mark_is_of_nobody(name):
    assert domain.machine_of(name, "lab") is None


def test_a_disk_is_an_overlay_whose_base_has_a_format_that_is_not_guessed():
    overlay = domain.overlay_xml("vn001.lab.qcow2", 2**31, "/srv/images/golden.qcow2", "raw")
    assert element(overlay, "backingStore/path").text == "/srv/images/golden.qcow2"
    assert element(overlay, "backingStore/format").get("type") == "raw"
    assert element(overlay, "target/format").get("type") == "qcow2"


def test_a_seed_is_a_second_disk_that_can_only_be_read():
    disks = ElementTree.fromstring(xml(identity=Identity(seed=b"iso"))).findall("devices/disk")
    assert [disk.find("source").get("file") for disk in disks] == [
        "/srv/nodes/vn001.lab.qcow2",
        "/srv/nodes/vn001.lab.seed.iso",
    ]
    assert [disk.find("readonly") is not None for disk in disks] == [False, True]


def test_software_emulation_has_a_bounded_cache():
    assert element(xml(spec(virtualisation="qemu")), "features/tcg/tb-cache").text == "128"
    assert element(xml(spec(virtualisation="kvm")), "features/tcg") is None


@pytest.mark.parametrize(
    ("changes", "attributes", "model"),
    [
        ({}, {"mode": "host-model"}, None),
        ({"virtualisation": "qemu"}, {"mode": "maximum"}, None),
        ({"cpu": "host-passthrough"}, {"mode": "host-passthrough"}, None),
        ({"cpu": "qemu64", "virtualisation": "qemu"}, {"mode": "custom", "match": "exact"}, "qemu64"),
    ],
)
def test_a_cpu_is_a_mode_or_a_model(changes, attributes, model):
    cpu = element(xml(spec(**changes)), "cpu")
    assert (cpu.attrib, cpu.findtext("model")) == (attributes, model)


def test_a_kernel_is_booted_directly_from_the_image_pool():
    system = element(xml(spec(kernel="vmlinux", initrd="initrd.img", cmdline="root=/dev/vda rw")), "os")
    found = [system.findtext(tag) for tag in ("kernel", "initrd", "cmdline")]
    assert found == ["/srv/images/vmlinux", "/srv/images/initrd.img", "root=/dev/vda rw"]
    assert element(xml(), "os/kernel") is None


def test_text_cannot_become_markup():
    text = xml(
        spec(kernel="vmlinux", cmdline="a=<evil/>&amp; b='\"'"), Identity((Credential("x", "]]></entry><evil/>"),))
    )
    assert element(text, "os/cmdline").text == "a=<evil/>&amp; b='\"'"
    assert ElementTree.fromstring(text).find(".//evil") is None


@pytest.mark.parametrize(
    "suspension",
    [
        Suspension(1795267800.123456, "root", ""),
        Suspension(0.1, "alice", "hv1 gets a disk", ("17", "18_[1-4]", "19_2"), "a fan is loud", ran=True),
        Suspension(1e9, "<b>", "a=\"b\" & 'c' < d \u00e4 \n", ("1",), "]]>&#10;\t"),
    ],
)
def test_a_suspension_is_the_same_after_it_was_written_and_read(suspension):
    assert domain.read_suspension(domain.suspension_xml(suspension)) == suspension


def test_a_domain_in_a_state_file_says_whose_it_is_and_why_it_was_suspended():
    suspension = Suspension(1e9, "alice", "why", ("17",))
    description = ElementTree.fromstring(xml())
    description.find("memory").text = str(256 * 1024)  # libvirt writes KiB
    ElementTree.SubElement(description, "uuid").text = "b4f5ce08-af64-4a47-8670-5b0b25c72773"
    element = ElementTree.fromstring(domain.suspension_xml(suspension))
    element.tag = f"{{{domain.SUSPENSION}}}suspension"  # libvirt's doing
    description.find("metadata").append(element)
    assert domain.read_saved(ElementTree.tostring(description, encoding="unicode")) == (
        "vn001",
        "b4f5ce08-af64-4a47-8670-5b0b25c72773",
        256,
        1,
        {"cluster": "lab", "image": "golden.qcow2", "image_written": "1.5", "address": "10.77.0.101"},
        suspension,
    )


def test_a_domain_in_a_state_file_may_be_nobodys():
    *_, mark, suspension = domain.read_saved("<domain><name>mail</name><memory>1024</memory><vcpu>1</vcpu></domain>")
    assert (mark, suspension) == (None, None)
