"""A cloud image that knows nothing of this project becomes a machine of it, by cloud-init and a NoCloud seed."""

import os
import re
import shutil

import pytest
from saltcloud import run_map, traces, wait_for

BOOT = 300  # seconds: a stock initrd and cloud-init under software emulation
# On its standard output: cloud-init writes that to the console.
TELL = """
hostname
ip -4 -o addr show eth0 | grep -o 'inet [0-9./]*'
ip route show default
stat -c '%a %n' /etc/salt/pki/minion/minion.pem /etc/salt/minion.d/saltmarsh.conf
cat /etc/salt/pki/minion/minion_master.pub
grep '^id:' /etc/salt/minion.d/saltmarsh.conf
df --output=size -BM / | tail -1
echo all is told
"""


@pytest.fixture
def image(lab, checkout):
    """A stock image in the lab's image pool."""
    built = lab.run("image", "--stock", timeout=900)
    assert built.returncode == 0, built.stderr
    target = checkout / ".lab/images/stock.qcow2"
    shutil.copyfile(os.path.join(built.stdout.split()[-1], "stock.qcow2"), target)
    yield target.name
    target.unlink()


@pytest.fixture
def told(lab, image):
    """What a machine made of it says about itself on its console."""
    cloud_config = {"runcmd": [["sh", "-c", TELL]]}
    made = run_map(lab, "vn013", "stock", deploy=True, host="hv1", image=image, disk=3, cloud_config=cloud_config)
    try:
        assert made.get("state") == "running", made
        console = []

        def all_is_told():
            console[:] = lab.exec("hv1", "cat", "/srv/nodes/vn013.lab.console").stdout.splitlines()
            return any(line.endswith("all is told") for line in console)

        wait_for(all_is_told, BOOT, "the end of cloud-init")
        yield [line.partition("]: ")[2].strip() for line in console if "cloud-init[" in line]
    finally:
        lab.exec("ctl", "salt-cloud", "--assume-yes", "-d", "vn013", timeout=180)
        assert not traces(lab, "vn013")


def test_a_stock_image_takes_its_identity_from_the_seed(lab, told):
    assert "vn013" in told
    assert "inet 10.77.0.113/24" in told
    assert "default via 10.77.0.1 dev eth0 proto static" in told
    assert "600 /etc/salt/pki/minion/minion.pem" in told
    assert "600 /etc/salt/minion.d/saltmarsh.conf" in told
    assert "id: vn013" in told
    master = lab.exec("ctl", "cat", "/etc/salt/pki/master/master.pub").stdout.split("\n")
    assert set(filter(None, master)) <= set(told)
    [size] = [match[1] for line in told if (match := re.fullmatch(r"(\d+)M", line))]
    assert int(size) > 2500
