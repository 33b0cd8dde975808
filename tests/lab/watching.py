"""What can be seen of a grow from outside: events, names in DNS, and files with secrets."""

import json
from contextlib import contextmanager

from elastic import salt_call

_EVENTS = "/root/events.log"
_WATCH_DNS = """
import json, socket, sys, time
wanted, end, seen = sys.argv[1] == "there", time.time() + 150, {}
while len(seen) < len(sys.argv) - 2 and time.time() < end:
    for name in sys.argv[2:]:
        try:
            there = bool(socket.gethostbyname(name))
        except socket.gaierror as err:
            there = None if err.errno == socket.EAI_AGAIN else False
        if there is wanted:
            seen.setdefault(name, time.time())
    time.sleep(0.05)
print(json.dumps(seen))
"""
# Which files written since the machine was set up contain one of the words, as they are or decoded, and their modes.
_SEARCH = """
import base64, json, os, subprocess, sys
places = ["/", "/run", "/tmp", "/dev/shm", "/srv/nodes"]
find = ["find", *places, "-xdev", "-type", "f", "-newer", "/etc/hostname"]
found = {}
for path in subprocess.run(find, capture_output=True, text=True).stdout.splitlines():
    try:
        with open(path, "rb") as file:
            content = file.read()
            mode = os.fstat(file.fileno()).st_mode & 0o777
    except FileNotFoundError:
        continue
    for word in sys.argv[1:]:
        if word.encode() in content or base64.b64decode(word) in content:
            found.setdefault(word, {})[path] = mode
print(json.dumps(found))
"""


@contextmanager
def recorded_events(lab):
    """Record the master's event bus; the value is a function that returns what there was so far, by tag."""
    recorder = lab.start("ctl", "sh", "-c", f"echo $$ > /run/recorder.pid; exec salt-run state.event > {_EVENTS} 2>&1")

    def events():
        by_tag = {}
        for line in lab.exec("ctl", "cat", _EVENTS, check=False).stdout.splitlines():
            tag, tab, data = line.partition("\t")
            if tab:
                by_tag.setdefault(tag, []).append(data)
        return by_tag

    try:
        yield events
    finally:
        lab.exec("ctl", "sh", "-c", "kill $(cat /run/recorder.pid)")
        recorder.communicate()


def forge_hints(lab, name):
    """As a minion that an intruder has: say that another one has started, and nudge the engine directly."""
    forged = [
        {"tag": f"salt/minion/{name}/start", "data": {"id": name}},
        {"tag": "saltmarsh/nudge", "data": {"nodes": [name, 7, None]}},
        {"tag": "saltmarsh/nudge", "data": {"nodes": name}},
    ]
    salt_call(lab, "hv1", "event.fire_master", "{}", "forged", f"preload={json.dumps({'events': forged})}")


def watch_dns(lab, wanted, *names):
    """Begin to watch names on a controller and a host, until they are "there" or "gone"; :func:`seen` has the rest."""
    return {place: lab.start(place, "python3", "-c", _WATCH_DNS, wanted, *names) for place in ("ctl", "hv1")}


def seen(watches):
    """By machine and name, when it was as wanted for the first time, in seconds since the epoch."""
    return {place: json.loads(watch.communicate(timeout=30)[0]) for place, watch in watches.items()}


def files_with(lab, machine, words):
    """By word, the files of a machine that hold it, and their modes."""
    return json.loads(lab.exec(machine, "python3", "-c", _SEARCH, *words).stdout)
