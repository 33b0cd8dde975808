"""A real salt-master with this checkout in place, a real minion that syncs from it, and Salt's own loaders."""

import json
import re
from pathlib import Path

import pytest
import salt.config
import salt.loader
import yaml

MASTER = "ctl_master"  # the ids that the lab's pillar names
MINION = "ctl"


@pytest.fixture(scope="session")
def salt_factories_config(tmp_path_factory):
    """Everything under pytest's own directory; a busy machine with two cores may take its time."""
    return {"root_dir": tmp_path_factory.mktemp("salt"), "start_timeout": 120}


@pytest.fixture(scope="session")
def pillar_roots(checkout, tmp_path_factory):
    """The lab's pillar, with secrets as a site adds them."""
    site = tmp_path_factory.mktemp("pillar-site")
    secret = site / "secret.sls"
    secret.touch(mode=0o600)
    secret.write_text(json.dumps({"munge": {"key": "bm90IGEgc2VjcmV0IGluIGEgdGVzdA=="}}))
    return [str(checkout / "pillar"), str(site)]


@pytest.fixture(scope="session")
def readme(checkout):
    """The configuration that the README gives for a real site, for this checkout: by file, parsed."""
    text = (checkout / "README.md").read_text().replace("/srv/saltmarsh/", f"{checkout}/")
    found = re.findall(r"^### [^\n]*`(/etc/salt/[^`]+)`\n+```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return {Path(file).name: yaml.safe_load(block) for file, block in found}


@pytest.fixture(scope="session")
def master_settings(readme, pillar_roots):
    """The master's configuration as in the README, except that no engine runs: it would keep its ledger in /var/lib."""
    settings = readme["saltmarsh.conf"] | {"interface": "127.0.0.1", "auto_accept": True}
    settings["pillar_roots"] = {"base": pillar_roots}
    del settings["engines"]
    return settings


@pytest.fixture(scope="session")
def master(salt_factories, master_settings):
    """A running salt-master."""
    with salt_factories.salt_master_daemon(MASTER, overrides=master_settings).started() as daemon:
        yield daemon


@pytest.fixture(scope="session")
def minion(master):
    """A running minion of this master, in sync with it."""
    # pytest-salt-factories gives every minion a second environment, "prod".
    with master.salt_minion_daemon(MINION, overrides={"state_top_saltenv": "base"}).started() as daemon:
        synced = daemon.salt_call_cli().run("saltutil.sync_all")
        assert synced.returncode == 0, synced.stderr
        yield daemon


@pytest.fixture
def master_opts(tmp_path, master_settings):
    """The options of a master that does not run."""
    opts = salt.config.master_config(None)
    opts.update(
        master_settings,
        root_dir=str(tmp_path),
        cachedir=str(tmp_path / "cache"),
        pki_dir=str(tmp_path / "pki"),
        sock_dir=str(tmp_path / "sock"),
        extension_modules=str(tmp_path / "ext"),
        id=MASTER,
        __role="master",
    )
    return opts


@pytest.fixture
def runners(master_opts):
    """Salt's loader of runners, without a daemon."""
    return salt.loader.runner(master_opts, utils=salt.loader.utils(master_opts))
