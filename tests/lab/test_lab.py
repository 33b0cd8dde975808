"""The lab's own promises."""

import pytest

MACHINES = ["ctl", "hv1", "hv2"]


@pytest.mark.parametrize("name", MACHINES)
def test_a_command_runs_in_the_machine_it_names(lab, name):
    assert lab.exec(name, "hostname").stdout.strip() == name


def test_exec_gives_the_exit_status_of_the_command(lab):
    assert lab.exec("ctl", "sh", "-c", "exit 7", check=False).returncode == 7


def test_exec_passes_arguments_as_they_are(lab):
    argument = "a  b'c\"d$HOME;*"
    assert lab.exec("ctl", "printf", "%s", argument).stdout == argument


@pytest.mark.parametrize("name", ["", "nobody", "vn017", "../ctl"])
def test_an_unknown_machine_is_one_line_that_names_those_that_exist(lab, name):
    done = lab.exec(name, "true", check=False)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert "ctl" in done.stderr
