"""What the tests share."""

from collections.abc import Iterator

import pytest

from tests.processes import Policyd


@pytest.fixture(scope="session")
def policyd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policyd]:
    """A running policyd with a database of its own."""
    server = Policyd(tmp_path_factory.mktemp("policyd"))
    yield server
    assert server.stop() == 0, server.errors
