"""What the tests share."""

import socket
from collections.abc import Callable, Iterator

import pytest

from tests.postgresql import PostgreSQL
from tests.processes import Policyd


@pytest.fixture(scope="session")
def policyd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policyd]:
    """A running policyd with a database of its own."""
    server = Policyd(tmp_path_factory.mktemp("policyd"))
    yield server
    assert server.stop() == 0, server.errors


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A running PostgreSQL, of Debian's programs."""
    with PostgreSQL() as server:
        yield server


@pytest.fixture
def unused_port() -> Callable[[], int]:
    """Gives a port of this machine that nobody listens on."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find
