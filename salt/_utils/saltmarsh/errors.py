"""
Everything that can go wrong, as one exception tree under Salt's own.

The message of every error is one line that names the thing and, where there is one, the remedy.
"""

from salt.exceptions import SaltException


class SaltmarshError(SaltException):
    """Base of all errors raised by this project."""


class InvalidInput(SaltmarshError):
    """An argument is not acceptable; nothing was changed."""


class PillarError(InvalidInput):
    """Pillar is not acceptable; the message names the key and what was expected."""


class NotEnoughFree(SaltmarshError):
    """A pool has fewer free names than were asked for; nothing was changed."""


class Conflict(SaltmarshError):
    """Another operation owns what this one needs, or the ledger changed in between."""


class Unreachable(SaltmarshError):
    """An outside system could not be asked. Says nothing about what exists there."""


class ProviderError(SaltmarshError):
    """The provider (a hypervisor, a cloud) answered, and refused or failed."""


class NotFound(ProviderError):
    """The provider answered that it has no such machine."""


class NoCapacity(ProviderError):
    """No host has room for the machine."""


class QuotaExceeded(ProviderError):
    """The provider's quota is used up."""


class Throttled(ProviderError):
    """The provider asks to come back later."""


class BadConfiguration(ProviderError):
    """The provider refuses what is asked for, and will again: an image, a profile, a network, a permission."""


class Stopped(SaltmarshError):
    """A pool does not grow until somebody has looked into it."""


class InUse(ProviderError):
    """A name or an address is taken at the provider, by something that must not be touched."""


class NotInTime(ProviderError):
    """The provider has begun, and did not come to an end."""


class SlurmError(SaltmarshError):
    """A Slurm command answered with an error."""


class OperationFailed(SaltmarshError):
    """An operation ended without what it was asked for; what it had made is undone."""


class LedgerError(SaltmarshError):
    """The ledger's database can't be used; the message names the file and the remedy."""
