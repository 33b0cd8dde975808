"""
This process's connections to OpenStack clouds, and how their errors are read.

The lower half of :mod:`saltmarsh.servers`, and the only file that knows openstacksdk.
"""

import logging
import os
import threading
import time

try:
    import keystoneauth1.exceptions as keystone
    import openstack.config
    import openstack.connection
    import openstack.exceptions as sdk
    import openstack.utils
    import requests
except ModuleNotFoundError as _err:
    # Salt puts the directory of its cloud drivers on the path while it loads them, and one of them has this name.
    raise ImportError("openstacksdk is not installed for this Python") from _err

from saltmarsh.errors import (
    BadConfiguration,
    InUse,
    NoCapacity,
    NotFound,
    ProviderError,
    QuotaExceeded,
    SaltmarshError,
    Throttled,
    Unreachable,
)

# It writes whole requests into a debug log: a machine's private key is in one of them.
logging.getLogger("keystoneauth.session").setLevel(logging.INFO)

PATIENCE = 60  # seconds in all that a request waits for a cloud that asks to come back later
_NEXT_TRY = 5  # seconds where the cloud doesn't say when
_KNOWN = 60  # seconds for which the id of an image, a flavor or a network is remembered
_RETRY_AFTER = 5  # seconds for which a failed attempt to connect stands for all who ask
_ERRORS = (sdk.SDKException, keystone.ClientException, requests.RequestException)
# Of Nova's API. From 2.96 on (seen in Nova 31) one server that was over quota makes every list fail with 500: the
# request spec, which the list is to tell of since then, is gone before the server is.
_NEWEST = "2.95"
_VOLUMES = {"block-storage", "volumev3"}
_MISCONFIGURED = (
    *(
        sdk.ConfigException,
        sdk.InvalidRequest,
        sdk.DuplicateResource,
        sdk.NotSupported,
        sdk.ServiceDisabledException,
        sdk.EndpointNotFound,
    ),
    *(keystone.AuthPluginException, keystone.CatalogException, keystone.MissingAuthPlugin),
)
# Neutron names its errors by type; Nova has only a text.
_TAKEN = {"IpAddressAlreadyAllocated", "IpAddressInUse", "MacAddressInUse", "PortInUse"}
_FULL = ("No valid host", "Exceeded maximum number of retries")


class Link:
    """
    One cloud as this process reaches it; safe to use from several threads.

    :param str cloud: its name, for messages
    :param config: a :class:`saltmarsh.server.CloudConfig`
    """

    def __init__(self, cloud, config):
        self.cloud = cloud
        self._known = {}
        self._finding = threading.Lock()
        self._connection = self.ask("can't connect", _connect, config)
        # Looked up in the cloud's catalog: whoever does that first must log in.
        services = ("compute", "network", "image")
        self.compute, self.network, self.image = self.ask(
            "can't connect", lambda: [getattr(self._connection, service) for service in services]
        )
        self.compute.default_microversion = self.ask(
            "can't connect", openstack.utils.maximum_supported_microversion, self.compute, _NEWEST
        )

    @property
    def volume(self):
        """The block storage service, or None if the cloud has none."""
        catalog = self.ask("can't see which services there are", lambda: self._connection.service_catalog)
        return self._connection.block_storage if _VOLUMES & {each["type"] for each in catalog} else None

    def ask(self, failure, function, *args, **kwargs):
        """
        What a function of the cloud answers. One that is throttled is asked again when the cloud said so.

        :param str failure: what can't be done if the cloud does not do it
        :param function: what is called, with the arguments that follow
        :raises Unreachable: no answer came, so what became of the request isn't known
        :raises ProviderError: the cloud's answer, see :mod:`saltmarsh.errors` for its kinds
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return function(*args, **kwargs)
            except _ERRORS as err:
                kind = _kind(err)
                wait = _come_back_after(err)
                if kind is not Throttled or time.monotonic() + wait > deadline:
                    raise kind(f"{self.cloud}: {failure}: {_one_line(err)}") from err
            time.sleep(wait)

    def find(self, what, finder, name):
        """
        A thing of the cloud by its name or id, as it was at most a minute ago.

        :param str what: for example ``image``
        :param finder: the function that finds it
        :param str name: its name or its id
        :raises BadConfiguration: there is none, or there are several of that name
        """
        with self._finding:
            found, at = self._known.get((what, name), (None, 0.0))
            if found is None or time.monotonic() - at > _KNOWN:
                try:
                    found = self.ask(f"can't look for {what} {name}", finder, name, ignore_missing=False)
                except NotFound as err:
                    raise BadConfiguration(f"{self.cloud}: there is no {what} {name}") from err
                self._known[what, name] = (found, time.monotonic())
            return found


def link(cloud, config):
    """The one :class:`Link` of this process to a cloud; a process that was forked has its own."""
    key = (os.getpid(), cloud, config.model_dump_json())
    with _attempts_lock:
        attempt = _attempts.setdefault(key, _Attempt())
    return attempt.link(cloud, config)


class _Attempt:
    """A link, or why there is none; one that failed stands for all who ask within the next seconds."""

    def __init__(self):
        self._turn = threading.Lock()
        self._link = self._error = None
        self._at = 0.0

    def link(self, cloud, config):
        """The link, made if there is none yet."""
        with self._turn:
            if self._link is None:
                if self._error and time.monotonic() - self._at < _RETRY_AFTER:
                    raise type(self._error)(str(self._error))
                try:
                    self._link = Link(cloud, config)
                except SaltmarshError as err:
                    self._error, self._at = err, time.monotonic()
                    raise
            return self._link


def fault_kind(message):
    """
    What kind of error it is that a server came into, by what Nova says of it.

    :param str message: of the server's fault
    :returns: a subclass of :class:`saltmarsh.errors.ProviderError`
    """
    if any(words in message for words in _FULL):
        return NoCapacity
    return QuotaExceeded if "quota" in message.lower() else ProviderError


def _connect(config):
    # Not from the environment: OS_CLOUD there would win over what is configured.
    files = [config.clouds_file] if config.clouds_file else None
    known = openstack.config.OpenStackConfig(
        load_envvars=False, load_yaml_config=bool(config.cloud), config_files=files
    )
    return openstack.connection.Connection(config=known.get_one(config.cloud, **config.overrides), app_name="saltmarsh")


def _kind(err):
    """What kind of error an exception is."""
    if isinstance(err, _MISCONFIGURED):
        return BadConfiguration
    if isinstance(err, sdk.NotFoundException):
        return NotFound
    status = getattr(err, "status_code", None) or getattr(err, "http_status", None)
    type_ = _neutron_type(err)
    if type_ == "OverQuota" or status == 413 or status == 403 and "quota" in _one_line(err).lower():
        return QuotaExceeded
    if type_ in _TAKEN:
        return InUse
    kinds = {400: BadConfiguration, 401: BadConfiguration, 403: BadConfiguration, 404: NotFound, 429: Throttled}
    if status is None:
        return ProviderError if isinstance(err, sdk.SDKException) else Unreachable
    return Unreachable if status in (502, 503, 504) else kinds.get(status, ProviderError)


def _neutron_type(err):
    try:
        return err.response.json()["NeutronError"]["type"]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _come_back_after(err):
    """Seconds; an HTTP date instead of a number is not understood."""
    said = getattr(getattr(err, "response", None), "headers", {}).get("Retry-After", "")
    return int(said) if said.isdigit() else _NEXT_TRY


def _one_line(err):
    details = getattr(err, "details", None)
    return " ".join(str(details or err).split())


_attempts = {}
_attempts_lock = threading.Lock()
