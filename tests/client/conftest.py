"""Fixtures of the client's tests."""

from collections.abc import Iterator

import pytest
from broker_simulator import BrokerSimulator


@pytest.fixture
def simulator() -> Iterator[BrokerSimulator]:
    """A broker of the protocol, on a free port."""
    running = BrokerSimulator()
    yield running
    running.stop()
