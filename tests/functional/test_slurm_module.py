"""The execution module slurm on a real minion that has no Slurm: what can be told without it, and clear errors."""

import pytest


@pytest.fixture
def call(minion):
    def call(*argv):
        return minion.salt_call_cli().run("--retcode-passthrough", *argv)

    return call


def test_the_configuration_can_be_seen_without_slurm(call):
    files = call("slurm.render_config").data
    assert set(files) == {"slurm.conf", "cgroup.conf"}
    assert "\nClusterName=lab\n" in files["slurm.conf"]  # pillar's values, not what Salt masks them with
    assert "\nNodeName=vn[001-016] NodeAddr=10.77.0.[101-116] " in files["slurm.conf"]


@pytest.mark.parametrize(
    "argv",
    [
        ("slurm.ping",),
        ("slurm.nodes",),
        ("slurm.jobs",),
        ("slurm.drain", "hv1", "why"),
        ("slurm.cancel", "4711"),
        ("slurm.suspend_jobs", "4711", "4712_3"),
        ("slurm.resume_jobs", "4711_[2-4]"),
    ],
)
def test_without_slurm_nothing_is_pretended(call, argv):
    done = call(*argv)
    assert done.returncode != 0
    assert "can't be run here: No such file or directory" in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("slurm.cancel",), "expected one or more job ids"),
        (("slurm.cancel", "all"), "expected one or more job ids"),
        (("slurm.requeue", "0"), "expected one or more job ids"),
        (("slurm.suspend_jobs",), "expected one or more job ids"),
        (("slurm.suspend_jobs", "4711_"), "expected one or more job ids"),
        (("slurm.resume_jobs", "4711_3,4712"), "expected one or more job ids"),
        (("slurm.resume_jobs", "4711", "timeout=soon"), "timeout: expected seconds"),
        (("slurm.drain", "hv1[", "why"), "is not a hostlist"),
        (("slurm.nodes", "@all"), "is not a hostlist"),
    ],
)
def test_a_bad_argument_is_told_before_slurm_is_asked(call, argv, message):
    done = call(*argv)
    assert done.returncode != 0
    assert message in done.stderr + done.stdout
