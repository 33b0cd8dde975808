"""What differs, and what is done about it: tables over snapshots. Where anything is in doubt, nothing is done."""

import dataclasses

import pytest

from saltmarsh.comparing import PATIENT, Repair, compare, explain
from saltmarsh.machine import Inventory, PowerState, Seen
from saltmarsh.model import Node, State
from saltmarsh.observing import Snapshot
from saltmarsh.slurm import GROWING, NOT_GROWN
from saltmarsh.slurmtypes import SlurmNode

STUB = "stub"
UP = ("IDLE", "CLOUD")
AWAY = ("DOWN", "CLOUD", "POWERED_DOWN")
SILENT = ("DOWN", "CLOUD", "NOT_RESPONDING")


class Place:
    """A site at rest: osg1 is ready on hv1, everything else is free. A test changes it, then looks."""

    def __init__(self, site):
        self.site = site
        self.nodes = {"osg1": Node("osg1", "osg", "10.77.0.51", State.READY, 1.0, "hv1", "Slurm has it")}
        self.machines = [Seen("osg1", "hv1", PowerState.RUNNING)]
        self.saved = {}
        self.silent = {}
        self.strays = set()
        self.others = set()
        self.dead = None
        self.slurm = {
            name: SlurmNode(name, frozenset(AWAY), NOT_GROWN, pool.address_of(name), (), (), 1, 1, 0)
            for pool in site.pools.values()
            for name in pool.nodes
        }
        self.in_slurm("osg1", *UP, reason="")
        self.keys = {"osg1", "ctl", "hv1"}
        self.dns = {"osg1"}
        self.tunnel = set()
        self.changed = set()

    def node(self, **changes):
        self.nodes["osg1"] = dataclasses.replace(self.nodes["osg1"], **changes)

    def free(self):
        """Nobody has osg1, and nothing is left of it."""
        del self.nodes["osg1"]
        self.gone()
        self.in_slurm("osg1", *AWAY, reason=NOT_GROWN)
        self.keys.remove("osg1")
        self.dns.clear()

    def failed(self, reason="burnt", **changes):
        self.node(state=State.FAILED, reason=reason, **changes)

    def gone(self):
        self.machines.clear()

    def machine(self, host="hv1", state=PowerState.RUNNING, name="osg1"):
        self.machines[:] = [Seen(name, host, state)]

    def in_slurm(self, name, *states, **changes):
        self.slurm[name] = dataclasses.replace(self.slurm[name], states=frozenset(states), **changes)

    def look(self):
        inventory = Inventory(
            tuple(self.machines), self.saved, self.silent, frozenset(self.strays), frozenset(self.others)
        )
        return Snapshot(
            at=2.0,
            site=self.site,
            nodes=self.nodes,
            slurm=self.slurm,
            providers={STUB: self.dead or inventory},
            provider_of=dict.fromkeys(self.site.pools, STUB),
            keys=frozenset(self.keys),
            dns=frozenset(self.dns),
            tunnel=frozenset(self.tunnel),
            changed=frozenset(self.changed),
        )


@pytest.fixture
def place(site):
    return Place(site)


def found(place):
    """What is found of each subject: why, and the repair."""
    return {(each.subject, each.why, each.repair) for each in compare(place.look())}


def test_where_all_agree_nothing_is_found(place):
    assert found(place) == set()


def test_a_node_that_its_host_puts_away_or_has_put_away_stays_away(place):
    """The ledger has it ready until it has learned of it: Slurm must not be told to ask the node itself."""
    place.in_slurm("osg1", *UP, address="10.77.0.1")
    place.machine(state=PowerState.PAUSED)
    assert found(place) == {("osg1", "its machine is paused on hv1", None)}
    place.gone()
    place.saved.update(osg1=7)
    assert found(place) == {("osg1", "its memory is in a state file, though nobody has suspended it", None)}


def lose(place, *states):
    place.gone()
    place.in_slurm("osg1", *(states or SILENT))


# What is done to the place, then what is found of osg1: the beginning of why, and the repair.
READY = {
    "its machine is gone and its slurmd is silent": (lose, "its machine is gone from hv1", Repair.FAIL),
    "its machine is gone, but its slurmd answers": (
        lambda place: place.gone(), "its machine is on no host that answers, but its slurmd answers", None,
    ),
    "its machine is gone, but a state file is there": (
        lambda place: (lose(place), place.saved.update(osg1=7)), "its memory is in a state file", None,
    ),
    "its machine has stopped": (
        lambda place: (place.machine(state=PowerState.STOPPED), place.in_slurm("osg1", *SILENT)),
        "its machine is stopped on hv1", Repair.FAIL,
    ),
    "its machine is paused": (
        lambda place: place.machine(state=PowerState.PAUSED), "its machine is paused on hv1", None,
    ),
    "it is on another host": (lambda place: place.machine("hv2"), "it is on hv2, not on hv1", Repair.PLACE),
    "it is on two hosts": (
        lambda place: place.machines.append(Seen("osg1", "hv2", PowerState.RUNNING)),
        "there are machines of its name running on hv1 and running on hv2", None,
    ),
    "Slurm speaks to another address": (
        lambda place: place.in_slurm("osg1", *UP, address="osg1"), "Slurm has it at osg1", Repair.ADDRESS,
    ),
    "it is not in DNS": (lambda place: place.dns.clear(), "its name is not in DNS", Repair.NAME),
    "its key is gone": (lambda place: place.keys.remove("osg1"), "its minion key is not accepted", None),
    "Slurm does not know it": (
        lambda place: place.slurm.pop("osg1"), "it is not in Slurm's configuration: run slurm.push_config", None,
    ),
    "its slurmd is silent": (
        lambda place: place.in_slurm("osg1", *SILENT), "its slurmd does not answer (DOWN+CLOUD+NOT_RESPONDING", None,
    ),
}  # fmt: skip
FAILED = {
    "its machine is gone": (lambda place: (place.failed(), lose(place)), "its machine is gone", Repair.REMOVE),
    "its machine has stopped": (
        lambda place: (place.failed(), lose(place), place.machine(state=PowerState.STOPPED)),
        "its machine is stopped on hv1", Repair.REMOVE,
    ),
    "its removal was begun": (
        lambda place: place.failed("not proven gone: hv1 can't be reached"), "its removal has not ended", Repair.REMOVE,
    ),
    "its machine runs": (
        lambda place: (place.failed(), place.in_slurm("osg1", *SILENT)), "its machine is running on hv1: look", None,
    ),
    "its slurmd answers": (lambda place: place.failed(), "its slurmd answers", None),
    "its memory is on disk": (
        lambda place: (place.failed(), lose(place), place.saved.update(osg1=7)), "its memory is on disk", None,
    ),
}  # fmt: skip
OTHERS = {
    "it is suspended, and runs": (
        lambda place: place.node(state=State.SUSPENDED), "it is suspended, and its machine is running on hv1", None,
    ),
}  # fmt: skip
NOBODYS = "nobody has this name, but "
FREE = {
    "a machine is there": (
        lambda place: place.machine(), f"{NOBODYS}there is a machine running on hv1", Repair.REMOVE,
    ),
    "a machine is there, at work for Slurm": (
        lambda place: (place.machine(), place.in_slurm("osg1", *UP)),
        f"{NOBODYS}there is a machine running on hv1 and its slurmd answers: is it at work?", None,
    ),
    "a key is left": (
        lambda place: place.keys.add("osg1"), f"{NOBODYS}a minion key is accepted", Repair.REMOVE,
    ),
    "volumes are left": (
        lambda place: place.strays.add("osg1"), f"{NOBODYS}there are volumes of a machine", Repair.REMOVE,
    ),
    "volumes are left, and the machine is at work somewhere": (
        lambda place: (place.strays.add("osg1"), place.in_slurm("osg1", *UP)),
        f"{NOBODYS}there are volumes of a machine and its slurmd answers: is it at work?", None,
    ),
    "somebody else has a machine of this name": (
        lambda place: place.others.add("osg1"), f"{NOBODYS}there is a machine that is not this cluster's", None,
    ),
    "it is not shut out of the tunnel": (
        lambda place: place.tunnel.add("osg1"), f"{NOBODYS}it may enter the tunnel", Repair.REMOVE,
    ),
    "a DNS name is left": (lambda place: place.dns.add("osg1"), f"{NOBODYS}it is in DNS", Repair.REMOVE),
    "Slurm has it up, and there is no machine": (
        lambda place: place.in_slurm("osg1", *UP), f"{NOBODYS}its slurmd answers", Repair.REMOVE,
    ),
    "a state file is left": (
        lambda place: place.saved.update(osg1=7), f"{NOBODYS}there is a state file", None,
    ),
    "somebody has resumed it in Slurm": (
        lambda place: place.in_slurm("osg1", "IDLE", "CLOUD", "POWERED_DOWN"),
        f"{NOBODYS}Slurm would start it for a job", Repair.PARK,
    ),
    "Slurm waits for it to boot": (
        lambda place: place.in_slurm("osg1", "MIXED", "CLOUD", "POWERING_UP"),
        f"{NOBODYS}Slurm waits for it to boot", Repair.RELEASE,
    ),
    "Slurm still expects it": (
        lambda place: place.in_slurm("osg1", *AWAY, reason=GROWING), f"{NOBODYS}Slurm expects it", Repair.RELEASE,
    ),
    "Slurm has it down": (
        lambda place: place.in_slurm("osg1", "DOWN", "CLOUD", reason="ResumeTimeout reached"),
        f"{NOBODYS}Slurm has it DOWN+CLOUD: ResumeTimeout reached", Repair.RELEASE,
    ),
    "Slurm has waited in vain": (
        lambda place: place.in_slurm("osg1", *AWAY, reason="ResumeTimeout reached"),
        f"{NOBODYS}Slurm has lost patience with it: ResumeTimeout reached",
        Repair.RELEASE,
    ),
    "an administrator has set it down": (
        lambda place: place.in_slurm("osg1", *AWAY, reason="bad cable"),
        f"{NOBODYS}Slurm has another reason for that: bad cable", None,
    ),
    "Slurm does not know it": (
        lambda place: place.slurm.pop("osg1"), f"{NOBODYS}Slurm's configuration does not have it", None,
    ),
}  # fmt: skip
AT_REST = READY | {f"failed: {key}": row for key, row in FAILED.items()} | OTHERS


@pytest.mark.parametrize(("spoil", "why", "repair"), AT_REST.values(), ids=AT_REST)
def test_what_differs_of_a_node_is_told_and_mended(place, spoil, why, repair):
    spoil(place)
    texts = {text: how for subject, text, how in found(place) if subject == "osg1"}
    assert [how for text, how in texts.items() if text.startswith(why)] == [repair]


@pytest.mark.parametrize(("spoil", "why", "repair"), FREE.values(), ids=FREE)
def test_what_is_left_of_a_free_name_is_told_and_cleared(place, spoil, why, repair):
    place.free()
    assert found(place) == set()
    spoil(place)
    ((subject, text, how),) = found(place)
    assert (subject, text[: len(why)], how) == ("osg1", why, repair)


STILL_THERE = {
    "a machine": (lambda place: place.machine(), Repair.REMOVE),
    "volumes": (lambda place: place.strays.add("osg1"), Repair.REMOVE),
    "a state file": (lambda place: place.saved.update(osg1=7), None),
    "somebody else's machine": (lambda place: place.others.add("osg1"), None),
}


@pytest.mark.parametrize(("put", "repair"), STILL_THERE.values(), ids=STILL_THERE)
def test_slurm_neither_starts_nor_waits_for_a_node_with_something_in_its_way(place, put, repair):
    place.free()
    put(place)
    place.in_slurm("osg1", "IDLE", "CLOUD", "POWERED_DOWN")
    assert {how for _, _, how in found(place)} == {repair, Repair.PARK}
    place.in_slurm("osg1", "MIXED", "CLOUD", "POWERING_UP")
    assert {how for _, _, how in found(place)} == {repair, Repair.RELEASE}


# Doubt: whatever seems to differ, nothing that can't be taken back is done while somebody does not answer.
DOUBTS = {
    "its host does not answer": lambda place: place.silent.update(hv1="hv1 can't be reached"),
    "the provider does not answer": lambda place: setattr(place, "dead", "no route to host"),
    "Slurm does not answer": lambda place: setattr(place, "slurm", "slurmctld on ctl does not answer"),
}
SPOILT = {
    f"{kind}: {key}": row[0] for kind, rows in (("ready", READY), ("failed", FAILED)) for key, row in rows.items()
}
REMOVAL_BEGAN = "failed: its removal was begun"


@pytest.mark.parametrize("doubt", DOUBTS.values(), ids=DOUBTS)
@pytest.mark.parametrize(("case", "spoil"), SPOILT.items(), ids=SPOILT)
def test_doubt_never_kills_a_node(place, case, spoil, doubt):
    spoil(place)
    doubt(place)
    if place.silent or place.dead:
        # What does not answer has no machines to tell of.
        place.machines[:] = [seen for seen in place.machines if not place.dead and seen.host not in place.silent]
    irrevocable = {how for _, _, how in found(place) if how in PATIENT}
    # That its machine is to go was decided before, and Slurm is not asked to prove it gone.
    assert irrevocable == ({Repair.REMOVE} if case == REMOVAL_BEGAN and not (place.silent or place.dead) else set())


@pytest.mark.parametrize("doubt", DOUBTS.values(), ids=DOUBTS)
@pytest.mark.parametrize("case", FREE)
def test_doubt_removes_no_machine_that_is_left_over(place, case, doubt):
    place.free()
    FREE[case][0](place)
    doubt(place)
    assert {how for _, _, how in found(place) if how in PATIENT} == set()


def test_a_host_that_does_not_answer_makes_its_nodes_unknown_and_no_others(place):
    place.nodes["osg2"] = dataclasses.replace(place.nodes["osg1"], name="osg2", host="hv2", address="10.77.0.52")
    place.in_slurm("osg2", *UP)
    place.keys.add("osg2")
    place.dns.add("osg2")
    place.gone()
    place.machine("hv1")
    place.silent["hv2"] = "hv2 can't be reached: silent for 5 s"
    assert found(place) == {
        ("hv2", "does not answer: hv2 can't be reached: silent for 5 s", None),
        ("osg2", "its machine is unknown: hv2 can't be reached: silent for 5 s", None),
    }


def test_of_several_providers_one_that_does_not_answer_may_have_the_nodes_host(place):
    lose(place)
    look = place.look()
    inventory = Inventory((), {}, {"lab": "no route to the hosts"})
    look = dataclasses.replace(
        look, providers={"lab, cloud": inventory}, provider_of=dict.fromkeys(place.site.pools, "lab, cloud")
    )
    assert {each.repair for each in compare(look)} <= {None}
    assert look.doubt("osg", "hv1") == look.doubt("osg", "lab") == look.doubt("osg") == "no route to the hosts"
    assert look.doubt("osg", "cloud") == ""


def test_a_node_that_an_operation_holds_is_left_to_it(place):
    place.node(state=State.BOOTING, operation=7)
    lose(place)
    assert found(place) == set()


def test_a_node_that_changed_while_others_were_asked_is_left_for_the_next_look(place):
    lose(place)
    place.changed.add("osg1")
    assert found(place) == set()


def test_a_machine_without_a_pool_is_told_and_left(place):
    place.machines.append(Seen("web1", "hv2", PowerState.RUNNING))
    assert found(place) == {("web1", "a machine of this cluster running on hv2, and no pool has its name", None)}


def test_volumes_of_this_cluster_without_a_pool_are_told_and_left(place):
    place.strays.add("web1")
    assert found(place) == {("web1", "volumes of this cluster without a machine, and no pool has its name", None)}


def test_volumes_of_a_node_that_is_not_free_are_its_own(place):
    place.strays.add("osg1")
    for state in State:
        place.node(state=state, reason="a test")
        assert not {each for each in found(place) if "volumes" in each[1]}


def test_a_key_of_no_pool_is_nobodys_business(place):
    place.keys |= {"login1", "ns.example.org"}
    assert found(place) == set()


SLURM = {
    ("IDLE", "CLOUD"): "",
    ("ALLOCATED", "CLOUD"): "",
    ("IDLE", "CLOUD", "POWERED_DOWN", "NOT_RESPONDING"): "Slurm has given it up, and its slurmd does not answer",
    ("UNKNOWN", "CLOUD", "NOT_RESPONDING"): "its slurmd does not answer",
    ("UNKNOWN", "CLOUD"): "Slurm has not heard of it since slurmctld started",
    ("IDLE", "CLOUD", "INVALID_REG"): "Slurm refuses its registration: less memory or CPUs than configured",
    ("IDLE", "CLOUD", "COMPLETING"): "",
    ("IDLE", "CLOUD", "POWERING_UP"): "Slurm waits for it to boot",
    ("IDLE", "CLOUD", "POWERING_DOWN"): "Slurm is giving it up",
    ("DOWN", "CLOUD"): "it is down in Slurm",
    ("ERROR", "CLOUD"): "Slurm has met an error of it",
    ("IDLE", "CLOUD", "FAIL"): "it is marked as failing",
    ("DOWN", "CLOUD", "REBOOT_ISSUED"): "it is down in Slurm",
    ("IDLE", "CLOUD", "REBOOT_ISSUED"): "it reboots for Slurm",
    ("IDLE", "CLOUD", "POWER_DOWN"): "Slurm is about to give it up",
    ("ALLOCATED", "CLOUD", "POWER_DRAIN"): "Slurm gives it up when its jobs have ended",
    ("IDLE", "CLOUD", "DRAIN"): "it is drained",
    ("IDLE", "CLOUD", "DRAIN", "MAINTENANCE"): "it is drained",
    ("IDLE", "CLOUD", "MAINTENANCE"): "it is reserved for maintenance",
    ("IDLE", "CLOUD", "RESERVED"): "",
}


@pytest.mark.parametrize(("states", "why"), SLURM.items(), ids=["+".join(states) for states in SLURM])
def test_every_state_in_which_slurm_does_not_use_a_node_has_words(place, states, why):
    place.in_slurm("osg1", *states, reason="")
    node = place.slurm["osg1"]
    assert explain(node) == (f"{why} ({node.state})" if why else "")
