"""A controller with the API, as the state salt.api sets it up, its clients, and what is said on its bus."""

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import salt.config
import salt.utils.event
import yaml
from pytestshellutils.utils.ports import get_unused_localhost_port

BIN = Path(sys.executable).parent


class Site:
    """A controller's files, and its daemons."""

    def __init__(self, directory, checkout):
        self.directory = directory
        self.checkout = checkout
        self.upper = directory / "upper"
        self.etc = self.upper / "salt"
        self.users = self.etc / "api"
        self.port = get_unused_localhost_port()
        self.log = (directory / "log").open("ab")
        for part in (self.upper, directory / "work", directory / "pillar", directory / "config"):
            part.mkdir()
        self.write_pillar()

    def write_pillar(self, **api):
        """Write what is this site's own in pillar, with other values for the API."""
        here = {
            "site": {"controller": {"name": "ctl", "address": "127.0.0.1"}},
            "salt": {"master": {"checkout": str(self.checkout), "site_pillar": str(self.directory / "pillar")}},
            "elastic": {"state_dir": str(self.directory / "state")},
            "munge": {"key": "bm90IGEgc2VjcmV0IGluIGEgdGVzdA=="},
        }
        secret = self.directory / "pillar/secret.sls"
        secret.touch(mode=0o600)
        secret.write_text(json.dumps(here))
        example = yaml.safe_load((self.checkout / "pillar/api.sls").read_text())["api"]
        own = {"address": "127.0.0.1", "port": self.port, "names": ["localhost"]}
        (self.directory / "pillar/api.sls").write_text(json.dumps({"api": example | own | api}))

    def apply(self, state):
        """Apply a state as the controller's minion, with a directory of the test over /etc; returns its chunks."""
        root = self.directory / "call"
        root.mkdir(exist_ok=True)
        minion = {
            "id": "ctl",
            "root_dir": str(root),
            "file_client": "local",
            "file_roots": {"base": [str(self.checkout / "salt")]},
            "pillar_roots": {"base": [str(self.directory / "pillar"), str(self.checkout / "pillar")]},
            "top_file_merging_strategy": "same",
        }
        (root / "minion").write_text(json.dumps(minion))
        call = [BIN / "salt-call", "-c", root, "--local", "--out=json"]
        subprocess.run([*call, "saltutil.sync_all"], stdout=self.log, stderr=self.log, check=True)
        overlay = f"lowerdir=/etc,upperdir={self.upper},workdir={self.directory / 'work'}"
        script = 'mount --make-rprivate / && mount -t overlay etc -o "$0" /etc && exec "$@"'
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, overlay, *map(str, call), "state.apply", state],
            stdout=subprocess.PIPE, stderr=self.log, text=True, check=False,
        )  # fmt: skip
        chunks = json.loads(done.stdout)["local"]
        assert isinstance(chunks, dict), chunks
        return list(chunks.values())

    def password(self, user):
        """A user's password, as the administrator finds it."""
        return (self.users / f"{user}.password").read_text().strip()

    def configure(self):
        """The daemons' configuration: what the state has written, where it is here. No engine runs."""
        text = (self.etc / "master.d/saltmarsh.conf").read_text().replace("/etc/salt/", f"{self.etc}/")
        settings = yaml.safe_load(text)
        del settings["engines"]
        ports = {name: get_unused_localhost_port(use_cache=True) for name in ("publish_port", "ret_port")}
        settings |= {"id": "ctl_master", "root_dir": str(self.directory / "root"), **ports, "log_level_logfile": "info"}
        (self.directory / "config/master").write_text(json.dumps(settings))
        self.settings = salt.config.client_config(str(self.directory / "config/master"))

    @contextlib.contextmanager
    def running(self, program, port):
        """Run a daemon; it listens."""
        argv = [BIN / program, "-c", self.directory / "config"]
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True
        )
        try:
            end = time.monotonic() + 120
            while not listens(port):
                assert process.poll() is None, f"{program} has ended"
                assert time.monotonic() < end, f"{program} does not listen"
                time.sleep(0.1)
            yield process
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def run(self, *argv):
        """salt-run as root on the controller; returns its answer and exit status."""
        done = subprocess.run(
            [BIN / "salt-run", "-c", self.directory / "config", "--out=json", *argv],
            stdout=subprocess.PIPE, stderr=self.log, text=True, check=False,
        )  # fmt: skip
        return json.loads(done.stdout), done.returncode

    def client(self, port=None):
        """Somebody who has not logged in."""
        return Client(self, port or self.port)

    def trust(self):
        """A client's TLS settings: the site's authority alone, as strictly as Python 3.13 does it by itself."""
        context = ssl.create_default_context(cafile=self.upper / "pki/CA/cacert.pem")
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context


class Answer:
    """What the API has answered."""

    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def value(self):
        """The one value in it."""
        (value,) = json.loads(self.body)["return"]
        return value


class Client:
    """Somebody who calls the API."""

    def __init__(self, site, port):
        self._site = site
        self._port = port
        self.token = None

    def request(self, method, path, body=None, headers=None):
        """Send a request; returns the Answer."""
        connection = http.client.HTTPSConnection("localhost", self._port, context=self._site.trust(), timeout=120)
        sent = {"Accept": "application/json", "Content-Type": "application/json"}
        if self.token is not None:
            sent["X-Auth-Token"] = self.token
        with contextlib.closing(connection):
            connection.request(method, path, body, sent | (headers or {}))
            return Answer(connection.getresponse())

    def post(self, path, value, **headers):
        """Send a value as JSON."""
        return self.request("POST", path, json.dumps(value), headers)

    def login(self, user, password=None):
        """Log in; returns the Answer."""
        password = self._site.password(user) if password is None else password
        answer = self.post("/login", {"username": user, "password": password, "eauth": "file"})
        if answer.status == 200:
            self.token = answer.value["token"]
        return answer

    def call(self, fun, client="runner", **arguments):
        """Call a function of Salt's."""
        return self.post("/", [{"client": client, "fun": fun, "kwarg": arguments}])


class Bus:
    """All events of the master, in order."""

    def __init__(self, settings):
        self._settings = settings
        self._events = []
        self._grown = threading.Condition()
        self._stop = threading.Event()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        assert self._listening.wait(30)
        self._bus = self._open(listen=False)

    def _open(self, listen):
        return salt.utils.event.get_master_event(self._settings, self._settings["sock_dir"], listen=listen)

    def _listen(self):
        with self._open(listen=True) as bus:
            assert bus.connect_pub(timeout=20)
            self._listening.set()
            while not self._stop.is_set():
                event = bus.get_event(wait=0.2, full=True)
                if event:
                    with self._grown:
                        self._events.append(event)
                        self._grown.notify_all()

    def close(self):
        """Stop listening."""
        self._stop.set()
        self._thread.join(20)
        self._bus.destroy()

    def mark(self):
        """How many events there were until now: one is fired, and waited for."""
        tag = f"test/mark/{uuid.uuid4()}"
        end = time.monotonic() + 60
        with self._grown:
            while not any(event["tag"] == tag for event in self._events):
                assert time.monotonic() < end, "the bus is silent"
                self._bus.fire_event({}, tag)
                self._grown.wait(0.5)
            return len(self._events)

    def wait(self, mark, fun):
        """Wait until the master has run a function since a mark."""
        end = time.monotonic() + 60
        while fun not in self.functions_since(mark):
            assert time.monotonic() < end, f"{fun} was not run"

    def since(self, mark):
        """The events after a mark, until now."""
        return [event for event in self._events[mark : self.mark()] if not event["tag"].startswith("test/mark/")]

    def functions_since(self, mark):
        """The functions that the master has run since."""
        found = [event["data"].get("fun") for event in self.since(mark) if event["tag"].endswith("/new")]
        return [name for name in found if name]


def listens(port):
    """Whether somebody listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
