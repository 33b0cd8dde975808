"""The reference cluster in a box."""

from hands import lab  # noqa: F401 (a fixture)
