"""Passwords are hashed cheaply here: the hashes of tests need not withstand guessing."""

from collections.abc import Iterator

import pytest
from argon2 import PasswordHasher

from policyd.console.security import credentials

CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.fixture(autouse=True, scope="session")
def cheap_passwords() -> Iterator[None]:
    credentials.use(CHEAP)
    yield
    credentials.use(PasswordHasher())
