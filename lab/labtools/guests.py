"""Real guests in engage1: a compute with libvirt and QEMU beside the fake one, in a zone of its own."""

import shutil

from labtools import images
from labtools.openstack import CLOUDS, READY_SECONDS, call
from labtools.steps import run, step

CLOUD = CLOUDS["engage1"]
DIRECTORY = CLOUD.root / "guest"
DONE = CLOUD.directory / "guests"


def up():
    """Let the cloud boot guests from the golden image (harmless when it does)."""
    call(CLOUD, "true")  # says it if the cloud is down
    if DONE.exists():
        return
    image = images.node_image(cloud_init=True)
    with step(f"let {CLOUD.name} boot guests"):
        run("cp", "-r", "--reflink=auto", image, DIRECTORY)
        call(CLOUD, "/cfg/services.sh", "libvirt", "nova-compute-real")
        call(CLOUD, "/cfg/seed.py", "guests", seconds=READY_SECONDS)
        shutil.rmtree(DIRECTORY)
        DONE.touch()


def console(server_id):
    """What a guest has said on its serial console since it was last started or resumed."""
    path = CLOUD.root / "var/lib/nova/real/instances" / server_id / "console.log"
    return path.read_text(errors="replace") if path.exists() else ""
