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


class _Deadlines(threading.local):
    """The deadlines of the running thread, by time.monotonic()."""

    def __init__(self) -> None:
        self.ends: list[float] = []


_deadlines = _Deadlines()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Calls of the running thread to a database end after so many seconds, in this block."""
    end = time.monotonic() + seconds
    _deadlines.ends.append(end)
    try:
        yield
    finally:
        # By its value, not as the last one: a generator may leave its block after a later one.
        _deadlines.ends.remove(end)


def remaining() -> float:
    """Seconds that the running thread may still wait; infinity outside of within()."""
    return min(_deadlines.ends, default=math.inf) - time.monotonic()


def is_over() -> bool:
    """Whether the running thread has waited long enough."""
    return remaining() <= 0
