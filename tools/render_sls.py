"""
Render every SLS and every template it manages, as the lab's machines would, and run nothing.

Pillar and states are compiled by Salt itself (``state.show_lowstate``, ``state.show_sls``) for one machine of each
role, with the lab's pillar. Prints what is wrong, and exits with 1 if anything is.
"""

import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path

import salt.config
import salt.minion
import salt.utils.reactor
import yaml
from salt.exceptions import SaltRenderError

CHECKOUT = Path(__file__).resolve().parents[1]
STATES, PILLAR, REACTOR = CHECKOUT / "salt", CHECKOUT / "pillar", CHECKOUT / "reactor"
MINIONS = ("ctl", "hv1", "vn001")
# What a site adds and the repository does not have.
SITE = {
    "secret": {"munge": {"key": "c2VjcmV0"}},
    "access": {"ssh": {"authorized_keys": ["ssh-ed25519 AAAA root@ctl"]}},
}
# Pillar that a site may assign, and the lab does not.
EXAMPLES = {"clouds", "firewall"}
EVENT = {"id": "vn001", "tag": "salt/minion/vn001/start", "data": ""}


def main():
    """Render everything; returns the complaints, one line each."""
    scratch = Path(tempfile.mkdtemp(prefix="render-sls-"))
    try:
        (scratch / "site").mkdir()
        for name, values in SITE.items():
            (scratch / "site" / f"{name}.sls").write_text(json.dumps(values))
        problems = check_pillar_top()
        unreached = {sls_name(path) for path in STATES.rglob("*.sls")} - {"top"}
        minions = {minion_id: salt.minion.SMinion(options(scratch, minion_id)) for minion_id in MINIONS}
        for minion_id, minion in minions.items():
            found, reached = check_machine(minion)
            problems += [f"{minion_id}: {problem}" for problem in found]
            unreached -= reached
        logging.disable(logging.CRITICAL)  # a machine that can't apply one of these is no mistake
        if not problems:  # or else those in a broken highstate would count as unreached
            problems = [problem for name in sorted(unreached) for problem in check_alone(name, minions)]
        logging.disable(logging.NOTSET)
        return problems + check_reactor(scratch)
    finally:
        shutil.rmtree(scratch)


def sls_name(path):
    """The name by which an SLS file under salt/ or pillar/ is included."""
    root = STATES if path.is_relative_to(STATES) else PILLAR
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".init")


def options(scratch, minion_id):
    """The options of a masterless minion of this id, with all it writes in a scratch directory."""
    opts = salt.config.minion_config(None, minion_id=minion_id)
    opts.update(
        file_client="local",
        file_roots={"base": [str(STATES)]},
        pillar_roots={"base": [str(PILLAR), str(scratch / "site")]},
        module_dirs=[str(STATES)],
        top_file_merging_strategy="same",
        log_level="error",
    )
    for key in ("root_dir", "cachedir", "pki_dir", "sock_dir", "extension_modules"):
        opts[key] = str(scratch / minion_id / key)
    return opts


def check_pillar_top():
    """Complaints about pillar files that nobody gets, and about names without a file: ignore_missing hides those."""
    top = yaml.safe_load((PILLAR / "top.sls").read_text())["base"]
    named = {item for items in top.values() for item in items if isinstance(item, str)}
    there = {sls_name(path) for path in PILLAR.rglob("*.sls")} - {"top"} - EXAMPLES
    problems = [f"pillar/top.sls names {name}, which does not exist" for name in sorted(named - there - set(SITE))]
    return problems + [
        f"no minion gets pillar {name}: pillar/top.sls does not name it" for name in sorted(there - named)
    ]


def check_machine(minion):
    """Complaints about a minion's pillar, its highstate and the templates in there; and the names of its SLS."""
    pillar = minion.opts["pillar"]
    if "_errors" in pillar:
        return [f"pillar: {error}" for error in pillar["_errors"]], set()
    low = minion.functions["state.show_lowstate"]()
    wrong = [chunk for chunk in low if not isinstance(chunk, dict)]
    if wrong or not low:
        return [f"highstate: {error}" for error in wrong or ["is empty"]], set()
    problems = [problem for chunk in low for problem in check_template(minion, chunk)]
    return problems, {chunk["__sls__"] for chunk in low}


def check_template(minion, chunk):
    """Complaints about the template of a file.managed state."""
    if (chunk["state"], chunk["fun"]) != ("file", "managed") or "template" not in chunk or "source" not in chunk:
        return []
    call = minion.functions
    source, digest = call["file.source_list"](chunk["source"], "", "base")
    try:
        rendered, _, comment = call["file.get_managed"](
            name=chunk["name"],
            template=chunk["template"],
            source=source,
            source_hash=digest,
            source_hash_name=None,
            user=None,
            group=None,
            mode=None,
            attrs=None,
            saltenv="base",
            context=chunk.get("context", {}),
            defaults=chunk.get("defaults", {}),
        )
    except SaltRenderError as err:
        return [f"{source}: {err}"]
    if rendered:
        Path(rendered).unlink()
    return [f"{source}: {comment}"] if comment else []


def check_alone(name, minions):
    """Complaints about an SLS that is in nobody's highstate: some machine has to be able to apply it."""
    problems = []
    for minion_id, minion in minions.items():
        done = minion.functions["state.show_sls"](name)
        if isinstance(done, dict):
            return []
        problems += [f"SLS {name}, in no highstate, on {minion_id}: {error}" for error in done]
    return problems


def check_reactor(scratch):
    """Complaints about the files of reactor/."""
    opts = salt.config.master_config(None)
    opts.update(options(scratch, "ctl_master"), reactor=[], __role="master")
    reactor = salt.utils.reactor.Reactor(opts)
    return [
        f"reactor/{path.name}: gives no reaction, Salt's log says why"
        for path in sorted(REACTOR.glob("*.sls"))
        if not reactor.reactions(EVENT["tag"], EVENT, [str(path)])
    ]


if __name__ == "__main__":
    complaints = main()
    for complaint in complaints:
        sys.stdout.write(f"{complaint}\n")
    sys.exit(bool(complaints))
