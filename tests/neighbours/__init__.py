"""
What the project speaks to, small enough for a test or a bench: a provider without machines, minions and slurmctld.

The provider is a real salt-cloud driver that makes files; minions and Slurm are objects in memory. The rest is real.
"""

from pathlib import Path

from neighbours.minions import Minions
from neighbours.provider import Provider
from neighbours.slurm import Slurm
from neighbours.vmstate import Munge, VmStates
from saltmarsh import cloud
from saltmarsh.controller import Controller
from saltmarsh.dns import HostsDirectory
from saltmarsh.ledger import Ledger
from saltmarsh.pools import Site
from saltmarsh.tunnel import Peers


def controller(pillar, directory, deploy=False):
    """
    A controller among these neighbours, or a second one where there is one already.

    :param dict pillar: the site's pillar; its ``state_dir`` is set
    :param pathlib.Path directory: where everything is kept
    :param bool deploy: whether machines get minion keys, which cost some time
    :rtype: saltmarsh.controller.Controller
    """
    pillar["elastic"]["state_dir"] = str(directory / "state")
    site = Site.from_pillar(pillar)
    provider = Provider(directory / "provider", site, deploy)
    slurm = Slurm(site)
    state = Path(site.state_dir)
    state.mkdir(exist_ok=True)
    return Controller(
        site=site,
        ledger=Ledger(state / "ledger.db"),
        cloud=Cloud(str(provider.configuration), VmStates(provider, slurm)),
        minions=Minions(provider, slurm),
        dns=HostsDirectory(state / "dns", site.network.domain),
        tunnel=Peers(state / "tunnel", site),
        slurm=slurm,
        munge=Munge,
    )


class Cloud(cloud.Cloud):
    """salt-cloud, whose provider's machines are suspended by a neighbour."""

    def __init__(self, config, vmstates):
        super().__init__(config)
        self.vmstates = lambda profile: vmstates
