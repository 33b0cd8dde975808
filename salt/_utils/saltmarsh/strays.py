"""
Volumes whose machine is gone: only their name says whose they were (:func:`saltmarsh.domain.machine_of`).

Part of the seam to libvirt, on top of :mod:`saltmarsh.hypervisor`.
"""

import libvirt

from saltmarsh import domain as xml
from saltmarsh import statefiles
from saltmarsh.errors import ProviderError
from saltmarsh.libvirt_link import asking, or_none
from saltmarsh.storage import volumes_of


def remove_strays(hypervisors, name):
    """
    Remove volumes with this cluster's mark of a machine that there is not: neither a domain nor a state file.

    :param Hypervisors hypervisors: the provider's hosts
    :param str name: the machine
    :raises Unreachable: a host doesn't answer, so it may have the machine; nothing is removed
    :raises ProviderError: a domain has this name or uses a volume, whosever it is; or there is a state file
    """
    config, connections = hypervisors.config, hypervisors.connect()
    with hypervisors.placing():
        hypervisors.refuse_existing(name)
        for host, connection in connections.items():
            if config.state_dir and statefiles.listing(host, connection, config, [name]):
                raise ProviderError(f"{host}: there is a state file of {name}")
        for host, connection in connections.items():
            _delete(host, connection, config, name)


def _delete(host, connection, config, name):
    with asking(host, connection, f"can't remove what is left of {name}"):
        pool = connection.storagePoolLookupByName(config.disk_pool)
        left = [volume for volume in volumes_of(pool, name) if xml.machine_of(volume.name(), config.cluster)]
        used = {domain.name(): domain.XMLDesc() for domain in connection.listAllDomains()} if left else {}
        for volume in left:
            for other, description in used.items():
                if volume.path() in description:
                    raise ProviderError(f"{host}: domain {other} uses {volume.path()}, though there is no {name}")
        for volume in left:
            or_none(volume.delete, libvirt.VIR_ERR_NO_STORAGE_VOL)
