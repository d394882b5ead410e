"""How long a thread may still wait for the database: every call ends, whatever is silent.

Deadlines nest, and the nearest one holds: a page of the console has one, and so has each query of
that page. The connections to PostgreSQL and SQLite check it while they wait.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT = 10.0
"""Seconds that an ordinary call to the database may take, unless the settings say otherwise."""
OVERDUE = "it has not answered in time (--database-timeout)"
"""The cause in errors about a database that has not answered in time."""


class Deadline:
    """The end of a block, by time.monotonic()."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """Let its seconds begin again."""
        self._end = time.monotonic() + self._seconds

    def remaining(self) -> float:
        """Seconds until the end."""
        return self._end - time.monotonic()

    def age(self) -> float:
        """Seconds since it began, or was renewed."""
        return self._seconds - self.remaining()


class _Deadlines(threading.local):
    """The deadlines of the running thread."""

    def __init__(self) -> None:
        self.all: list[Deadline] = []


_deadlines = _Deadlines()


@contextmanager
def within(seconds: float) -> Iterator[Deadline]:
    """In this block, calls of the running thread to a database end after `seconds`."""
    deadline = Deadline(seconds)
    _deadlines.all.append(deadline)
    try:
        yield deadline
    finally:
        # Not the last one: a generator may leave its block after a later one.
        _deadlines.all.remove(deadline)


def renew() -> None:
    """Renew the deadlines of the running thread, as the database has answered with one piece of any
    number: they bound how long it is silent, not how much it sends."""
    for deadline in _deadlines.all:
        deadline.renew()


def remaining() -> float:
    """Seconds that the running thread may still wait; infinity outside of within()."""
    return min((one.remaining() for one in _deadlines.all), default=math.inf)


def is_over() -> bool:
    """Whether the running thread has waited long enough."""
    return remaining() <= 0
