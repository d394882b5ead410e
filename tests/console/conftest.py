"""A console and its administrator. Passwords are hashed cheaply here: the hashes of tests need not
withstand guessing.
"""

from collections.abc import AsyncIterator, Iterator

import pytest
from argon2 import PasswordHasher

from policyd.console.security import credentials
from tests.support.consoles import Console, KeptDatabase, Visitor, running_on

CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.fixture(autouse=True, scope="session")
def cheap_passwords() -> Iterator[None]:
    credentials.use(CHEAP)
    yield
    credentials.use(PasswordHasher())


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeptDatabase]:
    """The database that these tests use one after the other."""
    database = KeptDatabase(tmp_path_factory.mktemp("kept"))
    yield database
    database.close()


@pytest.fixture
async def console(kept: KeptDatabase) -> AsyncIterator[Console]:
    async with running_on(kept) as console:
        yield console


@pytest.fixture
async def admin(console: Console) -> AsyncIterator[Visitor]:
    """The administrator, signed in."""
    async with Visitor(console.url) as admin:
        assert (await admin.sign_in(console.token)).status == 303
        yield admin
