"""What every tier shares."""

import logging
from pathlib import Path

import hypothesis
import pytest
import salt  # noqa: F401 (makes the handlers removed here)

# They hold on to a stream that pytest closes.
for _handler in logging.root.handlers[:]:
    logging.root.removeHandler(_handler)
    _handler.close()


# How long an example may take is no promise, and a busy machine takes its time.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


@pytest.fixture(scope="session")
def checkout():
    """The directory of this checkout."""
    return Path(__file__).resolve().parents[1]
