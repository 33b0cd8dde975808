"""Root file systems and the golden image, built once and kept in a cache keyed by what they are made from."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from labtools.settings import CACHE, CHECKOUT, SUITE, VENV
from labtools.steps import StepFailed, output, run, step

sys.path.insert(0, str(CHECKOUT / "salt/_utils"))

from saltmarsh import library

MODULES = CHECKOUT / "salt"
MACHINE_PACKAGES = CHECKOUT / "lab/packages-machine"
NODE_PACKAGES = CHECKOUT / "image/packages"
NODE_FILES = CHECKOUT / "image/rootfs"
CLOUD_INIT = CHECKOUT / "image/cloud-init"  # beside that, for clouds
MINION_UNIT = NODE_FILES / "etc/systemd/system/salt-minion.service"
REQUIREMENTS = CHECKOUT / "requirements/runtime.txt"
PICTURES = CHECKOUT / "requirements/timeline.txt"  # the same and more, which nodes do without
HOST_PACKAGES = {
    "mmdebstrap": "mmdebstrap", "systemd-nspawn": "systemd-container", "qemu-img": "qemu-utils", "ip": "iproute2",
    "busybox": "busybox-static", "zstd": "zstd", "xz": "xz-utils", "cpio": "cpio", "mkfs.ext4": "e2fsprogs",
    "nsenter": "util-linux",
}  # fmt: skip
# What a compiler is needed for: timelib and libvirt-python have no wheels.
BUILD_PACKAGES = ("gcc", "python3-dev", "libvirt-dev", "pkg-config")
LEAN = ("usr/share/doc/*", "usr/share/man/*", "usr/share/locale/*", "usr/share/info/*")


def install_tools():
    """Install what the lab needs on this machine and is missing."""
    missing = sorted({package for tool, package in HOST_PACKAGES.items() if shutil.which(tool) is None})
    if missing:
        with step(f"install {' '.join(missing)}"):
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            run("apt-get", "update", "-q", env=environment)
            run("apt-get", "install", "-q", "-y", "--no-install-recommends", *missing, env=environment)


def machine_root():
    """Directory with the root file system that all containers share, built if need be."""
    key = make_key(MACHINE_PACKAGES, PICTURES, MINION_UNIT, text=SUITE)
    with cached(f"machine-{key}") as (final, partial):
        if partial:
            venv = salt_venv()
            with step("build the machines' root file system"):
                _debootstrap([MACHINE_PACKAGES], partial)
                _put_venv(venv, partial)
                _pip_install(partial, PICTURES)
                shutil.copy(MINION_UNIT, partial / "etc/systemd/system")
    return final


def salt_venv():
    """Directory with the tree of the Salt environment for Debian's Python, built if need be in a throw-away root."""
    key = make_key(REQUIREMENTS, text=SUITE)
    with cached(f"venv-{key}") as (final, partial):
        if partial:
            scratch = partial.with_suffix(".root")
            shutil.rmtree(scratch, ignore_errors=True)
            with step("prepare a root file system to build Salt in"):
                run(*mmdebstrap(["python3", "python3-venv", "ca-certificates", *BUILD_PACKAGES]), scratch)
            with step("build the Salt environment"):
                run("chroot", scratch, "python3", "-m", "venv", VENV)
                _pip_install(scratch, REQUIREMENTS)
                partial.mkdir()
                run("cp", "-a", f"{scratch}{VENV}/.", partial)
                shutil.rmtree(scratch)
    return final


def node_image(cloud_init=False):
    """
    Directory with node.qcow2, vmlinux and initrd.img of the golden image, built if need be.

    :param bool cloud_init: that of clouds, which takes its identity from a config drive
    """
    trees = [NODE_FILES, *([CLOUD_INIT / "rootfs"] if cloud_init else ())]
    package_files = [NODE_PACKAGES, *([CLOUD_INIT / "packages"] if cloud_init else ())]
    recipe = [path for tree in trees for path in sorted(tree.rglob("*")) if path.is_file()]
    recipe += [*package_files, REQUIREMENTS, CHECKOUT / "image/initrd-init", Path(__file__), *library.files(MODULES)]
    key = make_key(*recipe, text=SUITE)
    with cached(f"node-{key}") as (final, partial):
        if partial:
            venv = salt_venv()
            packages = _cached_node_packages(package_files)
            root = partial.with_suffix(".root")
            shutil.rmtree(root, ignore_errors=True)
            with step(f"build the golden image{' with cloud-init' if cloud_init else ''}"):
                run("cp", "-a", "--reflink=auto", packages, root)
                _put_venv(venv, root)
                for tree in trees:
                    run("cp", "-a", "--no-preserve=ownership", f"{tree}/.", root)
                _put_library(root)
                run("chroot", root, "sh", "-e", "/usr/lib/saltmarsh/finish-image")
                partial.mkdir()
                _kernel_and_initrd(root, partial)
                shutil.rmtree(root / "boot")
                _disk(root, partial / "node.qcow2")
                shutil.rmtree(root)
    return final


def clean():
    """Empty the cache."""
    if CACHE.exists():
        for entry in CACHE.iterdir():
            if entry.name != "lock":
                run("rm", "-rf", "--one-file-system", entry)


def _cached_node_packages(package_files):
    key = make_key(*package_files, text=SUITE)
    with cached(f"node-packages-{key}") as (final, partial):
        if partial:
            with step("install the golden image's packages"):
                _debootstrap(package_files, partial)
    return final


@contextmanager
def cached(name):
    """Yield (final, partial): partial is a path to build at, or None where final is already there."""
    CACHE.mkdir(parents=True, exist_ok=True)
    final, partial = CACHE / name, CACHE / f"{name}.partial"
    with (CACHE / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if final.exists():
            yield final, None
            return
        if partial.exists():
            run("rm", "-rf", "--one-file-system", partial)
        yield final, partial
        partial.rename(final)


def make_key(*files, text=""):
    """A short name for what something is made from: these files of the checkout, and this text."""
    digest = hashlib.sha256(text.encode())
    for path in files:
        digest.update(f"{path.relative_to(CHECKOUT)} {path.stat().st_mode}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def mmdebstrap(packages):
    """The command that makes a root file system of these packages, less the directory it goes to."""
    return [
        "mmdebstrap", "--mode=root", "--format=directory", "--variant=apt", "--architectures=amd64",
        '--aptopt=APT::Install-Recommends "false"', *(f"--dpkgopt=path-exclude=/{path}" for path in LEAN),
        f"--include={','.join(packages)}", SUITE,
    ]  # fmt: skip


def _debootstrap(package_files, target):
    run(*mmdebstrap([package for path in package_files for package in path.read_text().split()]), target)


def _pip_install(root, requirements):
    """Install packages into the environment of a root file system, and leave nothing else there."""
    bundle = os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
    names = {"/requirements.txt": requirements, "/certificates": bundle, "/etc/resolv.conf": "/etc/resolv.conf"}
    files = {root / name.lstrip("/"): source for name, source in names.items()}
    before = {path: path.read_bytes() if path.exists() else None for path in files}
    environment = {
        name: value for name, value in os.environ.items() if name.startswith("PIP_") and "FIND_LINKS" not in name
    }
    environment |= {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}
    environment |= {"PIP_CERT": "/certificates", "SSL_CERT_FILE": "/certificates"}
    pip = (f"{VENV}/bin/pip", "install", "--no-cache-dir", "--compile", "-r", "/requirements.txt")
    try:
        for path, source in files.items():
            shutil.copy(source, path)
        run("chroot", root, *pip, env=environment)
    finally:
        for path, content in before.items():
            path.unlink(missing_ok=True) if content is None else path.write_bytes(content)


def _put_venv(venv, root):
    target = root / VENV.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    run("cp", "-a", "--reflink=auto", venv, target)


def _put_library(root):
    """The project's modules as Salt would synchronise them, and the grain that says which they are."""
    extension_modules = root / "var/cache/salt/minion/extmods"
    for path in library.files(MODULES):
        target = extension_modules / str(path.relative_to(MODULES)).removeprefix("_")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    run("chroot", root, f"{VENV}/bin/python", "-m", "compileall", "-q", "/var/cache/salt/minion/extmods")
    (root / "etc/salt/grains").write_text(f"saltmarsh:\n  library: {library.digest(MODULES)}\n")


def _kernel_and_initrd(root, target):
    """An unpacked kernel (PVH) and a 2 MB initrd boot in a third of the time under software emulation."""
    kernel = next((root / "boot").glob("vmlinuz-*"))
    version = kernel.name.removeprefix("vmlinuz-")
    (target / "vmlinux").write_bytes(_vmlinux(kernel.read_bytes()))
    modules = root / "usr/lib/modules" / version
    # Unpacked, too: what a node needs of NFS took it a second and more to unpack.
    run("find", modules, "-name", "*.ko.xz", "-exec", "xz", "--decompress", "{}", "+")
    run("chroot", root, "depmod", version)
    tree = target / "initrd"
    for directory in ("bin", "mod", "dev", "newroot"):
        (tree / directory).mkdir(parents=True)
    shutil.copy(shutil.which("busybox"), tree / "bin/busybox")
    shutil.copy(CHECKOUT / "image/initrd-init", tree / "init")
    (tree / "init").chmod(0o755)
    shutil.copy(next(modules.rglob("virtio_blk.ko")), tree / "mod")
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    archive = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"], input=names.encode(), cwd=tree,
        stdout=subprocess.PIPE, check=True,
    ).stdout  # fmt: skip
    (target / "initrd.img").write_bytes(archive)
    shutil.rmtree(tree)


def _vmlinux(bzimage):
    """The ELF kernel inside a bzImage, found by the compressor's magic."""
    for magic, tool in ((b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\x00", "xz")):
        start = bzimage.find(magic)
        while start >= 0:
            # Trailing bytes of the bzImage make the tool fail after it has written the whole kernel.
            found = subprocess.run([tool, "-dc"], input=bzimage[start:], capture_output=True).stdout
            if found.startswith(b"\x7fELF"):
                return found
            start = bzimage.find(magic, start + 1)
    raise StepFailed("no ELF kernel found in the image's vmlinuz: is it compressed with neither zstd nor xz?")


def _disk(root, qcow2):
    raw = qcow2.with_suffix(".raw")
    with raw.open("wb") as disk:
        disk.truncate(4 << 30)
    options = "lazy_itable_init=0,root_owner=0:0"
    run("mkfs.ext4", "-q", "-F", "-L", "root", "-E", options, "-d", root, raw)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2)
    raw.unlink()


def sizes():
    """One line per thing in the cache, with its size."""
    return output("du", "-sh", *sorted(CACHE.glob("[!.]*")))
