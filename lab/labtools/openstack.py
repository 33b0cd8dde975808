"""Real OpenStack clouds on the lab's network, each in namespaces of its own; their computes are Nova's fakes."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from labtools import container, images, network
from labtools.settings import CHECKOUT, CTL, LOG, PREFIX, STATE, SUITE, TAG
from labtools.steps import StepFailed, output, run, say, step, wait_until

PACKAGES = CHECKOUT / "lab/packages-openstack"
CONFIGURATION = CHECKOUT / "lab/clouds"
CLOUDS_YAML = STATE / "clouds/clouds.yaml"
SETUP_SECONDS = 600
READY_SECONDS = 180
# Where tests and benches reach the clouds from.
OUTSIDE = "10.77.0.250"

_ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}
_INSIDE = """\
set -e
root=$1
hostname $2
mount --bind $root $root
mount -t proc proc $root/proc
mount -t sysfs sysfs $root/sys
mount -t tmpfs tmpfs $root/run
mount -t tmpfs -o mode=1777 tmpfs $root/tmp
mount --bind /dev $root/dev
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts $root/dev/pts
mount -t tmpfs -o mode=1777 tmpfs $root/dev/shm
ip link add br-ci type bridge
ip link set host0 master br-ci up
ip address add $3 dev br-ci
ip link set br-ci up
exec chroot $root /bin/sh -c 'while :; do sleep 1000; done'
"""
_PROVE = """\
import json, sys, time
sys.path.insert(0, "/cfg")
import seed
cloud = seed.connect()
def up():
    return [s for s in cloud.compute.services(binary="nova-compute") if s.state == "up" and s.updated_at]
while not up():
    time.sleep(0.5)
print(json.dumps([s.host for s in up()]))
"""
_THROW_AWAY = """\
import sys
sys.path.insert(0, "/cfg")
import seed
cloud = seed.connect()
flavor, image = cloud.compute.find_flavor("m1.ci"), cloud.image.find_image("node")
server = cloud.compute.create_server(name="proof", flavor_id=flavor.id, image_id=image.id, networks="none")
try:
    cloud.compute.wait_for_server(server, interval=0.5, wait=120)
finally:
    cloud.compute.delete_server(server)
    cloud.compute.wait_for_delete(server, interval=0.5, wait=60)
"""


@dataclass(frozen=True)
class Cloud:
    """One cloud: all services in one set of namespaces, reached at one address."""

    name: str
    address: str

    @property
    def directory(self):
        """All that there is of it."""
        return STATE / "clouds" / self.name

    @property
    def root(self):
        """Its root file system, an overlay over the installed packages."""
        return self.directory / "root"

    @property
    def namespace(self):
        """Its network namespace; not named like the lab's own, which go when the lab does."""
        return f"{TAG}c-{self.name}"


CLOUDS = {cloud.name: cloud for cloud in (Cloud("engage1", "10.77.0.21"), Cloud("kaizen", "10.77.0.22"))}


def up():
    """Build what is missing, set up the clouds that are down, and return when each has proven that it makes servers."""
    if os.geteuid() != 0:
        raise StepFailed("the clouds need root (network namespaces, mounts)")
    images.install_tools()
    packages = _packages()
    LOG.mkdir(parents=True, exist_ok=True)
    network.bridge()
    down = [cloud for cloud in CLOUDS.values() if _leader(cloud) is None]
    if down:
        with step(f"set up {' and '.join(cloud.name for cloud in down)}"), ThreadPoolExecutor(len(down)) as pool:
            list(pool.map(lambda cloud: _set_up(cloud, packages), down))
    _write_clouds_yaml()


def down():
    """Stop the clouds and leave nothing of them."""
    for cloud in CLOUDS.values():
        if cloud.directory.exists():
            with step(f"stop {cloud.name}"):
                _stop(cloud)
    shutil.rmtree(STATE / "clouds", ignore_errors=True)
    if not any(name.startswith(f"{TAG}-") for name in network.namespaces()):
        network.down()


def status():
    """Print one line per cloud; True if all run."""
    running = True
    for cloud in CLOUDS.values():
        there = _leader(cloud) is not None
        running &= there
        say(f"{cloud.name:8} {cloud.address:12} {'running' if there else 'down'}")
    return running


def execute(name, argv):
    """Run a command inside a cloud; returns its exit status."""
    if name not in CLOUDS:
        raise StepFailed(f"no cloud is called {name!r} (there are: {', '.join(CLOUDS)})")
    return subprocess.run(_entry(CLOUDS[name], argv), env=_ENVIRONMENT).returncode


def reach():
    """Give the lab's bridge an address, from which whoever is in its namespace reaches the clouds."""
    addresses = output("ip", "-n", TAG, "-json", "address", "show", "dev", network.BRIDGE)
    if OUTSIDE not in addresses:
        run("ip", "-n", TAG, "address", "add", f"{OUTSIDE}/{PREFIX}", "dev", network.BRIDGE)
    return f"/run/netns/{TAG}"


def password(cloud):
    """Of all its users; no two clouds have the same, so that none is taken for another."""
    return (cloud.directory / "password").read_text()


def auth(cloud, user="salt", project="cluster"):
    """How one logs in, as clouds.yaml has it."""
    return {
        "auth_url": f"http://{cloud.address}:5000/v3",
        "username": user,
        "password": password(cloud),
        "project_name": project,
        "user_domain_name": "Default",
        "project_domain_name": "Default",
    }


def _packages():
    with images.cached(f"openstack-{images.make_key(PACKAGES, text=SUITE)}") as (final, partial):
        if partial:
            with step("install OpenStack's packages"):
                environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
                run(*images.mmdebstrap(PACKAGES.read_text().split()), partial, env=environment)
    return final


def _set_up(cloud, packages):
    _stop(cloud)
    for part in ("upper", "work", "root"):
        (cloud.directory / part).mkdir(parents=True)
    layers = f"lowerdir={packages},upperdir={cloud.directory / 'upper'},workdir={cloud.directory / 'work'}"
    run("mount", "-t", "overlay", f"{STATE.name}-{cloud.name}", "-o", layers, cloud.root)
    secret = cloud.directory / "password"
    secret.touch(mode=0o600)
    secret.write_text(secrets.token_hex(8))
    (cloud.root / "cfg").mkdir()
    for source in CONFIGURATION.iterdir():
        text = source.read_text().replace("@ADDRESS@", cloud.address).replace("@PASSWORD@", password(cloud))
        target = cloud.root / "cfg" / source.name
        target.write_text(text)
        target.chmod(source.stat().st_mode)
    network.attach(cloud.namespace, cloud.name)
    _start(cloud)
    call(cloud, "/cfg/setup.sh", seconds=SETUP_SECONDS)
    call(cloud, "/cfg/services.sh", "nova-compute")
    call(cloud, "/cfg/seed.py", "resources", seconds=READY_SECONDS)
    call(cloud, "python3", "-c", _PROVE, seconds=READY_SECONDS)
    call(cloud, "nova-manage", "cell_v2", "discover_hosts")
    call(cloud, "python3", "-c", _THROW_AWAY, seconds=READY_SECONDS)


def _start(cloud):
    argv = [
        "nsenter", f"--net=/run/netns/{cloud.namespace}", "--",
        *("unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--propagation", "private"),
        *("bash", "-c", _INSIDE, "bash", cloud.root, cloud.name, f"{cloud.address}/{PREFIX}"),
    ]  # fmt: skip
    with (LOG / f"{cloud.name}.console").open("ab") as console:
        process = subprocess.Popen(
            list(map(str, argv)), stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
        )
    (cloud.directory / "pid").write_text(f"{process.pid}\n")

    def started():
        if process.poll() is not None:
            raise StepFailed(f"{cloud.name} did not start (log: {LOG}/{cloud.name}.console)")
        return _leader(cloud) and os.path.realpath(f"/proc/{_leader(cloud)}/root") == str(cloud.root)

    wait_until(started, 30, f"{cloud.name} starts")


def _stop(cloud):
    if (supervisor := _supervisor(cloud)) is not None:
        os.kill(supervisor, signal.SIGKILL)  # and with it all that runs inside (unshare --kill-child)
        wait_until(lambda: _supervisor(cloud) is None, 30, f"{cloud.name} stops")
    if cloud.namespace in output("ip", "netns", "list").split():
        run("ip", "netns", "delete", cloud.namespace)
    while os.path.ismount(cloud.root):
        run("umount", "--lazy", cloud.root)
    shutil.rmtree(cloud.directory, ignore_errors=True)


def _supervisor(cloud):
    """The pid of this cloud's unshare, None if it does not run (a reused pid is not it)."""
    try:
        pid = int((cloud.directory / "pid").read_text())
        argv = _alive(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return pid if str(cloud.root).encode() in argv else None


def _alive(pid):
    """The arguments of a process; of one that is dead and not yet reaped, none."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().split(b"\0")


def _leader(cloud):
    """The pid, out here, of the cloud's PID 1; None while there is none."""
    if (supervisor := _supervisor(cloud)) is None:
        return None
    try:
        with open(f"/proc/{supervisor}/task/{supervisor}/children") as file:
            children = file.read().split()
        # A wrong pid would run commands on the machine itself.
        return next(
            (int(pid) for pid in children if not os.path.samefile(f"/proc/{pid}/ns/pid", "/proc/self/ns/pid")), None
        )
    except (FileNotFoundError, ProcessLookupError):
        return None


def _entry(cloud, argv):
    if (pid := _leader(cloud)) is None:
        raise StepFailed(f"{cloud.name} is not running (start it with: lab/openstack up)")
    namespaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--root")
    return ["nsenter", "--target", str(pid), *namespaces, "--wdns=/root", "--", *map(str, argv)]


def call(cloud, *argv, seconds=60):
    """Run a command inside a cloud, its output to the log; StepFailed if it fails or takes longer."""
    path = LOG / f"{cloud.name}-setup.log"
    begun = time.monotonic()
    with path.open("ab") as log:
        log.write(f"\n$ {' '.join(argv)[:200]}\n".encode())
        log.flush()
        try:
            done = subprocess.run(
                _entry(cloud, argv), env=_ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=seconds
            )
        except subprocess.TimeoutExpired as err:
            raise StepFailed(f"not done within {seconds} s in {cloud.name}: {argv[0]} (log: {path})") from err
        log.write(f"# {time.monotonic() - begun:.1f} s\n".encode())
    if done.returncode != 0:
        raise StepFailed(f"exit status {done.returncode} in {cloud.name} from {argv[0]} (log: {path})")


def _write_clouds_yaml():
    """How to log in to all clouds: for tests out here, and on ctl if it is up."""
    known = {"clouds": {cloud.name: {"auth": auth(cloud), "region_name": "RegionOne"} for cloud in CLOUDS.values()}}
    places = [CLOUDS_YAML]
    if container.leader(CTL) is not None:
        places.append(CTL.root / "etc/openstack/clouds.yaml")
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch(mode=0o600)
        place.write_text(json.dumps(known))
