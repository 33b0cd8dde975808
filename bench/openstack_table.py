#!/usr/bin/env python3
"""
What our driver costs beside bare openstacksdk: the same servers, each with its own port first, the same threads.

Run by ``make bench-openstack`` on the clouds of lab/openstack, whose computes are Nova's fakes.
"""

import argparse
import collections
import json
import re
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(CHECKOUT / "lab"), str(CHECKOUT / "salt/_utils")]

import openstack  # noqa: E402
import requests  # noqa: E402

from labtools import network  # noqa: E402
from labtools import openstack as lab  # noqa: E402
from saltmarsh.server import CloudConfig, ServerSpec  # noqa: E402
from saltmarsh.servers import Servers  # noqa: E402

THREADS = 16
TOLD = "#cloud-config\n{}\n"


class Requests:
    """Counts what this process asks for, by method and path without ids."""

    def __init__(self):
        self.counted = collections.Counter()
        self._send = requests.Session.send
        requests.Session.send = self._counting()

    def _counting(self):
        def send(session, request, **kwargs):
            path = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{32}", "ID", request.path_url.partition("?")[0])
            self.counted[f"{request.method} {path}"] += 1
            return self._send(session, request, **kwargs)

        return send


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", type=int, default=50)
    count = parser.parse_args().servers
    subprocess.run([CHECKOUT / "lab/openstack", "up"], check=True)
    with network.entered(lab.reach()):
        measure(count)


def measure(count):
    """Both ways, one after the other."""
    cloud = lab.CLOUDS["engage1"]
    names = {f"cn{number:03}": f"10.77.0.{30 + number}" for number in range(1, count + 1)}
    counter = Requests()
    ways = {"ours": Ours(cloud), "bare openstacksdk": Bare(cloud)}
    rows, peaks = [], []
    for name, way in ways.items():
        way.warm_up()
        counter.counted.clear()
        made = timed(way.create, names)
        asked = dict(counter.counted)
        gone = timed(way.destroy, names)
        rows.append((name, made, gone, asked))
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    print(f"\n{count} servers, {THREADS} threads, one fake compute\n")
    print("| way | made, s | servers/s | gone, s | API calls per server |\n|---|---|---|---|---|")
    for name, made, gone, asked in rows:
        calls = sum(asked.values()) / count
        print(f"| {name} | {made:.1f} | {count / made:.2f} | {gone:.1f} | {calls:.1f} |")
    print(f"\nratio ours / bare: {rows[0][1] / rows[1][1]:.2f} (goal: at most 1.1)")
    print(f"memory of this process at most {peaks[0]} MiB with ours, {peaks[1]} MiB after bare openstacksdk as well")
    print(f"our calls: {json.dumps(rows[0][3], indent=2)}")


def timed(act, names):
    """Seconds to do something to all names, several at a time."""
    begun = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda item: act(*item), names.items()))
    return time.monotonic() - begun


class Ours:
    """By saltmarsh.servers, as the driver does."""

    def __init__(self, cloud):
        config = CloudConfig(cluster="bench", auth=lab.auth(cloud), region_name="RegionOne")
        self._servers = Servers("engage1", config)

    def warm_up(self):
        """Log in."""
        self._servers.machines()

    def create(self, name, address):
        """One machine."""
        spec = ServerSpec(
            name=name, image="node", size="m1.ci", network="provider", address=address, port_security=False
        )
        self._servers.create(spec, TOLD)

    def destroy(self, name, _):
        """It is gone afterwards."""
        self._servers.destroy(name)


class Bare:
    """By what anybody would write with openstacksdk."""

    def __init__(self, cloud):
        self._cloud = openstack.connect(load_envvars=False, auth=lab.auth(cloud), region_name="RegionOne")
        self._made = {}

    def warm_up(self):
        """Log in, and look up what servers are made of."""
        self._network = self._cloud.network.find_network("provider").id
        self._image = self._cloud.image.find_image("node").id
        self._flavor = self._cloud.compute.find_flavor("m1.ci").id

    def create(self, name, address):
        """One server."""
        port = self._cloud.network.create_port(
            name=name,
            network_id=self._network,
            fixed_ips=[{"ip_address": address}],
            is_port_security_enabled=False,
        )
        server = self._cloud.compute.create_server(
            name=name,
            image_id=self._image,
            flavor_id=self._flavor,
            networks=[{"port": port.id}],
            config_drive=True,
        )
        self._made[name] = (self._cloud.compute.wait_for_server(server, interval=1, wait=600), port)

    def destroy(self, name, _):
        """It is gone afterwards."""
        server, port = self._made[name]
        self._cloud.compute.delete_server(server)
        self._cloud.compute.wait_for_delete(server, interval=1, wait=300)
        self._cloud.network.delete_port(port)


if __name__ == "__main__":
    main()
