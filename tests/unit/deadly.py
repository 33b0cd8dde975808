"""Death at a boundary: before one certain call of a process to what is outside of it."""

import functools


class Deadly:
    """Something whose calls are counted, and which kills the process before one of them."""

    def __init__(self, something, count, only=None):
        self._something = something
        self._count = count
        self._only = only

    def __getattr__(self, name):
        found = getattr(self._something, name)
        if not callable(found) or (self._only and name not in self._only):
            return found

        @functools.wraps(found)
        def call(*args, **kwargs):
            self._count(name)
            return found(*args, **kwargs)

        return call
