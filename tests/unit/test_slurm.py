"""
The seam to Slurm's commands, with what the commands of Slurm 24.11.5 really said (slurm_24_11/).

The commands are programs on PATH that say it again; the seam runs them as it runs the real ones.
"""

import json
import pwd
import sys
from pathlib import Path

import pytest

from saltmarsh import slurm, slurmcommand
from saltmarsh.errors import SlurmError, Unreachable
from saltmarsh.pools import Lease

RECORDED = Path(__file__).parent / "slurm_24_11"
AWAY = "Unable to contact slurm controller (connect failure)"

PROGRAM = """#!{python} -IS
import json, pathlib, sys
here = pathlib.Path(__file__).parent
argv = [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
with (here / "asked").open("a") as asked:
    print(json.dumps(argv), file=asked)
for words, stdout, stderr, status in reversed(json.loads((here / "answers").read_text())):
    if argv[: len(words)] == words:
        print(stdout, end="")
        print(stderr, end="", file=sys.stderr)
        sys.exit(status)
sys.exit(f"not recorded: {{argv}}")
"""


class Commands:
    """Slurm's commands with answers."""

    def __init__(self, directory):
        self.directory = directory
        self.answers = []
        for name in ("scontrol", "squeue", "scancel", "sbatch"):
            (directory / name).write_text(PROGRAM.format(python=sys.executable))
            (directory / name).chmod(0o755)

    def say(self, command, stdout="", stderr="", status=0):
        """Let a command that begins with these words say this; the latest counts."""
        self.answers.append([command.split(), stdout, stderr, status])
        (self.directory / "answers").write_text(json.dumps(self.answers))

    @property
    def asked(self):
        """The command lines so far."""
        asked = self.directory / "asked"
        return [json.loads(line) for line in asked.read_text().splitlines()] if asked.exists() else []

    @property
    def updates(self):
        """What nodes were told."""
        return [argv[2:] for argv in self.asked if argv[:2] == ["scontrol", "update"]]


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """A slurmctld that is up, with nodes and jobs as recorded."""
    monkeypatch.setenv("PATH", str(tmp_path))
    commands = Commands(tmp_path)
    commands.say("scontrol ping --json", (RECORDED / "ping_up.json").read_text())
    commands.say("scontrol show nodes", (RECORDED / "show_nodes.json").read_text())
    commands.say("squeue --json", (RECORDED / "squeue.json").read_text())
    commands.say("scontrol update")
    return commands


def slurmctld_is_away(commands):
    """As recorded with slurmctld stopped: commands fail, and ping says so with status 0."""
    ping = json.loads((RECORDED / "ping_up.json").read_text())
    ping["pings"][0] |= {"pinged": "DOWN", "responding": False}
    commands.say("scontrol", stderr=f"slurm_load error: {AWAY}\n", status=1)
    commands.say("squeue", stderr=f"slurm_load_jobs error: {AWAY}\n", status=1)
    commands.say("scancel", stderr=f"scancel: error: {AWAY}\n", status=1)
    commands.say("scontrol ping --json", json.dumps(ping))


EVERY_CALL = {
    "ping": slurm.ping,
    "nodes": slurm.nodes,
    "jobs": slurm.jobs,
    "park": lambda: slurm.park("vn001"),
    "expect": lambda: slurm.expect({"vn007": "10.77.0.107"}),
    "drain": lambda: slurm.drain("vn001", "why"),
    "undrain": lambda: slurm.undrain("vn001"),
    "down": lambda: slurm.down("vn001", "why"),
    "release": lambda: slurm.release({"vn001": "10.77.0.101"}, 0),
    "set_addresses": lambda: slurm.set_addresses({"vn001": "10.77.0.101"}),
    "cancel_jobs": lambda: slurm.cancel_jobs([9]),
    "requeue_jobs": lambda: slurm.requeue_jobs([9]),
    "suspend_jobs": lambda: slurm.suspend_jobs([9]),
    "resume_jobs": lambda: slurm.resume_jobs([9], 60),
    "reconfigure": slurm.reconfigure,
    "is_config_current": slurm.is_config_current,
}


@pytest.mark.parametrize("call", EVERY_CALL.values(), ids=EVERY_CALL)
def test_no_call_takes_silence_for_an_answer(commands, call):
    slurmctld_is_away(commands)
    with pytest.raises(Unreachable, match="slurmctld on ctl does not answer"):
        call()


@pytest.mark.parametrize("call", EVERY_CALL.values(), ids=EVERY_CALL)
def test_no_call_takes_a_missing_command_for_an_answer(tmp_path, monkeypatch, call):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unreachable, match="can't be run here: No such file"):
        call()


@pytest.mark.parametrize("call", EVERY_CALL.values(), ids=EVERY_CALL)
def test_no_call_takes_a_machine_without_slurm_conf_for_an_answer(commands, call):
    """As recorded on a machine without /etc/slurm/slurm.conf."""
    said = "scontrol: fatal: Could not establish a configuration source\n"
    for command in ("scontrol", "squeue", "scancel", "scontrol ping --json"):
        commands.say(command, stderr=said, status=1)
    with pytest.raises(Unreachable, match="Could not establish a configuration source"):
        call()


def test_a_command_that_hangs_is_no_answer(commands, monkeypatch):
    monkeypatch.setattr(slurmcommand, "TIMEOUT", 0.2)
    (commands.directory / "squeue").write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    with pytest.raises(Unreachable, match=r"squeue --json got no answer from slurmctld within 0\.2 s"):
        slurm.jobs()


def test_a_refusal_says_what_slurm_says(commands):
    commands.say("scontrol update", stderr="slurm_update error: Invalid node name specified\n", status=1)
    with pytest.raises(SlurmError, match=r"^scontrol update failed: slurm_update error: Invalid node name specified$"):
        slurm.drain("nosuch", "why")


def test_an_answer_that_is_no_json_is_an_error(commands):
    commands.say("squeue --json", "squeue: unrecognized option '--json'\n")
    with pytest.raises(SlurmError, match="squeue --json gave no JSON"):
        slurm.jobs()


def test_nodes_are_what_slurmctld_says(commands):
    nodes = slurm.nodes()
    assert list(nodes) == ["hv1", "vn001", "vn004", "vn007"]
    assert nodes["vn007"] == slurm.SlurmNode(
        name="vn007",
        states=frozenset({"DOWN", "CLOUD", "POWERED_DOWN"}),
        reason="not grown",
        address="10.77.0.107",
        partitions=("virtual",),
        features=("virtual", "node", "vm"),
        cpus=1,
        memory=185,
        slurmd_start=0,
    )
    assert nodes["vn001"].slurmd_start > 1_700_000_000


@pytest.mark.parametrize(
    ("states", "absent", "startable", "registered"),
    [
        ("DOWN CLOUD POWERED_DOWN", True, False, False),
        ("IDLE CLOUD POWERED_DOWN", False, True, False),
        ("IDLE CLOUD POWERED_DOWN NOT_RESPONDING", False, True, False),
        ("DOWN CLOUD POWERING_DOWN", False, False, False),
        ("DOWN CLOUD POWERING_UP NOT_RESPONDING", False, False, False),
        ("IDLE CLOUD POWER_DOWN", False, False, False),
        ("DOWN CLOUD NOT_RESPONDING", False, False, False),
        ("UNKNOWN", False, False, False),
        ("IDLE CLOUD", False, False, True),
        ("ALLOCATED CLOUD", False, False, True),
        ("MIXED CLOUD COMPLETING", False, False, True),
        ("ALLOCATED CLOUD NOT_RESPONDING", False, False, False),
        ("IDLE CLOUD DRAIN", False, False, True),
        ("IDLE CLOUD DRAIN INVALID_REG", False, False, False),
    ],
)
def test_states_say_whether_a_node_is_there(commands, states, absent, startable, registered):
    shown = json.loads((RECORDED / "show_nodes.json").read_text())
    shown["nodes"] = [shown["nodes"][1] | {"state": states.split()}]
    commands.say("scontrol show nodes", json.dumps(shown))
    node = slurm.nodes()["vn001"]
    assert (node.absent, node.startable, node.registered) == (absent, startable, registered)
    assert set(node.state.split("+")) == set(states.split())
    assert node.state.startswith(states.split()[0])


def test_jobs_are_what_slurmctld_says(commands):
    assert [(job.id, set(job.states), str(job.nodes), job.reason) for job in slurm.jobs()] == [
        (9, {"RUNNING"}, "vn001", "None"),
        (10, {"RUNNING"}, "vn002", "None"),
        (11, {"PENDING"}, "", "Resources"),
    ]


def squeue(*changes):
    """What squeue says of jobs that differ from the first recorded one by this."""
    recorded = json.loads((RECORDED / "squeue.json").read_text())
    return json.dumps(recorded | {"jobs": [recorded["jobs"][0] | change for change in changes]})


def number(value):
    return {"set": value is not None, "infinite": False, "number": value or 0}


@pytest.mark.parametrize(
    ("job", "handle"),
    [
        ({"job_id": 9}, "9"),
        ({"job_id": 4, "array_job_id": number(3), "array_task_id": number(0)}, "3_0"),
        ({"job_id": 3, "array_job_id": number(3), "array_task_id": number(4)}, "3_4"),
        (
            {
                "job_id": 3,
                "array_job_id": number(3),
                "array_task_id": number(None),
                "array_task_string": "3-4%2",
                "job_state": ["PENDING"],
            },
            "3_[3-4]",
        ),
        ({"job_id": 9, "het_job_id": number(9), "het_job_offset": number(0)}, "9"),
        ({"job_id": 10, "het_job_id": number(9), "het_job_offset": number(1)}, "9"),
    ],
)
def test_a_handle_names_one_job_and_no_other(commands, job, handle):
    """As recorded: `sbatch --array=0-4` is 3_0 to 3_4, the base of which is also its last job."""
    commands.say("squeue --json", squeue(job))
    assert [job.handle for job in slurm.jobs()] == [handle]


def refuse(commands, verb, message):
    commands.say(f"scontrol {verb}", stderr=f"{message}\n", status=1)


# What scontrol said of a job that is unknown, has ended, and pends. Of one that is suspended already it says nothing.
UNKNOWN = "Unexpected message received for job 999"
ENDED = "Job/step already completing or completed for job 999"
PENDING = "Job is pending execution for job 11"


@pytest.mark.parametrize(("message", "left"), [(UNKNOWN, []), (ENDED, [{"job_state": ["CANCELLED", "COMPLETING"]}])])
def test_a_job_that_has_ended_need_not_be_suspended(commands, message, left):
    refuse(commands, "suspend", message)
    commands.say("squeue --json", squeue(*left))
    slurm.suspend_jobs(["9"])


def test_jobs_are_suspended_with_one_request(commands):
    commands.say("scontrol suspend")
    slurm.suspend_jobs(["9", "3_1"])
    assert commands.asked == [["scontrol", "suspend", "9,3_1"]]


@pytest.mark.parametrize("handle", ["11", 11], ids=["handle", "id"])
def test_a_job_that_goes_on_although_it_was_to_be_suspended_is_named(commands, handle):
    refuse(commands, "suspend", PENDING)
    with pytest.raises(
        SlurmError, match=r"^not suspended: job 11 \(PENDING\): scontrol suspend failed: Job is pending"
    ):
        slurm.suspend_jobs(["999", handle])


def test_of_jobs_that_could_not_be_suspended_only_those_that_go_on_are_named(commands):
    refuse(commands, "suspend", UNKNOWN)
    commands.say("squeue --json", squeue({"job_id": 9, "job_state": ["SUSPENDED"]}, {"job_id": 10}, {"job_id": 11}))
    with pytest.raises(SlurmError, match=r"^not suspended: job 10 \(RUNNING\): "):
        slurm.suspend_jobs(["9", "10"])


@pytest.mark.parametrize(("message", "left"), [(UNKNOWN, []), ("Job is not suspended for job 9", [{"job_id": 9}])])
def test_a_job_that_has_ended_or_runs_need_not_be_resumed(commands, message, left):
    refuse(commands, "resume", message)
    commands.say("squeue --json", squeue(*left))
    slurm.resume_jobs(["9"], 60)
    assert len([argv for argv in commands.asked if argv[1] == "resume"]) == 1


def test_a_job_whose_node_slurmctld_has_not_heard_of_yet_is_resumed_later(commands):
    refuse(commands, "resume", "Requested nodes are busy or in an invalid state for job 9")
    commands.say("scontrol resume 3_1")
    commands.say(
        "squeue --json", squeue({"array_job_id": number(3), "array_task_id": number(1), "job_state": ["SUSPENDED"]})
    )
    slurm.resume_jobs(["9", "3_1"], 60)
    assert [argv[2] for argv in commands.asked if argv[1] == "resume"] == ["9,3_1", "3_1"]


def test_a_job_that_can_t_be_resumed_in_time_is_named(commands):
    refuse(commands, "resume", "Invalid node state specified for job 9")
    commands.say("squeue --json", squeue({"job_id": 9, "job_state": ["SUSPENDED"]}))
    with pytest.raises(
        SlurmError, match=r"^not resumed: job 9 \(SUSPENDED\): scontrol resume failed: Invalid node state"
    ):
        slurm.resume_jobs(["9"], 0)


def test_jobs_of_nodes_are_the_ones_that_hold_them(commands):
    assert [job.id for job in slurm.jobs("vn[002-016]")] == [10]
    assert slurm.jobs(["hv1"]) == ()


def test_many_nodes_are_one_request(commands):
    slurm.drain([f"vn{number:03d}" for number in range(1, 1000)], "why")
    assert commands.updates == [["nodename=vn[001-999]", "state=DRAIN", "reason=why"]]


def test_ten_thousand_nodes_are_three_requests_that_fit_into_an_argument(commands):
    names = [f"vn{number:05d}" for number in range(0, 20_000, 2)]  # no two of them make a range
    slurm.down(names, "why")
    assert [len(update[0].split(",")) for update in commands.updates] == [4000, 4000, 2000]
    assert max(len(update[0]) for update in commands.updates) < 131_072


def test_no_nodes_and_no_jobs_are_no_request(commands):
    slurm.drain([], "why")
    slurm.cancel_jobs([])
    slurm.requeue_jobs([])
    slurm.suspend_jobs([])
    slurm.resume_jobs([], 1)
    slurm.release({}, 1)
    assert slurm.park([]) == ()
    assert commands.asked == []


def test_a_reason_stays_one_argument(commands):
    slurm.drain("vn001", "new disk; rm -rf $HOME")
    assert commands.updates == [["nodename=vn001", "state=DRAIN", "reason=new disk; rm -rf $HOME"]]


def test_expected_nodes_get_their_addresses_in_order(commands):
    shown = json.loads((RECORDED / "show_nodes.json").read_text())
    absent = shown["nodes"][3]
    shown["nodes"] = [absent | {"name": name} for name in ("vn007", "vn008", "vn010")]
    commands.say("scontrol show nodes", json.dumps(shown))
    slurm.expect({"vn010": "10.77.0.120", "vn007": "10.77.0.107", "vn008": "10.77.0.108"})
    assert commands.updates == [
        ["nodename=vn010,vn[007-008]", "nodeaddr=10.77.0.120,10.77.0.[107-108]", "state=DOWN", "reason=elastic.grow"]
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vn099", "vn099 is not in Slurm's configuration: run slurm.push_config"),
        ("vn001", r"vn001 ALLOCATED\+CLOUD.*: expected DOWN\+CLOUD\+POWERED_DOWN"),
        ("vn004", r"vn004 DOWN\+CLOUD\+NOT_RESPONDING \(growing : Not responding\)"),
    ],
)
def test_only_a_node_that_is_not_there_can_be_expected(commands, name, message):
    shown = json.loads((RECORDED / "show_nodes.json").read_text())
    shown["nodes"] = [node for node in shown["nodes"] if node["name"] == name]
    commands.say("scontrol show nodes", json.dumps(shown))
    with pytest.raises(SlurmError, match=message):
        slurm.expect({name: "10.77.0.199"})
    assert commands.updates == []


def test_only_addresses_that_differ_are_set(commands):
    shown = json.loads((RECORDED / "show_nodes.json").read_text())
    shown["nodes"] = [node for node in shown["nodes"] if node["name"] in ("vn001", "vn007")]
    commands.say("scontrol show nodes", json.dumps(shown))
    assert slurm.set_addresses({"vn001": "10.77.0.101", "vn007": "10.77.0.207"}) == ("vn007",)
    assert commands.updates == [["nodename=vn007", "nodeaddr=10.77.0.207"]]


@pytest.mark.parametrize(
    ("line", "current"),
    [("HASH_VAL                = Match", True), ("HASH_VAL = Different Ours=0x73710d51 Slurmctld=0x74ac212c", False)],
)
def test_the_hash_tells_whether_the_files_are_what_slurmctld_runs_with(commands, line, current):
    config = (RECORDED / "show_config.txt").read_text()
    commands.say("scontrol show config", config.replace("HASH_VAL                = Match", line))
    assert slurm.is_config_current() is current


def test_a_configuration_without_a_hash_is_in_doubt(commands):
    commands.say("scontrol show config", "Configuration data as of 2026-11-21T05:50:16\n")
    with pytest.raises(SlurmError, match="no HASH_VAL"):
        slurm.is_config_current()


def test_a_lease_is_a_job_that_sleeps_as_a_user_of_its_own_and_can_be_put_back_into_the_queue(commands):
    commands.say("sbatch", "17;lab\n")
    assert slurm.submit_lease("vn001", Lease(user="nobody"), 2, 512) == 17
    [asked] = [argv for argv in commands.asked if argv[0] == "sbatch"]
    group = pwd.getpwnam("nobody").pw_gid
    assert {"--uid=nobody", f"--gid={group}", "--partition=lease", "--account=lease", "--requeue"} <= set(asked)
    assert {"--job-name=vn001", "--nodes=1", "--cpus-per-task=2", "--mem=512"} <= set(asked)


def test_a_lease_of_a_user_that_is_not_there_is_refused(commands):
    with pytest.raises(SlurmError) as raised:
        slurm.submit_lease("vn001", Lease(user="osg-pilot"), 2, 512)
    assert str(raised.value) == "elastic:lease:user: there is no user osg-pilot here"


def test_a_lease_can_be_held_and_be_let_start(commands):
    slurm.start_now(17)
    commands.say("scontrol hold")
    slurm.hold_jobs([17, 18])
    assert commands.asked == [
        ["scontrol", "update", "jobid=17", "starttime=now"],
        ["scontrol", "hold", "17,18"],
    ]
