"""The life of a pool's node in a real Slurm: docs/decisions/0004-cloud-node-states.md."""

import time

import pytest
from conftest import wait_until

from saltmarsh import slurm, slurmconf
from saltmarsh.errors import SlurmError
from saltmarsh.hostlist import fold

VN1, VN2 = {"vn001": "10.77.0.101"}, {"vn002": "10.77.0.102"}


def grow(cluster, addresses):
    slurm.expect(addresses)
    cluster.boot(*addresses)
    wait_until(lambda: all(node.registered for node in slurm.nodes(addresses).values()), 20)


def states(name):
    return slurm.nodes(name)[name].states


def test_no_job_goes_to_a_pool_that_has_not_grown(cluster):
    job = cluster.submit()
    wait_until(lambda: cluster.job(job).reason == "ReqNodeNotAvail", 20)
    assert cluster.job(job).states == {"PENDING"}
    assert all(node.absent for node in slurm.nodes("vn[001-004]").values())


def test_a_node_that_boots_becomes_idle_by_itself_and_takes_the_job_that_waits(cluster):
    job = cluster.submit()
    grow(cluster, VN1)
    wait_until(lambda: cluster.job(job).states == {"RUNNING"}, 20)
    cluster.counts_on(job)
    assert str(cluster.job(job).nodes) == "vn001"
    assert [job.id for job in slurm.jobs("vn001")] == [job]
    assert slurm.jobs("vn[002-004]") == ()


def test_nobody_else_appears_when_one_boots(cluster):
    grow(cluster, VN1)
    assert [name for name, node in slurm.nodes().items() if node.registered] == ["vn001"]


def test_a_drained_node_keeps_its_job_and_gets_no_other(cluster):
    grow(cluster, VN1)
    job = cluster.submit()
    cluster.counts_on(job)
    slurm.drain("vn001", "shrink")
    other = cluster.submit()
    cluster.counts_on(job)
    slurm.cancel_jobs([job])
    wait_until(lambda: slurm.jobs("vn001") == (), 20)
    assert cluster.job(other).states == {"PENDING"}
    slurm.undrain("vn001")
    cluster.counts_on(other)


def test_a_released_node_is_not_there_has_its_address_and_can_grow_again(cluster):
    grow(cluster, VN1)
    slurm.drain("vn001", "shrink")
    cluster.lose("vn001")
    slurm.release(VN1, 60)
    node = slurm.nodes("vn001")["vn001"]
    assert (node.absent, node.reason, node.address) == (True, "not grown", "10.77.0.101")
    assert "DRAIN" not in node.states
    grow(cluster, VN1)
    cluster.counts_on(cluster.submit("-w", "vn001"))


def test_a_node_that_was_lost_with_its_job_can_be_released(cluster):
    grow(cluster, VN1)
    job = cluster.submit()
    cluster.counts_on(job)
    cluster.lose("vn001")
    slurm.release(VN1, 60)
    assert slurm.nodes("vn001")["vn001"].absent
    assert cluster.job(job).states == {"PENDING"}  # requeued, not lost


def test_a_node_that_never_booted_is_released_at_once(cluster):
    slurm.expect(VN1)
    began = time.monotonic()
    slurm.release(VN1, 60)
    assert time.monotonic() - began < 3
    assert slurm.nodes("vn001")["vn001"].reason == "not grown"


def test_a_machine_that_is_not_gone_is_not_released(cluster):
    grow(cluster, VN1)
    grow(cluster, VN2)
    cluster.lose("vn002")
    alive = slurm.nodes("vn001")["vn001"]
    slurm.release(VN2, 60)
    assert slurm.nodes("vn001")["vn001"] == alive


def test_a_node_that_is_there_is_not_expected(cluster):
    grow(cluster, VN1)
    with pytest.raises(SlurmError, match=r"vn001 IDLE\+CLOUD"):
        slurm.expect(VN1)
    assert states("vn001") == {"IDLE", "CLOUD"}


def test_a_node_grows_at_the_address_it_is_given_now(cluster):
    slurm.set_addresses({"vn001": "10.77.0.199"})
    grow(cluster, VN1)
    assert slurm.nodes("vn001")["vn001"].address == "10.77.0.101"


def test_parking_touches_only_what_slurm_would_start(cluster):
    grow(cluster, VN1)
    cluster.run("scontrol", "update", "nodename=vn002", "state=resume")
    assert slurm.park("vn[001-004]") == ("vn002",)
    assert slurm.nodes("vn002")["vn002"].absent
    assert states("vn001") == {"IDLE", "CLOUD"}
    assert slurm.park("vn[001-004]") == ()


def test_states_and_addresses_survive_a_reconfigure_and_a_restart(cluster):
    grow(cluster, VN1)
    slurm.expect(VN2)

    def seen():
        return {name: (node.states, node.reason, node.address) for name, node in slurm.nodes("vn[001-004]").items()}

    before = seen()
    slurm.reconfigure()
    wait_until(lambda: seen() == before, 20)
    cluster.stop_slurmctld()
    cluster.start_slurmctld()
    wait_until(lambda: seen() == before, 20)


def test_every_one_of_ten_thousand_nodes_has_its_own_address(cluster, pillar):
    blocks = [f"10.{78 + number // 20}.{number % 20}.1-250" for number in range(40)]
    pillar["elastic"]["network"]["prefix"] = 8
    pillar["elastic"]["pools"]["virtual"] |= {"nodes": "vn[00001-10000]", "addresses": blocks}
    addresses = slurmconf.pool_addresses(pillar)
    assert len(addresses) == 10_000
    cluster.stop_slurmctld()
    (cluster.config / "slurm.conf").write_text(slurmconf.render(pillar)["slurm.conf"])
    cluster.start_slurmctld()
    assert {name: node.address for name, node in slurm.nodes(addresses).items()} == addresses
    assert len(slurm.park(addresses)) == 10_000
    every_other = dict(list(addresses.items())[::2])
    slurm.expect(every_other)
    found = slurm.nodes(addresses)
    assert {name for name, node in found.items() if node.reason == slurm.GROWING} == set(every_other)
    assert {name: node.address for name, node in found.items()} == addresses


def test_slurm_reads_a_hostlist_in_the_order_in_which_it_was_folded(cluster):
    names = ["vn9", "vn10", "vn010", "a", "a1", "b2", "b1", "10.77.0.99", "10.77.0.100", "10.77.1.101", "10.77.1.102"]
    assert cluster.run("scontrol", "show", "hostnames", fold(names)).split() == names
    numbers = [f"vn{number:03d}" for number in range(95, 1005)]
    assert cluster.run("scontrol", "show", "hostnames", fold(numbers)).split() == numbers
