"""
The door to salt-api for scripts: log in, run a runner, log out, and nothing else; over TLS alone.

It is Salt's own ``rest_cherrypy`` without most of its addresses. Salt's permissions say which runners a user may call,
but not who may read or write events: there, ``/events`` and ``/ws`` show the whole event bus to anybody who can log in,
and ``/hook`` lets them fire events. Here they do not exist, nor do ``/run``, ``/token``, ``/keys``, ``/minions``,
``/jobs``, ``/stats`` and ``/app``.
"""

import cherrypy
from salt.netapi.rest_cherrypy import app

__virtualname__ = "elastic_api"

_JSON = "application/json"


def __virtual__():
    if __virtualname__ in __opts__:
        return __virtualname__
    return False, "the master's configuration has no elastic_api"


def start():
    """
    Serve for as long as salt-api runs; the state ``salt.api`` sets it up.

    Takes these settings, under ``elastic_api`` in the master's configuration: ``host`` and ``port``; ``ssl_crt`` and
    ``ssl_key``, the files with its certificate and key; ``max_body``, the longest request in bytes; ``threads``, how
    many requests are served at a time.

    CLI Example:

    .. code-block:: yaml

        elastic_api:
          host: 10.77.0.1
          port: 8443
          ssl_crt: /etc/salt/api/server.crt
          ssl_key: /etc/salt/api/server.key
          max_body: 65536
          threads: 20
    """
    settings = __opts__[__virtualname__]
    # Where the classes of rest_cherrypy look.
    cherrypy.config["saltopts"] = __opts__
    cherrypy.config["apiopts"] = settings
    cherrypy.tools.only_json = cherrypy.Tool("on_start_resource", _only_json)
    root = _Addresses()
    configuration = root.get_conf()
    cherrypy.config.update(
        {
            "server.ssl_module": "builtin",
            "server.ssl_certificate": settings["ssl_crt"],
            "server.ssl_private_key": settings["ssl_key"],
            "server.thread_pool": settings["threads"],
            # What rest_cherrypy sets for this, CherryPy does not look at.
            "server.max_request_body_size": settings["max_body"],
        }
    )
    cherrypy.quickstart(root, "/", configuration)


class _Addresses(app.API):
    url_map = {"index": app.LowDataAdapter, "login": app.Login, "logout": app.Logout}  # noqa: RUF012 (Salt's)
    favicon_ico = None  # CherryPy would add its own

    def _update_url_map(self):
        """Nothing comes from the configuration: no websocket, no web hook, no application for browsers."""

    def get_conf(self):
        """Nothing for browsers either."""
        configuration = super().get_conf()
        configuration["/"] |= {
            "tools.cors_tool.on": False,
            "tools.html_override.on": False,
            "tools.gzip.on": False,
            "tools.only_json.on": True,
            "tools.sessions.secure": True,
            "tools.sessions.httponly": True,
        }
        return configuration


def _only_json():
    # Before anybody has logged in, no YAML (a few lines can become gigabytes) and no form (any web page can send one).
    request = cherrypy.request
    if request.method == "POST" and request.headers.get("Content-Length") != "0":
        kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != _JSON:
            raise cherrypy.HTTPError(415, f"expected {_JSON}")
