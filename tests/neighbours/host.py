"""A host that acts by itself: what saltmarsh.leasehost.HostController is, among the neighbours of a controller."""

import contextlib
import os
from dataclasses import dataclass
from types import ModuleType

from saltmarsh.pools import Site
from saltmarsh.record import Record


@dataclass
class Host:
    """
    One host; ``before_lock`` is called whenever it is about to act alone.

    ``removed`` has the machines that it has removed for good. It is also its own ``hypervisors``, as far as they may be
    left alone: ``connected`` says whether they are not.
    """

    host: str
    controller: object
    site: Site
    slurm: ModuleType
    munge: ModuleType
    removed: list
    ledger: Record = None
    before_lock: object = None
    connected: bool = True

    @classmethod
    def of(cls, controller, host, **pillar):
        """A host of a controller's site, with more in the key ``elastic:lease`` of its pillar."""
        site = controller.site.model_copy(update={"lease": controller.site.lease.model_copy(update=pillar)})
        return cls(host, controller, site, controller.slurm, controller.munge, [])

    def with_record(self, record):
        """As HostController.with_record; the removed ones are known to both."""
        return Host(self.host, self.controller, self.site, self.slurm, self.munge, self.removed, record)

    def vmstates_of(self, name):
        """As HostController.vmstates_of."""
        return self.controller.vmstates_of(name)

    def profile_of(self, name):
        """As HostController.profile_of."""
        return self.controller.profile_of(name)

    @property
    def hypervisors(self):
        return self

    def disconnect(self):
        """As Hypervisors.disconnect."""
        self.connected = False

    def destroy(self, name):
        """As HostController.destroy: state files as well."""
        self.removed.append(name)
        for state in self.vmstates_of(name).state_files([name]):
            os.unlink(state.path)
        (self.controller.minions.provider.machine_files / name).unlink()

    @contextlib.contextmanager
    def locked(self, names):
        """As HostController.locked, where nobody else acts."""
        if self.before_lock:
            self.before_lock(names)
        yield
