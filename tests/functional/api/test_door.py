"""What of salt-api can be reached: three addresses, over TLS, with JSON of a modest size, by whoever has logged in."""

import contextlib
import http.client
import json
import socket
import ssl
import threading
from http.cookies import SimpleCookie

import pytest
from salt.netapi.rest_cherrypy import app

OPEN = {"index", "login", "logout"}
# All that Salt's own door has, and what it adds with websockets, from its configuration, or for browsers.
ELSEWHERE = sorted({*app.API.url_map, "ws", "hook", "app", "static", "favicon.ico", "hook/saltmarsh/nudge"} - OPEN)
TOO_MANY = {"error": "too many positional arguments; arguments are none", "retcode": 2}
ASK = [{"client": "runner", "fun": "elastic.pools"}]


@pytest.fixture(scope="module")
def operator(served):
    client = served.client()
    assert client.login("operator").status == 200
    return client


@pytest.fixture
def stranger(served):
    return served.client()


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "OPTIONS", "HEAD"])
@pytest.mark.parametrize("path", ELSEWHERE)
def test_nothing_else_of_salt_has_an_address(operator, served, bus, path, method):
    mark = bus.mark()
    low = json.dumps([ASK[0] | {"username": "operator", "password": served.password("operator"), "eauth": "file"}])
    assert operator.request(method, f"/{path}", low if method in ("POST", "PUT") else None).status == 404
    assert operator.request(method, f"/{path}/{operator.token}").status == 404
    assert bus.since(mark) == []


def test_a_preflight_request_lets_nobody_in(stranger, bus):
    """In Salt's own door it makes a session."""
    mark = bus.mark()
    answer = stranger.request("OPTIONS", "/", headers={"Origin": "https://elsewhere"})
    assert answer.status == 405
    assert "Access-Control-Allow-Origin" not in answer.headers
    stranger.token = SimpleCookie(answer.headers["Set-Cookie"])["session_id"].value
    assert stranger.post("/", ASK).status == 401
    assert stranger.post("/logout", {}).status == 401
    assert bus.since(mark) == []


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE"])
def test_there_are_no_other_methods(operator, method):
    assert operator.request(method, "/", json.dumps(ASK)).status == 405


# TLS


def test_without_tls_there_is_no_answer(served, bus):
    mark = bus.mark()
    connection = http.client.HTTPConnection("localhost", served.port, timeout=30)
    login = {"username": "operator", "password": served.password("operator"), "eauth": "file"}
    with contextlib.closing(connection), contextlib.suppress(http.client.HTTPException, OSError):
        connection.request("POST", "/login", json.dumps(login), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 400
        assert b"token" not in response.read()
    assert bus.since(mark) == []


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1")
def test_old_tls_is_refused(served):
    context = served.trust()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("localhost", served.port), 30) as plain, pytest.raises((ssl.SSLError, OSError)):
        context.wrap_socket(plain, server_hostname="localhost")


def test_a_client_that_does_not_know_the_authority_notices(served):
    with socket.create_connection(("localhost", served.port), 30) as plain:
        with pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")


class Tap:
    """Somebody on the way, who writes down what a client sends."""

    def __init__(self, port):
        self._server = socket.create_server(("127.0.0.1", 0))
        self._target = port
        self.port = self._server.getsockname()[1]
        self.sent = b""
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        client, _ = self._server.accept()
        upstream = socket.create_connection(("127.0.0.1", self._target))
        threading.Thread(target=self._copy, args=(upstream, client), daemon=True).start()
        self._copy(client, upstream, record=True)

    def _copy(self, source, target, record=False):
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                if record:
                    self.sent += chunk
                target.sendall(chunk)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def test_a_recorded_request_can_not_be_sent_again(operator, served, bus):
    tap = Tap(served.port)
    client = served.client(tap.port)
    client.token = operator.token
    mark = bus.mark()
    assert client.call("elastic.pools").status == 200
    assert bus.functions_since(mark) == ["runner.elastic.pools"]
    mark = bus.mark()
    assert tap.sent
    with socket.create_connection(("127.0.0.1", served.port), 30) as again, contextlib.suppress(OSError):
        again.sendall(tap.sent)  # it hangs up before it has heard all
        while again.recv(65536):
            pass
    assert operator.token.encode() not in tap.sent
    assert bus.functions_since(mark) == []


# Bodies


def long_login(served, length):
    login = {"username": "operator", "password": served.password("operator"), "eauth": "file"}
    return json.dumps(login).ljust(length).encode()


def test_a_body_may_be_of_the_length_that_pillar_says_and_no_longer(stranger, served):
    most = served.settings["elastic_api"]["max_body"]
    assert stranger.request("POST", "/login", long_login(served, most)).status == 200
    # It says so before it has heard any of it.
    assert stranger.request("POST", "/login", None, {"Content-Length": str(most + 1)}).status == 413


@pytest.mark.parametrize("times", [1, 10])
def test_a_body_that_does_not_tell_its_length_is_not_read(operator, served, bus, times):
    mark = bus.mark()
    whole = json.dumps(ASK).ljust(times * served.settings["elastic_api"]["max_body"]).encode()
    with contextlib.suppress(OSError):  # it may hang up before it has heard all
        answer = operator.request("POST", "/", iter([whole[i : i + 1000] for i in range(0, len(whole), 1000)]))
        assert answer.status in (400, 413)
    assert bus.functions_since(mark) == []


YAML_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize("path", ["/", "/login"])
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/x-yaml", YAML_BOMB),
        ("text/yaml", YAML_BOMB),
        ("text/plain", json.dumps(ASK)),
        ("application/x-www-form-urlencoded", "client=runner&fun=elastic.pools"),
        ("multipart/form-data; boundary=x", "--x\r\n\r\n--x--"),
        ("", json.dumps(ASK)),
    ],
)
def test_only_json_is_read(operator, bus, path, kind, body):
    mark = bus.mark()
    assert operator.request("POST", path, body, {"Content-Type": kind}).status == 415
    assert bus.functions_since(mark) == []


STRANGE = [
    "", "[", "null", "7", '"x"', "[]", "[7]", "[[]]", '["x"]', "{}", "[{}]", "[" * 30000, '{"a":' * 8000, "NaN",
    "\ud800", '[{"client": ["runner"]}]', '[{"client": "runner"}]', '[{"client": "runner", "fun": 7}]',
    '[{"client": "runner", "fun": ["elastic.pools"]}]', '[{"client": "runner", "fun": "elastic.pools", "arg": 7}]',
]  # fmt: skip


@pytest.mark.parametrize("path", ["/", "/login"])
@pytest.mark.parametrize("body", STRANGE, ids=lambda body: ascii(body[:50]))
def test_a_strange_body_gets_nothing_and_breaks_nothing(operator, path, body):
    answer = operator.request("POST", path, body.encode("utf-8", "surrogatepass"))
    assert answer.status >= 400 or json.loads(answer.body)["return"] in ([], [TOO_MANY])
    assert b"Traceback" not in answer.body
    assert operator.request("GET", "/").status == 200
