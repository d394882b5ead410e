"""What the tests of commands that read the database share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from policyd.store import Store
from tests.support.databases import open_store


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a database."""
    return f"sqlite:///{tmp_path}/policyd.db"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """A store on that database."""
    store = open_store(url)
    yield store
    store.close()
