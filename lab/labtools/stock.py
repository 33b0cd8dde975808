"""
A cloud image as Debian makes them: GRUB on a partitioned disk, cloud-init, and nothing of this project in it.

Debian's own can't be fetched everywhere a package mirror can; this one is of the same packages.
"""

import shutil

from labtools.images import cached, make_key, mmdebstrap
from labtools.settings import SUITE
from labtools.steps import run, step

PACKAGES = (
    "systemd-sysv", "systemd-resolved", "dbus", "udev", "linux-image-cloud-amd64", "initramfs-tools", "grub-pc-bin",
    "cloud-init", "netplan.io", "cloud-guest-utils", "openssh-server", "iproute2", "ca-certificates", "sudo",
)  # fmt: skip
NAME = "stock.qcow2"

_PARTITION = 1 << 20  # bytes: where fdisk begins the first one; GRUB lives before it
_SIZE = 2 << 30  # bytes
_GRUB_CFG = """\
linux /vmlinuz root=LABEL=root ro console=ttyS0 net.ifnames=0
initrd /initrd.img
boot
"""
_FSTAB = "LABEL=root / ext4 rw,discard,errors=remount-ro,x-systemd.growfs 0 1\n"
_MODULES = "biosdisk part_msdos ext2 linux normal boot"


def stock_image():
    """Directory with ``stock.qcow2``, built if need be."""
    with cached(f"stock-{make_key(text=f'{SUITE} {PACKAGES} {_GRUB_CFG} {_FSTAB}')}") as (final, partial):
        if partial:
            root = partial.with_suffix(".root")
            shutil.rmtree(root, ignore_errors=True)
            with step("build a stock cloud image"):
                run(*mmdebstrap(PACKAGES), root)
                _finish(root)
                partial.mkdir()
                _disk(root, partial / NAME)
                shutil.rmtree(root)
    return final


def _finish(root):
    (root / "boot/grub").mkdir(exist_ok=True)
    (root / "boot/grub/grub.cfg").write_text(_GRUB_CFG)
    (root / "etc/fstab").write_text(_FSTAB)
    (root / "etc/machine-id").write_text("")  # made anew from the machine's UUID
    for made in [*root.glob("etc/ssh/ssh_host_*"), root / "etc/hostname", root / "etc/resolv.conf"]:
        made.unlink(missing_ok=True)
    (root / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")


def _disk(root, qcow2):
    prefix = "(hd0,msdos1)/boot/grub"
    run("chroot", root, "grub-mkimage", "-O", "i386-pc", "-p", prefix, "-o", "/core.img", *_MODULES.split())
    core = (root / "core.img").read_bytes()
    (root / "core.img").unlink()
    boot = (root / "usr/lib/grub/i386-pc/boot.img").read_bytes()
    raw = qcow2.with_suffix(".raw")
    with raw.open("wb") as disk:
        disk.truncate(_SIZE)
        # Partition table: one Linux partition (type 0x83) to the end, marked active, in sectors of 512 bytes.
        first, count = _PARTITION // 512, (_SIZE - _PARTITION) // 512
        entry = b"\x80\0\0\0\x83\0\0\0" + first.to_bytes(4, "little") + count.to_bytes(4, "little")
        disk.write(boot[:440] + bytes(6) + entry + bytes(48) + b"\x55\xaa")
        # boot.img loads what follows it, core.img, which grub-mkimage made to be there.
        disk.write(core)
    # GRUB 2.12 doesn't read file systems that have these two.
    options = ("-O", "^orphan_file,^metadata_csum_seed", "-E", f"offset={_PARTITION},root_owner=0:0")
    run("mkfs.ext4", "-q", "-F", "-L", "root", *options, "-d", root, raw, f"{(_SIZE - _PARTITION) >> 10}k")
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2)
    raw.unlink()
