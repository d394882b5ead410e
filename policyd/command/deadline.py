"""How long a thread may still wait for the database: every call has an end, whatever is silent.

Deadlines nest, and the nearest one holds: a page of the console has one, and so has each query
that it makes. PostgreSQL's connection and SQLite's look at it while they wait.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT = 10.0
"""Seconds that an ordinary call to the database may take, unless the settings say otherwise."""
OVERDUE = "it has not answered in time (--database-timeout)"
"""What is said of a database whose answer came too late."""


class _Deadlines(threading.local):
    """Those of the running thread, by time.monotonic()."""

    def __init__(self) -> None:
        self.ends: list[float] = []


_deadlines = _Deadlines()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What the running thread asks of a database in this block ends after so many seconds."""
    end = time.monotonic() + seconds
    _deadlines.ends.append(end)
    try:
        yield
    finally:
        # By its value: a generator may leave its block after a later one.
        _deadlines.ends.remove(end)


def remaining() -> float:
    """Seconds that the running thread may still wait; infinity outside of within()."""
    return min(_deadlines.ends, default=math.inf) - time.monotonic()


def is_over() -> bool:
    """Whether the running thread has waited long enough."""
    return remaining() <= 0
