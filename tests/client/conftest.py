"""Fixtures of the client's tests."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from broker_simulator import BrokerSimulator


@pytest.fixture
def broker() -> Iterator[BrokerSimulator]:
    """A broker of the protocol, on a free port."""
    simulator = BrokerSimulator()
    yield simulator
    simulator.stop()
