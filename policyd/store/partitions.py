"""The log's partitions on PostgreSQL: one for each day of UTC, by the beginning of decisions' IDs.

    decisions_old       rows from before the log was partitioned
    decisions_pYYYYMMDD a day of UTC
    decisions_default   rows that fit no other: from a wrong clock, or of a day not made in time

To drop a day, policyd first detaches it from the table, which is quick, and then counts and drops
it, which no other statement waits for. On SQLite, which has no partitions, every function here does
nothing.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, partial

import sqlalchemy as sa

from policyd.decision_log.record import first_id
from policyd.errors import StoreUnavailable
from policyd.store.clock import midnight
from policyd.store.database import LONG, reading, writing
from policyd.store.retention import take_turn
from policyd.store.schema import sqlstate

_log = logging.getLogger(__name__)

AHEAD = 8
"""Days whose partitions are made in advance."""
_MOVED = 5000
"""Rows of a day that are moved out of the default partition. A day with more stays there."""
_LIMITS = ("SET LOCAL lock_timeout = '500ms'", "SET LOCAL statement_timeout = '2s'")
"""They bound how long other statements wait for a change of the partitions."""
_DAY = timedelta(days=1)
_RANGE = re.compile(r"FROM \((?:MINVALUE|'([0-9a-f]*)')\) TO \('([0-9a-f]*)'\)")
_PARTITIONS = (
    "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits i"
    " JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = to_regclass('decisions')"
)
_DETACHED = (
    "SELECT relname FROM pg_class WHERE relkind = 'r' AND NOT relispartition"
    " AND relnamespace = current_schema()::regnamespace AND relname ~ '^decisions_(old|p[0-9]{8})$'"
    " ORDER BY relname"
)
_BUSY = ("55P03", "57014")
"""PostgreSQL's codes for a statement that one of _LIMITS has ended."""


@dataclass(frozen=True, slots=True)
class Partition:
    """Decisions whose ID is `first` or more, and less than `end`."""

    name: str
    first: str
    end: str


def partitions(connection: sa.Connection) -> list[Partition]:
    """The present partitions, oldest first, without the default one."""
    if connection.dialect.name != "postgresql":
        return []
    found = []
    for name, bounds in connection.exec_driver_sql(_PARTITIONS):
        if match := _RANGE.search(bounds):
            found.append(Partition(name, match[1] or "", match[2]))
    return sorted(found, key=lambda one: one.end)


def drop_days(engine: sa.Engine, before: str, resize: Callable[[sa.Connection, int], None]) -> int:
    """Drop the days of which every ID is less than `before`. Returns how many rows they had.

    `resize` adds to the log's number of rows. Days wait for the next call where another server is
    dropping them, a lock is not free soon, or the database's user may not drop tables.
    """
    if engine.dialect.name != "postgresql":
        return 0
    with reading(engine) as connection:
        old = [one.name for one in partitions(connection) if one.end <= before]
    for name in old:
        if not _try(engine, partial(_detach, name=name)):
            break
    return _drop_detached(engine, resize)


def _detach(connection: sa.Connection, name: str) -> None:
    if take_turn(connection, wait=False):
        connection.exec_driver_sql(f"ALTER TABLE decisions DETACH PARTITION {name}")


def _drop_detached(engine: sa.Engine, resize: Callable[[sa.Connection, int], None]) -> int:
    with reading(engine) as connection:
        names = list(connection.exec_driver_sql(_DETACHED).scalars())
    dropped = 0
    for name in names:
        # No other statement uses a detached day, so counting it may take long.
        with writing(engine, LONG) as connection:
            if not take_turn(connection, wait=False):
                return dropped
            if not connection.exec_driver_sql(f"SELECT to_regclass('{name}')").scalar_one():
                continue
            counted = f"SELECT count(*) FROM {name}"  # noqa: S608  # a name that _DETACHED fits
            count = connection.exec_driver_sql(counted).scalar_one()
            resize(connection, -count)
            connection.exec_driver_sql(f"DROP TABLE {name}")
        dropped += count
    return dropped


def make_days(engine: sa.Engine, now: datetime) -> int:
    """Make the partitions of the days to come. Returns how many. One that cannot be made now waits
    for the next call; until then its decisions go to the default partition."""
    if engine.dialect.name != "postgresql":
        return 0
    with reading(engine) as connection:
        known = partitions(connection)
    today = midnight(now)
    made = 0
    for day in (today + n * _DAY for n in range(AHEAD + 1)):
        first, end = first_id(day), first_id(day + _DAY)
        if any(one.first < end and first < one.end for one in known):
            continue
        name = f"decisions_p{day:%Y%m%d}"
        if not _try(engine, partial(_make_day, day=Partition(name, first, end))):
            break
        made += 1
    return made


def _make_day(connection: sa.Connection, day: Partition) -> None:
    within = f"WHERE id >= '{day.first}' AND id < '{day.end}'"
    some = f"SELECT 1 FROM decisions_default {within} LIMIT {_MOVED + 1}"  # noqa: S608  # our own names
    counted = f"SELECT count(*) FROM ({some}) few"  # noqa: S608  # our own names
    if connection.exec_driver_sql(counted).scalar_one() > _MOVED:
        return
    connection.exec_driver_sql(f"CREATE TABLE {day.name} (LIKE decisions INCLUDING ALL)")
    connection.exec_driver_sql(
        f"WITH moved AS (DELETE FROM decisions_default {within} RETURNING *)"  # noqa: S608  # our own names
        f" INSERT INTO {day.name} SELECT * FROM moved"
    )
    connection.exec_driver_sql(
        f"ALTER TABLE decisions ATTACH PARTITION {day.name}"
        f" FOR VALUES FROM ('{day.first}') TO ('{day.end}')"
    )


def _try(engine: sa.Engine, change: Callable[[sa.Connection], None]) -> bool:
    """Change the table's partitions, unless other statements would wait too long. Returns whether
    it was done."""
    try:
        with writing(engine) as connection:
            for limit in _LIMITS:
                connection.exec_driver_sql(limit)
            change(connection)
    except StoreUnavailable as error:
        if not sqlstate(error):
            raise  # The database is away.
        if sqlstate(error) in _BUSY:
            _log.debug("the log's days stay as they are for now: %s", error)
        else:
            _log_once(str(error))
        return False
    return True


@cache
def _log_once(problem: str) -> None:
    _log.warning(
        "the log's partitions cannot be changed (%s): old rows are deleted one by one, and those "
        "of new days go into the default partition, unless the tables' owner runs policyd db "
        "migrate daily",
        problem,
    )
