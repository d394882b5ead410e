"""Refused keys in the store: counts by minute and source, counts by the hour, and a few samples.

Strangers can cause any number of such requests, so the store keeps only so much: MAX_ROWS counts
and MAX_SAMPLES samples of the last KEEP, and one row per hour for as long as the log's own counts.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from policyd.decision_log.refused_key import RefusedKey, RefusedKeyCount
from policyd.store.database import LONG, Id, metadata, reading, storable, upsert
from policyd.store.steps import Steps, delete_some

KEEP = timedelta(days=30)
"""How long sources and samples stay, if the log itself is not kept for a shorter time."""
MAX_ROWS = 50_000
MAX_SAMPLES = 2_000
_KEEP_HOURS = timedelta(days=400)
_MINUTE = 60
"""Seconds of a minute."""
_HOUR = 60
"""Minutes of an hour."""


@dataclass(slots=True)
class RefusedKeyCounts:
    """How many requests had a refused key, by the reason."""

    missing: int = 0
    unknown: int = 0
    conflicting: int = 0

    @property
    def total(self) -> int:
        """The sum of all reasons."""
        return sum(astuple(self))


_NAMES = tuple(field.name for field in fields(RefusedKeyCounts))


@dataclass(frozen=True, slots=True)
class RefusedSource:
    """The requests of one source."""

    source: str
    """An address, an IPv6 network, "others", or "" where it is not known."""
    counts: RefusedKeyCounts
    last: datetime
    """The minute of its last request."""


def _counts() -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in _NAMES]


_sources = sa.Table(
    "refused_keys",
    metadata,
    sa.Column("process", sa.String(32), primary_key=True),
    sa.Column("stretch", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("source", sa.String(64), primary_key=True),
    sa.Column("minute", sa.BigInteger, nullable=False),
    *_counts(),
    sa.Index("ix_refused_keys_minute", "minute"),
)
_hourly = sa.Table(
    "hourly_refused_keys",
    metadata,
    sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
    *_counts(),
)
_SAMPLE_FIELDS = RefusedKey.__struct_fields__
_samples = sa.Table(
    "refused_samples",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("reason", sa.SmallInteger, nullable=False),
    *(sa.Column(name, sa.String(200), nullable=False) for name in _SAMPLE_FIELDS[2:]),
)


def add_refused_keys(
    connection: sa.Connection, entries: Iterable[RefusedKey | RefusedKeyCount]
) -> None:
    """Add counts and samples. Adding the same ones again changes nothing."""
    counts = []
    samples = []
    for entry in entries:
        if isinstance(entry, RefusedKeyCount):
            counts.append(entry)
        else:
            values = map(storable, msgspec.to_builtins(entry)[1:])
            samples.append(dict(zip(_SAMPLE_FIELDS, values, strict=True)))
    if counts:
        _add_counts(connection, counts)
    upsert(connection, _samples, samples)


def _add_counts(connection: sa.Connection, counts: Sequence[RefusedKeyCount]) -> None:
    # A count may come again with larger numbers. These replace the old ones, and the hours gain the
    # difference.
    latest = {(one.process, one.stretch, one.source): one for one in counts}
    known = _known(connection, counts)
    hours: dict[int, RefusedKeyCounts] = defaultdict(RefusedKeyCounts)
    rows = []
    for key, one in sorted(latest.items()):
        before = known.get(key, RefusedKeyCounts())
        row = {name: max(getattr(one, name), getattr(before, name)) for name in _NAMES}
        hour = hours[one.minute // _HOUR]
        for name, number in row.items():
            setattr(hour, name, getattr(hour, name) + number - getattr(before, name))
        rows.append(dict(zip(_KEY, key, strict=True)) | {"minute": one.minute} | row)
    upsert(connection, _sources, rows, replace=_NAMES)
    gained = [
        {"hour": hour} | dict(zip(_NAMES, astuple(one), strict=True))
        for hour, one in sorted(hours.items())
    ]
    upsert(connection, _hourly, gained, add=_NAMES)


_KEY = ("process", "stretch", "source")


def _known(
    connection: sa.Connection, counts: Iterable[RefusedKeyCount]
) -> dict[tuple[str, int, str], RefusedKeyCounts]:
    column = _sources.c
    stretches: dict[str, list[int]] = defaultdict(list)
    for one in counts:
        stretches[one.process].append(one.stretch)
    found = {}
    for process, numbers in stretches.items():
        wanted = (column.process == process, column.stretch.between(min(numbers), max(numbers)))
        for row in connection.execute(sa.select(_sources).where(*wanted)):
            known = RefusedKeyCounts(*(getattr(row, name) for name in _NAMES))
            found[row.process, row.stretch, row.source] = known
    return found


def forget_refused_keys(engine: sa.Engine, steps: Steps, before: datetime, at: datetime) -> None:
    """Delete counts and samples older than `before` or KEEP, and the oldest beyond the bounds. `at`
    is now, by the database's clock."""
    minute = int(max(before, at - KEEP).timestamp()) // _MINUTE
    _forget(engine, steps, _sources.c.minute, minute, MAX_ROWS)
    first_id = f"{max(minute, 0) * _MINUTE * 1000:012x}"
    _forget(engine, steps, _samples.c.id, first_id, MAX_SAMPLES)
    kept = int((at - _KEEP_HOURS).timestamp()) // _MINUTE // _HOUR
    steps.run(lambda c, limit: delete_some(c, _hourly, _hourly.c.hour < kept, limit))


def _forget(engine: sa.Engine, steps: Steps, column: sa.Column[Any], first: Any, most: int) -> None:
    beyond = sa.select(column).order_by(column.desc()).offset(most).limit(1)
    with reading(engine) as connection:
        excess = connection.execute(beyond).scalar_one_or_none()
    old = column < first
    if excess is not None:
        old = sa.or_(old, column <= excess)
    steps.run(lambda connection, limit: delete_some(connection, column.table, old, limit))


class RefusedKeys:
    """The refused keys in the database of `engine`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def total(self) -> int:
        """How many requests had a refused key, as far back as there are counts by the hour."""
        sums = [sa.func.coalesce(sa.func.sum(_hourly.c[name]), 0) for name in _NAMES]
        with reading(self._engine) as connection:
            return sum(map(int, connection.execute(sa.select(*sums)).one()))

    def hours(self, since: datetime, until: datetime) -> list[tuple[datetime, RefusedKeyCounts]]:
        """Counts by the hour, in order of time. Hours without a refused key are left out."""
        within = _hourly.c.hour.between(_minutes(since) // _HOUR, _minutes(until) // _HOUR)
        query = sa.select(_hourly).where(within).order_by(_hourly.c.hour)
        with reading(self._engine) as connection:
            return [
                (_moment(hour * _HOUR), RefusedKeyCounts(*counts))
                for hour, *counts in connection.execute(query)
            ]

    def sources(self, since: datetime, until: datetime, *, limit: int = 50) -> list[RefusedSource]:
        """Counts by the source, most requests first."""
        column = _sources.c
        sums = [sa.func.sum(column[name]) for name in _NAMES]
        query = (
            sa.select(column.source, sa.func.max(column.minute), *sums)
            .where(column.minute.between(_minutes(since), _minutes(until)))
            .group_by(column.source)
            .order_by(sum(sums[1:], sums[0]).desc(), column.source)
            .limit(limit)
        )
        with reading(self._engine, LONG) as connection:
            return [
                RefusedSource(source, RefusedKeyCounts(*map(int, counts)), _moment(last))
                for source, last, *counts in connection.execute(query)
            ]

    def samples(self, since: datetime, *, limit: int = 50) -> list[RefusedKey]:
        """The newest samples, newest first."""
        first = f"{max(int(since.timestamp() * 1000), 0):012x}"
        query = sa.select(_samples).where(_samples.c.id >= first)
        with reading(self._engine) as connection:
            rows = connection.execute(query.order_by(_samples.c.id.desc()).limit(limit))
            return [_sample(row) for row in rows]

    def sample(self, decision_id: str) -> RefusedKey | None:
        """The sample with this ID, if there is one. Denials show the ID to clients."""
        wanted = sa.select(_samples).where(_samples.c.id == decision_id.replace("\0", ""))
        with reading(self._engine) as connection:
            row = connection.execute(wanted).one_or_none()
        return None if row is None else _sample(row)


def _sample(row: Any) -> RefusedKey:
    return msgspec.convert(["S", *row], RefusedKey)


def _minutes(at: datetime) -> int:
    return int(at.timestamp()) // _MINUTE


def _moment(minutes: int) -> datetime:
    return datetime.fromtimestamp(minutes * _MINUTE, UTC)
