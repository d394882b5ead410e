"""How long requests took: counts by the hour, the key and the length of time.

Lengths are counted between marks, each 2**(1/8) times the one before, from a millisecond to 24
days. A percentile read from these counts is a mark, so it is at most 9.1 % above the true one (or
by less than a millisecond, where that is shorter), and the requests that took longer are exactly
those that are counted beyond the mark. An hour of a key has at most 249 rows, and usually about 40.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any

import sqlalchemy as sa

from policyd.decision_log.record import MAX_TIME
from policyd.store import many_rows
from policyd.store.database import metadata

EVERY_KEY = ""
"""Stands in place of a key's ID for all keys together. Each writer has such rows of its own, lest
every transaction of every replica lock the same row; their sum is what counts."""
_HOUR = 3600
_IN_TWO = 8
"""Marks between a length and its double."""
_FIRST = 10
"""The first mark is 2**10 microseconds."""
_MARKS = tuple(
    ceil(2 ** (number / _IN_TWO))
    for number in range(_FIRST * _IN_TWO, _IN_TWO * MAX_TIME.bit_length() + 1)
)
"""The marks, in microseconds."""

table = sa.Table(
    "hourly_latencies",
    metadata,
    sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("writer", sa.String(8), primary_key=True),
    sa.Column("below_us", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)


def mark(microseconds: int) -> int:
    """The mark that this length is counted below."""
    return _MARKS[bisect_right(_MARKS, microseconds)]


@dataclass(frozen=True, slots=True)
class Latencies:
    """How many requests took less than each mark, and at least the mark before it."""

    below: Counter[int] = field(default_factory=Counter)

    @property
    def timed(self) -> int:
        """How many requests have a known length."""
        return self.below.total()

    def percentile(self, share: float) -> int | None:
        """The least mark that this share of the requests took less than, in microseconds. None:
        there are no requests."""
        needed = share * self.timed
        reached = 0
        for one in sorted(self.below):
            reached += self.below[one]
            if reached >= needed:
                return one
        return None

    def longer(self, microseconds: int) -> int:
        """How many requests took as long as this mark, in microseconds, or longer."""
        return sum(count for one, count in self.below.items() if one > microseconds)


def write(connection: sa.Connection, counted: Mapping[tuple[int, str, str, int], int]) -> None:
    """Add counts, by hour, key, writer and mark."""
    rows = [(*key, number) for key, number in sorted(counted.items())]
    many_rows.add(connection, table, ("requests",), rows)


def take_back(connection: sa.Connection, counted: Mapping[tuple[int, str, str, int], int]) -> None:
    """Take counts out again, and delete rows that then count nothing."""
    write(connection, {key: -count for key, count in counted.items()})
    delete_empty(connection, table, counted)


def delete_empty(
    connection: sa.Connection, table: sa.Table, keys: Iterable[tuple[Any, ...]]
) -> None:
    """Delete the rows of these primary keys that count nothing.

    A row of one key may be below 0, as counts may have been deleted before their decisions. A row
    of all keys may be, too, where another writer has counted what this one takes back; it stays.
    """
    key = sa.tuple_(*table.primary_key.columns)
    is_below = sa.and_(table.c.key_id != EVERY_KEY, table.c.requests < 0)
    nothing = sa.or_(table.c.requests == 0, is_below)
    connection.execute(sa.delete(table).where(key.in_(sorted(keys)), nothing))


def read(
    connection: sa.Connection, since: datetime, until: datetime, key_id: str, step: timedelta
) -> dict[datetime, Latencies]:
    """The latencies of each `step`, which is whole hours, from the hour of `since` to that of
    `until`. Steps without any are left out."""
    first, last = (int(at.timestamp()) // _HOUR for at in (since, until))
    length = int(step.total_seconds()) // _HOUR
    number = ((table.c.hour - first) // length).label("number")
    query = (
        sa.select(number, table.c.below_us, sa.func.sum(table.c.requests))
        # Hour by hour, so that the index skips the rows of all other keys.
        .where(table.c.hour.in_(range(first, last + 1)), table.c.key_id == key_id)
        .group_by("number", table.c.below_us)
    )
    found: dict[datetime, Latencies] = {}
    for at_step, below, requests in connection.execute(query):
        at = datetime.fromtimestamp((first + at_step * length) * _HOUR, UTC)
        if requests > 0:
            found.setdefault(at, Latencies()).below[below] += int(requests)
    return found
