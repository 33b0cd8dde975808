"""An OpenStack cloud without machines: its APIs over real sockets on loopback, and the faults it can show."""

import base64
import json
import re
import threading
import time
import uuid
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

NETWORK, IMAGE, FLAVOR, GROUP = "net-1", "image-1", "flavor-1", "group-1"
NO_HOST = "No valid host was found. There are not enough hosts available."
_HEADER = "application/json"
_NOW = "2026-01-01T00:00:00Z"
# The status that an action leads to, and those from which it is allowed.
_ACTIONS = {
    "os-start": ("ACTIVE", {"SHUTOFF"}),
    "os-stop": ("SHUTOFF", {"ACTIVE"}),
    "reboot": ("ACTIVE", {"ACTIVE", "SHUTOFF"}),
    "suspend": ("SUSPENDED", {"ACTIVE"}),
    "resume": ("ACTIVE", {"SUSPENDED"}),
    "pause": ("PAUSED", {"ACTIVE"}),
    "unpause": ("ACTIVE", {"PAUSED"}),
}


class Refused(Exception):
    """An answer that is an error: its status and its body."""

    def __init__(self, status, body, **headers):
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers


class OpenStack:
    """
    One cloud with one project, one network (10.77.0.0/24), one image (``node.qcow2``) and one flavor (``small``).

    ``capacity`` is how many servers its hosts can take, whatever state they are in, as Placement counts; ``quota`` how
    many the project may have, ``page`` how many are listed at once. Servers become ACTIVE at the second look at them,
    or never while ``stuck``. While it is ``giving_up``, an action begins and comes to nothing; while it is
    ``forgetful``, lists miss servers that were just made. ``requests`` counts what was asked, by method and path with
    ids left out; ``microversions`` are those of Nova that were asked for. ``volumes`` and ``routers`` say whether it
    has block storage and floating addresses.

    :param str region: the name of its only region
    """

    def __init__(self, region="RegionOne"):
        self.region = region
        self.capacity = self.quota = self.page = 1000
        self.stuck = self.volumes = self.giving_up = self.forgetful = False
        self.routers = True
        self.requests = Counter()
        self.asked = []
        self.microversions = set()
        self.servers, self.ports, self.addresses, self.disks = {}, {}, {}, {}
        self.image_status = "active"
        self._tokens, self._faults = set(), []
        self._lock = threading.RLock()

    @contextmanager
    def running(self):
        """Serve as long as the block runs."""
        cloud = self

        class Handler(_Handler):
            openstack = cloud

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    @property
    def auth(self):
        """How one logs in."""
        return {
            "auth_url": f"{self.url}/v3",
            "username": "salt",
            "password": "secret",
            "project_name": "demo",
            "user_domain_name": "Default",
            "project_domain_name": "Default",
        }

    @property
    def left(self):
        """How many servers, ports, volumes and floating addresses there are."""
        return tuple(map(len, (self.servers, self.ports, self.disks, self.addresses)))

    def fail(self, method, path, status, body=None, *, times=1000, delay=0.0, after=False, **headers):
        """
        Answer requests with an error.

        :param str method: HTTP's
        :param str path: a regular expression that is found in the path
        :param int status: HTTP's; None to break off the connection, 0 to answer as ever but after ``delay``
        :param dict body: of the answer
        :param int times: how often
        :param bool after: do what was asked, and only then fail
        """
        self._faults.append([times, method, re.compile(path), status, body or {}, delay, after, headers])

    def mend(self):
        """Let there be no more faults."""
        self._faults.clear()

    def expire_tokens(self):
        """Nobody is logged in any more."""
        self._tokens.clear()

    def add_server(self, name, **metadata):
        """A server that somebody made."""
        server = {"id": str(uuid.uuid4()), "name": name, "metadata": metadata, "status": "ACTIVE", "looks": 0}
        self.servers[server["id"]] = server
        return server

    def add_port(self, address):
        """A port that somebody made."""
        port = {"id": str(uuid.uuid4()), "name": "", "description": "", "fixed_ips": [{"ip_address": address}]}
        self.ports[port["id"]] = port
        return port

    def user_data(self, name):
        """What a server was told at boot."""
        (server,) = (each for each in self.servers.values() if each["name"] == name)
        return base64.b64decode(server["user_data"]).decode()

    def answer(self, method, path, query, headers, body):
        """The status, the headers and the body of an answer."""
        if path.rstrip("/") in ("", "/v3", "/compute/v2.1", "/compute", "/network", "/image", "/volume/v3"):
            return 200, {}, self._versions(path)
        if path == "/v3/auth/tokens":
            return self._log_in(body)
        if headers.get("X-Auth-Token") not in self._tokens:
            raise Refused(
                401, {"error": {"code": 401, "message": "The request you have made requires authentication."}}
            )
        _, service, _, kind, *rest = path.split("/")
        handler = getattr(self, f"_{service}_{kind.replace('-', '_')}", None)
        if handler is None or (kind == "floatingips" and not self.routers):
            raise Refused(404, {"message": "The resource could not be found."})
        asked = headers.get("OpenStack-API-Version", "").removeprefix("compute ")
        self.microversions.add(asked)
        with self._lock:
            status, answer = handler(method, rest, query, body)
        return status, {}, answer

    def note(self, method, path):
        """Count a request."""
        anonymous = re.sub(r"/(image|flavor|net|group)-1|/[0-9a-f-]{36}", "/ID", path)
        with self._lock:
            self.requests[f"{method} {anonymous}"] += 1
            self.asked.append(f"{method} {path}")

    def fault(self, method, path, *, after):
        """The fault that a request meets."""
        with self._lock:
            for each in self._faults:
                if each[0] and each[1] == method and each[2].search(path) and each[6] == after:
                    each[0] -= 1
                    return each[3:6] + each[7:]
        return None

    def _versions(self, path):
        if path.startswith("/v3") or path == "/":
            links = [{"rel": "self", "href": f"{self.url}/v3/"}]
            version = {"id": "v3.14", "status": "stable", "links": links}
            return {"version": version} if path.startswith("/v3") else {"versions": {"values": [version]}}
        service = path.split("/")[1]
        number = {"compute": "v2.1", "network": "v2.0", "image": "v2.9", "volume": "v3.0"}[service]
        place = {"compute": "v2.1", "network": "v2.0", "image": "v2", "volume": "v3"}[service]
        version = {
            "id": number,
            "status": "CURRENT",
            "links": [{"rel": "self", "href": f"{self.url}/{service}/{place}/"}],
        }
        if service in ("compute", "volume"):
            version |= {"version": "2.99" if service == "compute" else "3.71", "min_version": number[1:]}
        return {"version": version} if path.count("/") > 1 and path.strip("/") != service else {"versions": [version]}

    def _log_in(self, body):
        user = body["auth"]["identity"]
        secret = user.get("password", {}).get("user", {}).get("password")
        secret = secret or user.get("application_credential", {}).get("secret")
        if secret != "secret":
            raise Refused(
                401, {"error": {"code": 401, "message": "The request you have made requires authentication."}}
            )
        token = uuid.uuid4().hex
        self._tokens.add(token)
        services = {"compute": "compute/v2.1", "network": "network", "image": "image"}
        services |= {"volumev3": "volume/v3"} if self.volumes else {}
        catalog = [
            {
                "type": type_,
                "name": type_,
                "id": type_,
                "endpoints": [
                    {
                        "interface": "public",
                        "region": self.region,
                        "region_id": self.region,
                        "url": f"{self.url}/{place}",
                        "id": type_,
                    }
                ],
            }
            for type_, place in services.items()
        ]
        project = {"id": "p" * 32, "name": "demo", "domain": {"id": "default", "name": "Default"}}
        end = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(time.time() + 3600))
        user = {"id": "u" * 32, "name": "salt", "domain": {"id": "default", "name": "Default"}}
        token_ = {"catalog": catalog, "expires_at": end, "project": project, "user": user, "methods": ["password"]}
        token_ |= {"issued_at": "2026-01-01T00:00:00.000000Z", "roles": [{"id": "r", "name": "member"}]}
        return 201, {"X-Subject-Token": token}, {"token": token_}

    def _compute_servers(self, method, rest, query, body):
        match method, rest:
            case "GET", []:
                return 200, self._page([self._look(server) for server in self.servers.values()], query)
            case "GET", ["detail"]:
                # As seen at a real one: a list tells no fault.
                looks = [self._look(server) | {"fault": None} for server in self.servers.values()]
                looks = [each for each in looks if not (self.forgetful and each["looks"] < 4)]
                return 200, self._page(looks, query)
            case "GET", [id_]:
                return 200, {"server": self._look(self._there(self.servers, id_))}
            case "POST", []:
                return 202, {"server": self._build(body["server"])}
            case "DELETE", [id_]:
                self._there(self.servers, id_)
                del self.servers[id_]
                return 204, None
            case "POST", [id_, "action"]:
                return 202, self._act(self._there(self.servers, id_), next(iter(body)))
            case "PUT", [id_, "metadata"]:
                self._there(self.servers, id_)["metadata"] = body["metadata"]
                return 200, {"metadata": body["metadata"]}
        raise Refused(404, {"itemNotFound": {"code": 404, "message": "Instance could not be found."}})

    def _build(self, wanted):
        if len(self.servers) >= self.quota:
            message = f"Quota exceeded for instances: Requested 1, but already used {len(self.servers)} of {self.quota}"
            raise Refused(403, {"forbidden": {"code": 403, "message": message}})
        server = {"id": str(uuid.uuid4()), "status": "BUILD", "looks": 0, **wanted}
        if len(self.servers) >= self.capacity:
            server |= {"status": "ERROR", "fault": {"code": 500, "message": NO_HOST}}
        self.servers[server["id"]] = server
        return server

    def _look(self, server):
        server["looks"] += 1
        if server["status"] == "BUILD" and server["looks"] > 1 and not self.stuck:
            server["status"] = "ACTIVE"
        flavor = {"original_name": "small", "vcpus": 1, "ram": 512, "disk": 2}
        task = server.pop("task", None)
        return server | {"flavor": flavor, "addresses": {}, "OS-EXT-STS:task_state": task, "updated": _NOW}

    def _act(self, server, action):
        status, allowed = _ACTIONS[action]
        if server["status"] not in allowed:
            message = f"Cannot '{action}' instance {server['id']} while it is in vm_state {server['status'].lower()}"
            raise Refused(409, {"conflictingRequest": {"code": 409, "message": message}})
        if self.giving_up:
            server["task"] = "at work"
        else:
            server["status"] = status

    def _page(self, found, query):
        if "name" in query:
            found = [server for server in found if re.search(query["name"][0], server["name"])]
        ids = [server["id"] for server in found]
        start = ids.index(query["marker"][0]) + 1 if "marker" in query else 0
        page = found[start : start + self.page]
        answer = {"servers": page}
        if found[start + self.page :]:
            link = f"{self.url}/compute/v2.1/servers/detail?marker={page[-1]['id']}"
            answer["servers_links"] = [{"rel": "next", "href": link}]
        return answer

    def _compute_flavors(self, method, rest, query, body):
        flavor = {"id": FLAVOR, "name": "small", "vcpus": 1, "ram": 512, "disk": 2}
        if rest and rest != ["detail"] and rest != [FLAVOR]:
            raise Refused(404, {"itemNotFound": {"code": 404, "message": "Flavor could not be found."}})
        return 200, {"flavor": flavor} if rest == [FLAVOR] else {"flavors": [flavor]}

    def _compute_os_availability_zone(self, method, rest, query, body):
        return 200, {"availabilityZoneInfo": [{"zoneName": "nova", "zoneState": {"available": True}, "hosts": None}]}

    def _compute_os_server_groups(self, method, rest, query, body):
        group = {"id": GROUP, "name": "apart", "policies": ["anti-affinity"]}
        if rest and rest != [GROUP]:
            raise Refused(404, {"itemNotFound": {"code": 404, "message": "Instance group could not be found."}})
        return 200, {"server_group": group} if rest else {"server_groups": [group]}

    def _network_networks(self, method, rest, query, body):
        return self._one("network", {"id": NETWORK, "name": "internal"}, rest, query)

    def _network_security_groups(self, method, rest, query, body):
        return self._one("security_group", {"id": GROUP, "name": "slurm"}, rest, query)

    def _one(self, kind, thing, rest, query):
        if rest:
            if rest != [thing["id"]]:
                raise Refused(404, {"NeutronError": {"type": f"{kind}NotFound", "message": "not found", "detail": ""}})
            return 200, {kind: thing}
        return 200, {f"{kind}s": [thing] if query.get("name", [thing["name"]]) == [thing["name"]] else []}

    def _network_ports(self, method, rest, query, body):
        return self._things("port", self.ports, method, rest, query, body)

    def _network_floatingips(self, method, rest, query, body):
        return self._things("floatingip", self.addresses, method, rest, query, body)

    def _things(self, kind, things, method, rest, query, body):
        if method == "GET":
            asked = {key: query[key] for key in ("name", "floating_ip_address") if key in query}
            found = [each for each in things.values() if all([each.get(key)] == asked[key] for key in asked)]
            return 200, {f"{kind}s": found}
        if method == "DELETE":
            self._there(things, rest[0])
            del things[rest[0]]
            return 204, None
        if method == "PUT":
            things[rest[0]] |= body[kind]
            return 200, {kind: things[rest[0]]}
        wanted = body[kind]
        for fixed in wanted.get("fixed_ips", ()):
            taken = [each for port in self.ports.values() for each in port["fixed_ips"]]
            if fixed["ip_address"] in {each["ip_address"] for each in taken}:
                message = f"IP address {fixed['ip_address']} already allocated in subnet s"
                error = {"type": "IpAddressAlreadyAllocated", "message": message, "detail": ""}
                raise Refused(409, {"NeutronError": error})
        thing = {"id": str(uuid.uuid4()), **wanted}
        things[thing["id"]] = thing
        return 201, {kind: thing}

    def _image_images(self, method, rest, query, body):
        image = {"id": IMAGE, "name": "node.qcow2", "status": self.image_status, "size": 1, "visibility": "public"}
        if rest and rest != [IMAGE]:
            raise Refused(404, {"message": "no such image"})
        if rest:
            return 200, image
        return 200, {"images": [image] if query.get("name", ["node.qcow2"]) == ["node.qcow2"] else []}

    def _volume_volumes(self, method, rest, query, body):
        match method, rest:
            case "GET", [] | ["detail"]:
                return 200, {"volumes": list(self.disks.values())}
            case "GET", [id_]:
                return 200, {"volume": self._there(self.disks, id_)}
            case "DELETE", [id_]:
                del self.disks[id_]
                return 202, None
        volume = {"id": str(uuid.uuid4()), "status": "available", **body["volume"]}
        self.disks[volume["id"]] = volume
        return 202, {"volume": volume}

    def _there(self, things, id_):
        if id_ not in things:
            raise Refused(404, {"itemNotFound": {"code": 404, "message": f"{id_} could not be found."}})
        return things[id_]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet: two would cost 40 ms each
    openstack = None

    def _handle(self):
        url = urlsplit(self.path)
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.openstack.note(self.command, url.path)
        if fault := self.openstack.fault(self.command, url.path, after=False):
            status, body, delay, headers = fault
            time.sleep(delay)
            if status != 0:
                self._say(status, headers, body)
                return
        try:
            body = json.loads(content) if content else None
            status, headers, body = self.openstack.answer(
                self.command, url.path, parse_qs(url.query), self.headers, body
            )
        except Refused as refused:
            status, headers, body = refused.status, refused.headers, refused.body
        if fault := self.openstack.fault(self.command, url.path, after=True):
            status, body, _, headers = fault
        self._say(status, headers, body)

    do_GET = do_POST = do_PUT = do_DELETE = _handle

    def _say(self, status, headers, body):
        if status is None:
            self.close_connection = True
            return
        content = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", _HEADER)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """Nothing: pytest shows what matters."""
