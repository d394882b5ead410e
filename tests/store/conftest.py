"""What the tests of the store share: a store on a new database of each kind."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from policyd.store import Store
from tests.support.databases import open_store


@pytest.fixture
def url(new_database: str) -> str:
    """The URL of a new database of each kind."""
    return new_database


@pytest.fixture
def store(new_database: str) -> Iterator[Store]:
    """A store on that database."""
    with closing(open_store(new_database)) as store:
        yield store
