"""
Call runners on the controller for tests, each in a child of a process that has loaded Salt.

A salt-run takes a second and a half of CPU before it begins, and tests call hundreds. What salt-run itself adds, exit
status and output, is tested with salt-run. A line of standard input is a JSON list: seconds, function, arguments as on
the command line. The answer is one line: ``{"answer": ..., "progress": "..."}``.
"""

import json
import os
import signal
import sys
import tempfile

import salt.config
import salt.loader
import salt.pillar
import salt.runner

CONFIG = "/etc/salt/master"


def load():
    """Have everything imported that a runner needs."""
    opts = salt.config.master_config(CONFIG)
    return salt.loader.runner(opts, utils=salt.loader.utils(opts))["elastic.pools"]


def call(seconds, function, *arguments):
    """What a runner answers, and its lines of progress."""
    with tempfile.TemporaryFile("w+") as answer, tempfile.TemporaryFile("w+") as progress:
        if (pid := os.fork()) == 0:
            os.dup2(progress.fileno(), 2)
            signal.alarm(seconds)
            client = salt.runner.RunnerClient(salt.config.master_config(CONFIG))
            json.dump(client.cmd(function, arguments, print_event=False), answer)
            answer.flush()
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        answer.seek(0)
        progress.seek(0)
        said = json.load(answer) if status == 0 else {"error": f"the runner ended with {status}"}
        return {"answer": said, "progress": progress.read()}


if __name__ == "__main__":
    sys.argv[0] = "salt-run"  # in whose place it is: progress is told, files may be written, root asks
    load()
    for line in sys.stdin:
        print(json.dumps(call(*json.loads(line))), flush=True)
