"""Everything a verb needs, opened once: the site, the ledger, and the one seam to each outside system."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import salt.pillar
from salt.exceptions import SaltException

from saltmarsh import munge, slurm
from saltmarsh.cloud import Cloud
from saltmarsh.dns import HostsDirectory
from saltmarsh.errors import PillarError, SaltmarshError
from saltmarsh.ledger import Ledger
from saltmarsh.minions import Minions
from saltmarsh.pools import Site
from saltmarsh.tunnel import Peers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Controller:
    """What the verbs act on and through."""

    site: Site
    ledger: Ledger
    cloud: Cloud
    minions: Minions
    dns: HostsDirectory
    tunnel: Peers
    slurm: ModuleType
    munge: ModuleType

    def vmstates_of(self, name):
        """
        What suspends a node and brings it back.

        :param str name: the node
        :rtype: saltmarsh.vmstate.VmStates
        :raises InvalidInput: it belongs to no pool, or its provider can't suspend machines
        """
        return self.cloud.vmstates(self.profile_of(name))

    def profile_of(self, name):
        """
        The profile by which a node was made; of a pool with several, the one whose provider has it.

        :param str name: the node
        :raises InvalidInput: it belongs to no pool
        """
        profiles = self.site.pool_of(name).profiles
        if len(profiles) > 1 and (nodes := self.ledger.nodes([name])):
            profiles = self.cloud.profiles_with(profiles, nodes[0].host)
        return profiles[0]

    @classmethod
    def open(cls, opts):
        """
        Open everything, as the master's configuration and pillar say.

        :param dict opts: the master's configuration
        :rtype: Controller
        :raises PillarError: pillar is not acceptable
        :raises LedgerError: the ledger can't be used
        """
        site = read_site(opts)
        minions = Minions(opts)
        state = Path(site.state_dir)
        state.mkdir(mode=0o755, parents=True, exist_ok=True)
        return cls(
            site=site,
            ledger=Ledger(state / "ledger.db"),
            cloud=Cloud(os.path.join(os.path.dirname(opts["conf_file"]), "cloud"), minions),
            minions=minions,
            dns=HostsDirectory(state / "dns", site.network.domain),
            tunnel=Peers(state / "tunnel", site),
            slurm=slurm,
            munge=munge,
        )


def read_site(opts):
    """
    The site, from the pillar that is assigned to the master itself (its id, by default ``<host name>_master``).

    :param dict opts: the master's configuration
    :rtype: saltmarsh.pools.Site
    :raises PillarError: pillar can't be rendered, or the key ``elastic`` is not acceptable
    """
    pillar = salt.pillar.Pillar(opts, opts.get("grains", {}), opts["id"], "base").compile_pillar()
    if errors := pillar.get("_errors"):
        raise PillarError(f"pillar of {opts['id']} can't be rendered: {'; '.join(' '.join(e.split()) for e in errors)}")
    if "elastic" not in pillar:
        raise PillarError(f"pillar of {opts['id']} has no key 'elastic': assign it to this id in the pillar top file")
    return Site.from_pillar(pillar)


def pillar_has_changed(opts, site):
    """
    Whether pillar says something else than it did, for who runs for long; one that can't be used says nothing.

    :param dict opts: the master's configuration
    :param saltmarsh.pools.Site site: what it said
    :rtype: bool
    """
    try:
        return read_site(opts) != site
    except (SaltmarshError, SaltException) as err:
        log.error("pillar can't be used now, the engine goes on with what it was: %s", err)
        return False
