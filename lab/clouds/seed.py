#!/usr/bin/python3
"""What a new cloud needs before anybody can use it: users, endpoints, flavors, a network, an image (inside)."""

import socket
import subprocess
import sys
import time

import openstack
from keystoneauth1.exceptions import ClientException

ADDRESS, PASSWORD = "@ADDRESS@", "@PASSWORD@"
PROJECT = "cluster"
GUEST = "/guest"  # where the golden image is
SERVICES = {
    "nova": ("compute", 8774, "/v2.1"),
    "glance": ("image", 9292, ""),
    "placement": ("placement", 8778, ""),
    "neutron": ("network", 9696, ""),
}


def connect():
    """As administrator."""
    return openstack.connect(
        load_envvars=False,
        auth={
            "auth_url": f"http://{ADDRESS}:5000/v3",
            "username": "admin",
            "password": PASSWORD,
            "project_name": "admin",
            "user_domain_name": "Default",
            "project_domain_name": "Default",
        },
        region_name="RegionOne",
    )


def patiently(ask, seconds=180):
    """What ``ask`` returns, once the service answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except (ClientException, openstack.exceptions.SDKException):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def identity():
    """Users, the project, and where each service is."""
    cloud = connect()
    roles = patiently(lambda: {role.name: role for role in cloud.identity.roles()})
    service_project = cloud.identity.create_project(name="service", domain_id="default")
    for name, (type_, port, path) in SERVICES.items():
        user = cloud.identity.create_user(name=name, password=PASSWORD, default_project_id=service_project.id)
        for role in ("admin", "service"):
            if role in roles:
                cloud.identity.assign_project_role_to_user(service_project, user, roles[role])
        service = cloud.identity.create_service(name=name, type=type_)
        for interface in ("public", "internal", "admin"):
            url = f"http://{ADDRESS}:{port}{path}"
            cloud.identity.create_endpoint(service_id=service.id, interface=interface, url=url, region_id="RegionOne")
    project = cloud.identity.create_project(name=PROJECT, domain_id="default")
    user = cloud.identity.create_user(name="salt", password=PASSWORD, default_project_id=project.id)
    cloud.identity.assign_project_role_to_user(project, user, roles["member"])


def resources():
    """Flavors, a network in which the project may choose addresses, an image."""
    cloud = connect()
    patiently(lambda: (list(cloud.compute.flavors()), list(cloud.network.networks()), list(cloud.image.images())))
    cloud.compute.create_flavor(name="m1.ci", vcpus=1, ram=512, disk=2)
    network = cloud.network.create_network(
        name="provider",
        project_id=cloud.identity.find_project(PROJECT).id,
        provider_network_type="flat",
        provider_physical_network="physnet1",
    )
    cloud.network.create_subnet(
        network_id=network.id,
        project_id=network.project_id,
        name="provider4",
        ip_version=4,
        cidr="10.77.0.0/24",
        gateway_ip=None,
        enable_dhcp=False,
        allocation_pools=[{"start": "10.77.0.240", "end": "10.77.0.249"}],
    )
    # For the fake computes alone: a compute that boots real guests doesn't take it.
    _image("node", "raw", data=bytes(65536), img_hv_type="fake")


def guests():
    """A zone of the compute that boots real guests, and the golden image with the kernel that boots it."""
    cloud = connect()
    while not list(cloud.placement.resource_providers(name=socket.gethostname())):
        time.sleep(0.5)
    subprocess.run(["nova-manage", "cell_v2", "discover_hosts"], check=True)
    cloud.compute.add_host_to_aggregate(cloud.compute.create_aggregate(name="real", availability_zone="real"), "real")
    cloud.compute.create_flavor(name="m1.guest", vcpus=1, ram=512, disk=4)
    _image(
        "golden",
        "qcow2",
        filename=f"{GUEST}/node.qcow2",
        kernel_id=_image("golden-kernel", "aki", "aki", filename=f"{GUEST}/vmlinux").id,
        ramdisk_id=_image("golden-initrd", "ari", "ari", filename=f"{GUEST}/initrd.img").id,
        os_command_line="root=/dev/vda rw console=ttyS0 quiet mitigations=off net.ifnames=0",
        hw_cdrom_bus="scsi",
        hw_scsi_model="virtio-scsi",
        hw_rng_model="virtio",
    )


def _image(name, disk_format, container_format="bare", **given):
    return connect().image.create_image(
        name=name, disk_format=disk_format, container_format=container_format, visibility="public", wait=True, **given
    )


if __name__ == "__main__":
    {"identity": identity, "resources": resources, "guests": guests}[sys.argv[1]]()
