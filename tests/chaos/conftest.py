"""One fleet for all tests of faults: its timers are scaled down, its nodes come and go."""

from collections.abc import Iterator

import pytest

from tests.chaos.fleet import Fleet

HEARTBEAT_S, LEASE_S = 0.5, 5.0


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A test that hurts it must leave it able to heal."""
    folder = tmp_path_factory.mktemp("fleet")
    with Fleet(folder, heartbeat_s=HEARTBEAT_S, lease_s=LEASE_S) as running:
        yield running


@pytest.fixture(scope="session")
def organization(fleet: Fleet) -> str:
    return str(fleet.desk("organizations", 1)[0])
