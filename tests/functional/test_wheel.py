"""The same tree as a pip-installable Salt extension: the wheel alone is enough for Salt to find everything."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

KINDS = ("clouds", "engines", "modules", "netapi", "runners", "states")


def run(*argv, cwd):
    """Run a command far from the checkout, and show all it said if it fails."""
    done = subprocess.run(list(map(str, argv)), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{argv}:\n{done.stdout}{done.stderr}"
    return done.stdout


def stems(directory):
    return {path.stem for path in directory.glob("*.py")}


@pytest.fixture(scope="module")
def away(tmp_path_factory):
    return tmp_path_factory.mktemp("wheel")


@pytest.fixture(scope="module")
def wheel(checkout, away):
    """The wheel, made from the sdist so that the sdist is known to be whole."""
    run(sys.executable, "-m", "build", "--outdir", away / "dist", checkout, cwd=away)
    (found,) = (away / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(checkout, away, wheel):
    """The bin directory of a fresh environment with the locked requirements and the wheel; no checkout in sight."""
    run(sys.executable, "-m", "venv", away / "venv", cwd=away)
    pip = (away / "venv/bin/python", "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "-r", checkout / "requirements/runtime.txt", cwd=away)
    run(*pip, "install", "--no-deps", wheel, cwd=away)
    run(*pip, "check", cwd=away)
    return away / "venv/bin"


@pytest.fixture(scope="module")
def config(away):
    """The configuration of a master and minion that know nothing but where to put their files."""
    directory = away / "etc"
    directory.mkdir()
    for name in ("master", "minion"):
        (directory / name).write_text(json.dumps({"root_dir": str(away / "root"), "id": "wheel"}))
    (away / "root/var/cache/salt/master/proc").mkdir(parents=True)  # which salt-run leaves to the master to make
    return directory


def test_the_wheel_has_every_module_and_the_package(checkout, wheel):
    names = [Path(name) for name in zipfile.ZipFile(wheel).namelist()]
    packed = {kind: {path.stem for path in names if path.parent == Path("saltext/saltmarsh", kind)} for kind in KINDS}
    assert packed == {kind: stems(checkout / f"salt/_{kind}") for kind in KINDS}
    assert {path.stem for path in names if path.parent == Path("saltmarsh")} == stems(
        checkout / "salt/_utils/saltmarsh"
    )
    assert {path.parts[0] for path in names} == {"saltext", "saltmarsh", "saltmarsh-0.1.0.dist-info"}


def test_salt_lists_the_runner_elastic(installed, config, away):
    docs = json.loads(run(installed / "salt-run", "-c", config, "--out=json", "doc.runner", cwd=away))
    assert {"elastic.grow", "elastic.shrink", "elastic.status", "elastic.pools", "elastic.history"} <= docs.keys()


@pytest.mark.parametrize(("kind", "listing"), [("modules", "list_modules"), ("states", "list_state_modules")])
def test_a_minion_lists_the_modules(checkout, installed, config, away, kind, listing):
    listed = run(installed / "salt-call", "-c", config, "--local", "--out=json", f"sys.{listing}", cwd=away)
    # vmstate loads on hosts alone.
    assert stems(checkout / f"salt/_{kind}") - {"vmstate"} <= set(json.loads(listed)["local"])
