"""The configuration that the README gives for a real site does what the README says."""

import json
import time

import salt.config


def test_salt_cloud_finds_providers_and_profiles(readme, tmp_path):
    (tmp_path / "cloud").write_text(json.dumps(readme["cloud"]))
    opts = salt.config.cloud_config(str(tmp_path / "cloud"))
    assert set(opts["providers"]) == {"lab", "engage1", "kaizen"}
    assert {"virtual", "stock", "virtual-engage1", "virtual-kaizen"} <= opts["profiles"].keys()


def test_a_minion_that_starts_makes_the_engine_look(master, minion, event_listener):
    before = time.time()
    sent = minion.salt_call_cli().run("event.fire_master", "{}", f"salt/minion/{minion.id}/start")
    assert sent.data is True
    nudge = (master.id, "saltmarsh/nudge")
    seen = event_listener.wait_for_events([nudge], after_time=before, timeout=60)
    assert seen.found_all_events
    assert {tuple(event.data["nodes"]) for event in seen} == {(minion.id,)}
