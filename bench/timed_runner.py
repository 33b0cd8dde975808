"""
Call a runner and print its seconds and its answer, without the start of salt-run: run on the controller, by suspend.py.
"""

import json
import sys
import time

import salt.config
import salt.runner

client = salt.runner.RunnerClient(salt.config.master_config("/etc/salt/master"))
client.cmd("elastic.pools", print_event=False)  # everything is imported now
begun = time.monotonic()
answer = client.cmd(sys.argv[1], sys.argv[2:], print_event=False)
print(json.dumps({"seconds": time.monotonic() - begun, "answer": answer}))
