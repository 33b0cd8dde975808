"""Plain salt-cloud makes, shows and destroys real machines on the lab's two hosts."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from saltcloud import ask, run_map, salt_cloud, traces, wait_for

EXAMPLE = "/srv/saltmarsh/cloud.maps.d/example.map"
BOOT = 300  # seconds: software emulation on two busy cores
SECRET = "PRIVATE KEY"
# salt-cloud forks for every query; whoever runs it may be busy with libvirt in other threads.
FORK_WHILE_BUSY = """
import multiprocessing, threading
import salt.config
from saltmarsh.hypervisor import Hypervisors
from saltmarsh.machine import ProviderConfig

providers = salt.config.cloud_config("/etc/salt/cloud")["providers"]
hypervisors = Hypervisors(ProviderConfig.read(providers["lab"]["libvirt"], "provider"), "/tmp")
done = threading.Event()

def ask():
    while not done.is_set():
        hypervisors.machines()

threads = [threading.Thread(target=ask) for _ in range(4)]
for thread in threads:
    thread.start()
for _ in range(50):
    child = multiprocessing.get_context("fork").Process(target=hypervisors.machines)
    child.start()
    child.join(60)
    print(child.exitcode)
done.set()
"""


@pytest.fixture(scope="module")
def made(lab):
    """What salt-cloud said when it ran the example map: vn015 anywhere, vn016 on hv2 with more memory."""
    output = salt_cloud(lab, "-m", EXAMPLE)
    yield output
    lab.exec("ctl", "salt-cloud", "--assume-yes", "-d", "vn015", "vn016", timeout=180)
    assert not traces(lab, "vn015") + traces(lab, "vn016")


@pytest.fixture(scope="module")
def booted(lab, made):
    """The example map's machines, once their minions answer."""
    for name in made:
        wait_for(lambda name=name: ask(lab, name, "true", patience=10) is not None, BOOT, f"the minion of {name}")
    return made


@pytest.fixture
def clean(lab):
    """vn013 and vn014 are destroyed after the test, if it made them."""
    yield
    for name in ("vn013", "vn014"):
        if traces(lab, name):
            lab.exec("ctl", "salt-cloud", "--assume-yes", "-d", name, timeout=180)
        assert not traces(lab, name)


def test_a_map_makes_what_it_says_and_nothing_else(lab, made):
    assert {name: (node["address"], node["memory"]) for name, node in made.items()} == {
        "vn015": ("10.77.0.115", 256),
        "vn016": ("10.77.0.116", 384),
    }
    assert made["vn016"]["host"] == "hv2"


def test_machines_are_listed(lab, made):
    listed = salt_cloud(lab, "-Q")["lab"]["libvirt"]
    assert {name: node["state"] for name, node in listed.items()} == {"vn015": "running", "vn016": "running"}
    full = salt_cloud(lab, "-F")["lab"]["libvirt"]
    assert full["vn016"] == made["vn016"]
    assert salt_cloud(lab, "-a", "show_instance", "vn016")["lab"]["libvirt"]["vn016"] == made["vn016"]


def test_a_second_run_of_the_map_changes_nothing(lab, made):
    assert salt_cloud(lab, "-m", EXAMPLE) == {name: {"Message": "Already running."} for name in made}


def test_images_sizes_and_hosts_are_listed(lab, made):
    assert salt_cloud(lab, "--list-images", "lab")["lab"]["libvirt"]["node.qcow2"]["hosts"] == ["hv1", "hv2"]
    assert salt_cloud(lab, "--list-sizes", "lab")["lab"]["libvirt"]["virtual"] == {"cpus": 1, "memory": 256}
    hosts = salt_cloud(lab, "--list-locations", "lab")["lab"]["libvirt"]
    assert hosts["hv2"]["memory_total"] - hosts["hv2"]["memory_free"] >= 1024 + 384


def test_the_minions_come_up_as_who_they_are(lab, booted):
    address = "ip -4 -o addr show scope global | grep -o 'inet [0-9./]*'"
    script = f"hostname; {address}; stat -c %a /etc/salt/pki/minion/minion.pem"
    for name, node in booted.items():
        assert ask(lab, name, script).split() == [name, "inet", f"{node['address']}/24", "400"]


def test_the_minions_trust_this_master_alone(lab, booted):
    master = lab.exec("ctl", "cat", "/etc/salt/pki/master/master.pub").stdout.strip()
    assert ask(lab, "vn015", "cat /etc/salt/pki/minion/minion_master.pub").strip() == master


def test_the_private_keys_are_in_no_command_line_domain_or_log(lab, booted):
    for name, node in booted.items():
        host = node["host"]
        assert SECRET in lab.exec(host, "cat", f"/srv/nodes/{name}.lab.minion.pem").stdout
        assert lab.exec(host, "stat", "-c", "%a", f"/srv/nodes/{name}.lab.minion.pem").stdout.strip() == "600"
        assert SECRET not in lab.exec(host, "ps", "axww").stdout
        assert SECRET not in lab.exec(host, "virsh", "dumpxml", name).stdout
        assert lab.exec(host, "grep", "-rl", SECRET, "/var/log", check=False).stdout == ""
    assert lab.exec("ctl", "grep", "-rl", SECRET, "/var/log", check=False).stdout == ""


def test_a_machine_is_stopped_started_and_rebooted(lab, booted):
    def state():
        return salt_cloud(lab, "-Q")["lab"]["libvirt"]["vn016"]["state"]

    def boot_id():
        return ask(lab, "vn016", "cat /proc/sys/kernel/random/boot_id", patience=10)

    salt_cloud(lab, "-a", "stop", "vn016")
    assert state() == "stopped"
    salt_cloud(lab, "-a", "start", "vn016")
    assert state() == "running"
    wait_for(boot_id, BOOT, "the minion of vn016, started again")
    before = boot_id()
    salt_cloud(lab, "-a", "reboot", "vn016")
    wait_for(lambda: boot_id() not in (None, before), BOOT, "another boot id of vn016")


def test_the_console_is_kept_on_the_host_while_the_machine_lives(lab, booted):
    assert lab.exec(booted["vn015"]["host"], "cat", "/srv/nodes/vn015.lab.console").stdout


@pytest.mark.usefixtures("clean")
def test_a_profile_and_a_name_that_resolves_are_enough(lab):
    hosts_file = "/var/lib/saltmarsh/dns/test-vn014"
    lab.exec("ctl", "sh", "-c", f"echo 10.77.0.114 vn014 > {hosts_file}")
    try:
        wait_for(lambda: lab.exec("ctl", "getent", "hosts", "vn014", check=False).stdout, 10, "vn014 in DNS")
        assert salt_cloud(lab, "-p", "virtual", "vn014")["vn014"]["address"] == "10.77.0.114"
    finally:
        lab.exec("ctl", "rm", "-f", hosts_file)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"host": "hv9"}, "hv9 is not a host of this provider: hv1, hv2"),
        ({"image": "gone.qcow2"}, "hv1: gone.qcow2 is not in storage pool images"),
        ({"memory": 10**6}, "no room for vn013 (1000000 MiB, 1 CPUs): hv1 has "),
        ({"disk": 1}, "vn013: disk: 1 GiB is less than the "),
        ({"address": "10.77.0.300"}, "address: value is not a valid IPv4 or IPv6 address"),
        ({"network": {"bridge": "br9"}}, "can't start vn013: "),
    ],
)
@pytest.mark.usefixtures("clean")
def test_bad_input_is_one_clear_line_and_nothing_is_left(lab, entry, message):
    said = run_map(lab, "vn013", **entry)["Error"]
    assert message in said
    assert "\n" not in said
    assert not traces(lab, "vn013")


def test_a_profile_that_does_not_exist_is_named(lab):
    assert salt_cloud(lab, "-p", "nothere", "vn013") == {"Error": "Profile nothere is not defined"}


@pytest.mark.usefixtures("clean")
def test_a_full_disk_is_told_as_such_and_nothing_is_left(lab):
    lab.exec("hv2", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/srv/nodes")
    try:
        said = run_map(lab, "vn013", host="hv2")["Error"]
    finally:
        lab.exec("hv2", "umount", "/srv/nodes")
    assert "hv2: storage pool nodes is full (" in said
    assert not traces(lab, "vn013")


@pytest.mark.usefixtures("clean")
def test_a_host_that_is_down_is_named_and_not_used(lab):
    units = (
        "libvirtd.service",
        "libvirtd-tls.socket",
        "libvirtd.socket",
        "libvirtd-ro.socket",
        "libvirtd-admin.socket",
    )
    lab.exec("hv2", "systemctl", "stop", *units)
    try:
        assert "hv2 can't be reached" in run_map(lab, "vn013", host="hv2")["Error"]
        assert run_map(lab, "vn014")["host"] == "hv1"
        assert "vn014" in salt_cloud(lab, "-Q")["lab"]["libvirt"]
    finally:
        lab.exec("hv2", "systemctl", "start", *reversed(units))


@pytest.mark.usefixtures("clean")
def test_two_processes_do_not_promise_the_same_memory(lab):
    free = salt_cloud(lab, "--list-locations", "lab")["lab"]["libvirt"]["hv1"]["memory_free"]
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda name: run_map(lab, name, host="hv1", memory=free * 2 // 3), ("vn013", "vn014")))
    assert sorted("Error" in outcome for outcome in outcomes) == [False, True]
    assert any("no room for" in outcome.get("Error", "") for outcome in outcomes)


def test_a_process_may_fork_while_its_threads_ask_the_hosts(lab):
    python = ("env", "PYTHONPATH=/srv/saltmarsh/salt/_utils", "/opt/saltmarsh/bin/python", "-W", "ignore")
    assert lab.exec("ctl", *python, "-c", FORK_WHILE_BUSY, timeout=180).stdout.split() == ["0"] * 50
