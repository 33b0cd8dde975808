"""
The one place that speaks to OpenStack: this cluster's machines in one cloud, with their ports, volumes and addresses.

A cloud that doesn't answer is an error, never a cloud without machines. Whatever is made for a node bears its mark
(:mod:`saltmarsh.server`) from the first moment, and nothing without it is ever changed. The port comes first, with the
node's address: what is wrong with that is known at once, where Nova would accept the server and fail later.
"""

import base64
import contextlib
import logging
import threading
import time
import uuid

from saltmarsh.errors import (
    BadConfiguration,
    Conflict,
    InUse,
    NotFound,
    NotInTime,
    ProviderError,
    SaltmarshError,
)
from saltmarsh.machine import Inventory, Seen
from saltmarsh.openstack_link import fault_kind, link
from saltmarsh.server import ADDRESS, CLUSTER, IMAGE, MADE, NODE, RESTORED, Server, description, marks, power_state

log = logging.getLogger(__name__)

_POLL = 1.0
_FAULT_SECONDS = 5
GONE_SECONDS = 300
ACTION_SECONDS = 300


class Servers:
    """
    The machines of one provider. Cheap to make; safe to use from several threads and processes.

    :param str provider: the provider's name
    :param config: a :class:`saltmarsh.server.CloudConfig`
    """

    def __init__(self, provider, config):
        self.provider = provider
        self.config = config

    @property
    def link(self):
        """How this process reaches the cloud."""
        return link(self.provider, self.config)

    def machines(self):
        """
        This cluster's machines, by one paged request.

        :returns: a list of :class:`saltmarsh.server.Server`, by name
        :raises Unreachable: the cloud doesn't answer
        """
        return sorted(map(self.describe, self.all()), key=lambda machine: machine.name)

    def all(self):
        """As :meth:`machines`, as openstacksdk has them."""
        found = self.link.ask("can't list servers", lambda: list(self.link.compute.servers()))
        return [server for server in found if self._is_ours(server)]

    def inventory(self):
        """
        This cluster's machines in short; those that are suspended as state files, of which the cloud
        does not say how large they are.

        :rtype: saltmarsh.machine.Inventory
        :raises Unreachable: the cloud doesn't answer
        """
        found = self.all()
        saved = {each.id for each in found if each.status == "SUSPENDED" and RESTORED not in each.metadata}
        there = tuple(
            Seen(each.name, self.provider, power_state(each.status)) for each in found if each.id not in saved
        )
        return Inventory(there, {each.name: 0 for each in found if each.id in saved}, {})

    def images(self):
        """The images, a mapping by name of what is known of each; of several of one name, a list."""
        found = self.link.ask("can't list images", lambda: list(self.link.image.images()))
        keys = ("id", "status", "size", "min_disk", "min_ram", "visibility")
        images = {}
        for image in found:
            images.setdefault(image.name, []).append({key: getattr(image, key) for key in keys})
        return {name: each[0] if len(each) == 1 else each for name, each in images.items()}

    def sizes(self):
        """The flavors, a mapping by name."""
        found = self.link.ask("can't list flavors", lambda: list(self.link.compute.flavors()))
        return {each.name: {"id": each.id, "cpus": each.vcpus, "memory": each.ram, "disk": each.disk} for each in found}

    def zones(self):
        """The availability zones, a mapping by name."""
        found = self.link.ask("can't list zones", lambda: list(self.link.compute.availability_zones()))
        return {each.name: {"available": bool(each.state.get("available"))} for each in found}

    def show(self, name):
        """
        One machine of this cluster.

        :rtype: saltmarsh.server.Server
        :raises NotFound: there is none
        :raises Conflict: there are several of that name
        """
        server = self.find(name)
        if server.status == "ERROR":
            server = self.link.ask(f"can't look at {name}", self.link.compute.get_server, server.id)
        return self.describe(server)

    def find(self, name):
        """As :meth:`show`, as openstacksdk has it."""
        found = [server for server in self._named(name) if self._is_ours(server)]
        if not found:
            raise NotFound(f"{self.provider}: no machine {name} of cluster {self.config.cluster}")
        if len(found) > 1:
            ids = ", ".join(server.id for server in found)
            raise Conflict(
                f"{self.provider}: {len(found)} servers of the name {name} ({ids}): destroy it and grow anew"
            )
        return found[0]

    def create(self, spec, user_data):
        """
        Make a machine, and wait until it runs. If it can't be made, what there is of it is removed again.

        :param spec: a :class:`saltmarsh.server.ServerSpec`
        :param str user_data: what it is told at boot, on a config drive
        :rtype: saltmarsh.server.Server
        :raises NoCapacity, QuotaExceeded, BadConfiguration, Throttled, Unreachable: as the cloud says
        :raises InUse: there is a server of that name, or the address is taken
        :raises NotInTime: it was not built within ``create_timeout``
        """
        wanted = self._look_up(spec)
        if self._named(spec.name):
            raise InUse(f"{self.provider}: there is a server {spec.name} already")
        made = uuid.uuid4().hex
        try:
            port = self._make_port(spec, wanted, made)
            if spec.floating_network:
                self._make_floating(spec, wanted, port, made)
            server = self._make_server(spec, wanted, user_data, port, made)
            return self.describe(self._built(server))
        except BaseException:
            try:
                self._remove(spec.name, made)
            except SaltmarshError as err:
                log.error("What was made of %s could not be removed: %s", spec.name, err)
            raise

    def destroy(self, name):
        """
        Remove a machine and all that was made for it, and see that it is gone.

        Nothing happens to a machine that isn't there or isn't this cluster's.

        :raises Unreachable: the cloud doesn't answer, so it isn't known to be gone
        :raises ProviderError: the cloud refused
        """
        self._remove(name)

    def act(self, name, verb, status):
        """
        Do something to a machine, and wait until it is done.

        :param str verb: of openstacksdk: ``start_server``, ``stop_server``, ``suspend_server``, ...
        :param str status: Nova's status of a server to which this was done
        :raises NotFound, Conflict: as :meth:`show`
        :raises ProviderError: the cloud refused, for example because of the state that the machine is in
        :raises NotInTime: it has begun and did not come to an end
        """
        server = self.find(name)
        since = time.monotonic()
        failure = f"can't {verb.removesuffix('_server')} {name}"
        arguments = ["SOFT"] if verb == "reboot_server" else []
        self.link.ask(failure, getattr(self.link.compute, verb), server.id, *arguments)

        at_work = False

        def done(now):
            nonlocal at_work
            if now is None or now.status == "ERROR":
                raise self._failed(server.id, failure)
            if at_work and not now.task_state and now.status != status:
                raise ProviderError(f"{self.provider}: {failure}: Nova has given up, it is {now.status}")
            at_work = bool(now.task_state)
            return now.status == status and not at_work

        self._wait(server.id, done, since, ACTION_SECONDS, failure)

    def set_metadata(self, name, values):
        """
        Write on a machine what shall be kept with it.

        :param dict values: text by key; a key with None is taken off
        """
        server = self.find(name)
        metadata = {key: value for key, value in (server.metadata | values).items() if value is not None}
        self.link.ask(f"can't mark {name}", server.set_metadata, self.link.compute, metadata, replace=True)

    def describe(self, server):
        """A server of openstacksdk as a :class:`saltmarsh.server.Server`."""
        flavor, metadata = server.flavor or {}, server.metadata or {}
        floating = [each["addr"] for each in _addresses(server) if each.get("OS-EXT-IPS:type") == "floating"]
        return Server(
            name=server.name,
            host=self.provider,
            state=power_state(server.status),
            cluster=metadata.get(CLUSTER, ""),
            memory=flavor.get("ram") or 0,
            cpus=flavor.get("vcpus") or 0,
            address=metadata.get(ADDRESS, ""),
            image=metadata.get(IMAGE, ""),
            image_written=0.0,
            uuid=server.id,
            size=flavor.get("original_name") or flavor.get("id") or "",
            public_address=floating[0] if floating else "",
            fault=(server.fault or {}).get("message", ""),
        )

    def _is_ours(self, server, made=None):
        metadata = server.metadata or {}
        return metadata.get(CLUSTER) == self.config.cluster and made in (None, metadata.get(MADE))

    def _named(self, name):
        """All servers of that name, whosever they are. Nova takes it for a regular expression."""
        ask = lambda: list(self.link.compute.servers(name=f"^{name}$"))  # noqa: E731
        return [server for server in self.link.ask(f"can't look for {name}", ask) if server.name == name]

    def _look_up(self, spec):
        """The things of the cloud that a server is made of, by what they are."""
        compute, network, image = self.link.compute, self.link.network, self.link.image
        find = self.link.find
        wanted = {
            "image": find("image", image.find_image, spec.image),
            "flavor": find("flavor", compute.find_flavor, spec.size),
            "network": find("network", network.find_network, spec.network),
        }
        if spec.subnet:
            wanted["subnet"] = find("subnet", network.find_subnet, spec.subnet)
        if spec.floating_network:
            wanted["floating"] = find("network", network.find_network, spec.floating_network)
        if spec.server_group:
            wanted["group"] = find("server group", compute.find_server_group, spec.server_group)
        if spec.security_groups is not None:
            groups = [find("security group", network.find_security_group, each) for each in spec.security_groups]
            wanted["security groups"] = groups
        if wanted["image"].status != "active":
            raise BadConfiguration(f"{self.provider}: image {spec.image} is {wanted['image'].status}, not active")
        flavor = wanted["flavor"]
        if flavor.vcpus < (spec.cpus or 0) or flavor.ram < (spec.memory or 0):
            raise BadConfiguration(
                f"{self.provider}: flavor {spec.size} has {flavor.vcpus} CPUs and {flavor.ram} MiB, "
                f"{spec.name} shall have {spec.cpus} and {spec.memory}"
            )
        return wanted

    def _make_port(self, spec, wanted, made):
        fixed = {"ip_address": str(spec.address)} | ({"subnet_id": wanted["subnet"].id} if spec.subnet else {})
        given = {"security_group_ids": [group.id for group in wanted.get("security groups", ())]}
        if spec.security_groups is None:
            given = {}
        if spec.port_security is not None:
            given["is_port_security_enabled"] = spec.port_security
        return self.link.ask(
            f"no port with {spec.address} for {spec.name}",
            self.link.network.create_port,
            name=spec.name,
            description=description(self.config.cluster, spec.name, made),
            network_id=wanted["network"].id,
            fixed_ips=[fixed],
            **given,
        )

    def _make_floating(self, spec, wanted, port, made):
        network, failure = self.link.network, f"no floating address for {spec.name}"
        which = {"floating_ip_address": str(spec.floating_address)} if spec.floating_address else {}
        for kept in self.link.ask(failure, lambda: list(network.ips(**which))) if which else []:
            if kept.port_id:
                raise InUse(f"{self.provider}: {failure}: {spec.floating_address} belongs to another port")
            # Whoever got it for the project keeps it: without the mark, it outlives the machine.
            self.link.ask(failure, network.update_ip, kept, port_id=port.id)
            return
        self.link.ask(
            failure,
            network.create_ip,
            description=description(self.config.cluster, spec.name, made),
            floating_network_id=wanted["floating"].id,
            port_id=port.id,
            **which,
        )

    def _make_volume(self, spec, wanted, made):
        volume = self.link.volume
        if volume is None:
            raise BadConfiguration(f"{self.provider} has no block storage for the boot volume of {spec.name}")
        given = {"volume_type": spec.boot_volume.type} if spec.boot_volume.type else {}
        failure = f"no boot volume for {spec.name}"
        new = self.link.ask(
            failure,
            volume.create_volume,
            name=spec.name,
            size=spec.boot_volume.size,
            image_id=wanted["image"].id,
            metadata=marks(self.config.cluster, spec.name, made),
            **given,
        )
        deadline = time.monotonic() + self.config.create_timeout
        while (now := self.link.ask(failure, volume.get_volume, new.id)).status != "available":
            if now.status.startswith("error"):
                raise ProviderError(f"{self.provider}: {failure}: it is in the state {now.status}")
            if time.monotonic() > deadline:
                raise NotInTime(f"{self.provider}: {failure}: still {now.status}")
            time.sleep(_POLL)
        return new

    def _make_server(self, spec, wanted, user_data, port, made):
        given = {"image_id": wanted["image"].id}
        if spec.boot_volume:
            volume = self._make_volume(spec, wanted, made)
            device = {"boot_index": 0, "uuid": volume.id, "source_type": "volume", "destination_type": "volume"}
            given = {"block_device_mapping": [device]}
        if spec.key_pair:
            given["key_name"] = spec.key_pair
        if spec.availability_zone:
            given["availability_zone"] = spec.availability_zone
        if spec.server_group:
            given["scheduler_hints"] = {"group": wanted["group"].id}
        mark = marks(self.config.cluster, spec.name, made) | {ADDRESS: str(spec.address), IMAGE: spec.image}
        return self.link.ask(
            f"can't make {spec.name}",
            self.link.compute.create_server,
            name=spec.name,
            flavor_id=wanted["flavor"].id,
            networks=[{"port": port.id}],
            config_drive=True,
            user_data=base64.b64encode(user_data.encode()).decode(),
            metadata=mark,
            **given,
        )

    def _built(self, server):
        def done(now):
            if now is None or now.status == "ERROR":
                raise self._failed(server.id, failure)
            return now.status == "ACTIVE"

        since, failure = time.monotonic(), f"can't make {server.name}"
        return self._wait(server.id, done, since, self.config.create_timeout, failure)

    def _failed(self, server_id, failure):
        """The error that a server came into. Nova notes it a moment after the state, and leaves it out of lists."""
        deadline = time.monotonic() + _FAULT_SECONDS
        try:
            while not (server := self.link.ask(failure, self.link.compute.get_server, server_id)).fault:
                if time.monotonic() > deadline:
                    return ProviderError(f"{self.provider}: {failure}: Nova gives no reason")
                time.sleep(_POLL)
        except NotFound:
            return ProviderError(f"{self.provider}: {failure}: it has been removed meanwhile")
        message = " ".join(server.fault["message"].split())
        return fault_kind(message)(f"{self.provider}: {failure}: {message}")

    def _wait(self, server_id, done, since, seconds, failure):
        """Until a server is as wanted; what it is then."""
        watch = _watch(self)
        with watch.waiting(server_id):
            while True:
                now = watch.look(server_id, since)
                if done(now):
                    return now
                if time.monotonic() > since + seconds:
                    state = f"{now.status}, {now.task_state or 'no task'}"
                    raise NotInTime(f"{self.provider}: {failure}: still {state} after {seconds:g} s")
                time.sleep(_POLL)

    def _remove(self, name, made=None):
        """Remove what bears the mark of a node; with ``made``, only what was made by that one making of it."""
        ours = [server for server in self._named(name) if self._is_ours(server, made)]
        failure = f"can't remove {name}"
        since = time.monotonic()
        for server in ours:
            self.link.ask(failure, self.link.compute.delete_server, server.id, ignore_missing=True)
        for server in ours:
            self._wait(server.id, lambda now: now is None, since, GONE_SECONDS, failure)
        network = self.link.network
        for floating in self._described(network.ips, name, made):
            self.link.ask(failure, network.delete_ip, floating.id, ignore_missing=True)
        for port in self._described(lambda: network.ports(name=name), name, made):
            self.link.ask(failure, network.delete_port, port.id, ignore_missing=True)
        self._remove_volumes(name, made)

    def _described(self, listed, name, made):
        """Ports or floating addresses of a node; a cloud without routers has no floating ones."""
        try:
            found = self.link.ask(f"can't see what there is of {name}", lambda: list(listed()))
        except NotFound:
            return []
        mark = description(self.config.cluster, name, made or "")
        return [each for each in found if (each.description or "").startswith(mark)]

    def _remove_volumes(self, name, made):
        if (service := self.link.volume) is None:
            return
        failure = f"can't remove the volume of {name}"
        found = self.link.ask(failure, lambda: list(service.volumes(name=name)))
        mark = {CLUSTER: self.config.cluster, NODE: name} | ({MADE: made} if made else {})
        ours = [each for each in found if mark.items() <= (each.metadata or {}).items()]
        for volume in ours:
            self.link.ask(failure, service.delete_volume, volume.id, ignore_missing=True)
        deadline = time.monotonic() + GONE_SECONDS
        for volume in ours:
            with contextlib.suppress(NotFound):
                while self.link.ask(failure, service.get_volume, volume.id):
                    if time.monotonic() > deadline:
                        raise NotInTime(f"{self.provider}: {failure}: it is still there")
                    time.sleep(_POLL)


class _Watch:
    """
    The servers of one cloud for which this process waits.

    One alone is asked for by its id; where several wait, one request for all of them answers each, so that the number
    of requests does not grow with that of servers.
    """

    def __init__(self, servers):
        self._link = servers.link
        self._waiting = []
        self._turn = threading.Lock()
        self._asked = self._answered = 0.0
        self._alone, self._seen = None, {}

    @contextlib.contextmanager
    def waiting(self, server_id):
        """As long as a server is waited for."""
        self._waiting.append(server_id)
        try:
            yield
        finally:
            self._waiting.remove(server_id)

    def look(self, server_id, since):
        """A server as it was at most a moment ago and not before ``since``; None if it is not there."""
        with self._turn:
            fresh = self._asked >= since and self._answered > time.monotonic() - _POLL
            if not fresh or self._alone not in (None, server_id):
                self._ask(server_id)
            if server_id not in self._seen and self._alone is None:
                return self._one(server_id)  # a list may miss one that is on its way to a host
            return self._seen.get(server_id)

    def _ask(self, server_id):
        begun = time.monotonic()
        if len(self._waiting) > 1:
            found = self._link.ask("can't list servers", lambda: list(self._link.compute.servers()))
            self._alone = None
        else:
            found = filter(None, [self._one(server_id)])
            self._alone = server_id
        self._asked, self._answered = begun, time.monotonic()
        self._seen = {server.id: server for server in found}

    def _one(self, server_id):
        try:
            return self._link.ask("can't look at a server", self._link.compute.get_server, server_id)
        except NotFound:
            return None


def _watch(servers):
    with _watches_lock:
        return _watches.setdefault(servers.link, _Watch(servers))


def _addresses(server):
    return [each for network in (server.addresses or {}).values() for each in network]


_watches = {}
_watches_lock = threading.Lock()
