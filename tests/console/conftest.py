"""A console and its administrator. Passwords are hashed cheaply here: the hashes of tests need not
withstand guessing.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from policyd.console.security import credentials
from tests.support.consoles import Console, Visitor, running, settings

CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.fixture(autouse=True, scope="session")
def cheap_passwords() -> Iterator[None]:
    credentials.use(CHEAP)
    yield
    credentials.use(PasswordHasher())


@pytest.fixture
async def console(tmp_path: Path) -> AsyncIterator[Console]:
    async with running(settings(tmp_path)) as console:
        yield console


@pytest.fixture
async def admin(console: Console) -> AsyncIterator[Visitor]:
    """The administrator, signed in."""
    async with Visitor(console.url) as admin:
        assert (await admin.sign_in(console.token)).status == 303
        yield admin
