"""
Twenty minutes of a site with real machines, see ``make soak``: whoever acts is killed again and again.

What is done follows from the seed, which is printed; ``SEED=`` gives one, ``MINUTES=`` another time.
"""

import os
import random
import time

from elastic import ask_ledger, assert_free, begin, elastic, have, must, said
from jobs import assert_unbroken, cancel, counted, submit_counter, wait_counts
from saltcloud import wait_for

WORKING, OTHER = "vn001", "vn002"
PATIENCE = 900  # seconds
SERVICES = [("ctl", "salt-master"), ("ctl", "slurmctld"), ("hv1", "libvirtd"), ("hv2", "libvirtd")]
OWNERS = "SELECT DISTINCT pid FROM operations WHERE finished IS NULL AND pid > 0"


def states(lab):
    """All nodes that are there, and their states in the ledger."""
    [rows] = ask_ledger(lab, "SELECT name, state FROM nodes ORDER BY name")
    return dict(rows)


def some_act(lab, dice):
    """A verb that an administrator could ask for now, with its arguments."""
    there = states(lab)
    acts = [["shrink", OTHER] if OTHER in there else ["grow", OTHER]]
    acts += [["suspend", name] for name, state in there.items() if state == "ready"]
    acts += [["resume", name] for name, state in there.items() if state in ("suspended", "failed")]
    return dice.choice(acts)


def kill_one(lab, dice):
    """Kill who holds nodes, or a service, which is started again; says which."""
    if dice.random() < 0.5:
        [owners] = ask_ledger(lab, OWNERS)
        for [pid] in owners:
            lab.exec("ctl", "kill", "-KILL", pid, check=False)  # it may have ended just now
        return f"{len(owners)} that held nodes"
    machine, service = dice.choice(SERVICES)
    killed = main_pid(lab, machine, service)
    lab.exec(machine, "systemctl", "kill", "--kill-whom=main", "--signal=KILL", service)
    wait_for(lambda: main_pid(lab, machine, service) not in ("0", killed), 60, f"{service} on {machine} runs again")
    return f"{service} on {machine}"


def main_pid(lab, machine, service):
    """The process id of a service that should run; it is started if it does not. 0 while it can't be."""
    lab.exec(machine, "systemctl", "start", service, check=False)
    return lab.exec(machine, "systemctl", "show", "--property=MainPID", "--value", service).stdout.strip()


def live(lab, dice, minutes):
    """One act after the other; half of them have somebody killed meanwhile."""
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        verb, *arguments = some_act(lab, dice)
        process = begin(lab, verb, *arguments)
        killed = ""
        if dice.random() < 0.5:
            time.sleep(dice.uniform(0, 15))  # at any moment
            killed = f", killed: {kill_one(lab, dice)}"
        done = said(process, PATIENCE)
        answer = done.answer if done.code else "done"
        print(f"{time.strftime('%T')} {verb} {' '.join(arguments)}{killed}: {answer}", flush=True)
        # Salt itself has one where its event bus is gone.
        assert "/_utils/saltmarsh/" not in done.progress, done.progress


def all_agree(lab):
    """Nothing is under way or to be repaired, and every node is at rest; an administrator sees to failed ones."""
    for name, state in states(lab).items():
        if state == "failed":
            elastic(lab, "resume", name, timeout=PATIENCE)
    found = elastic(lab, "reconcile", "test=True")
    at_rest = set(states(lab).values()) <= {"ready", "suspended"}
    return at_rest and found.code == 0 and not found.answer and ask_ledger(lab, OWNERS) == [[]]


def domains(lab):
    """Every domain of both hosts, running or not."""
    return sorted(
        name for host in ("hv1", "hv2") for name in lab.exec(host, "virsh", "list", "--all", "--name").stdout.split()
    )


def test_after_twenty_minutes_of_whatever_happens_all_agree_and_the_job_has_noticed_nothing(lab):
    seed = int(os.environ.get("SEED", 0)) or random.SystemRandom().randrange(1, 10**6)
    print(f"SEED={seed}")
    have(lab, WORKING)
    number = submit_counter(lab, WORKING)
    live(lab, random.Random(seed), float(os.environ.get("MINUTES", 20)))
    wait_for(lambda: all_agree(lab), PATIENCE, "all agree")
    there = states(lab)
    assert WORKING in there
    if asleep := [name for name, state in there.items() if state == "suspended"]:
        must(lab, "resume", ",".join(asleep))
    assert domains(lab) == sorted(there)
    wait_counts(lab, number, 2)
    assert_unbroken(counted(lab, number))
    cancel(lab, number)
    must(lab, "shrink", ",".join(there))
    assert_free(lab, WORKING, OTHER)
