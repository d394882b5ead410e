"""Counts of the decision log, by hour and key, and by day, key and end user.

They change in the transaction that writes the log, so they always agree with it, and stay when its
rows are retired.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from policyd.decision_log.record import Ending, Outcome, Record, Verdict, moment
from policyd.descriptor.placeholders import is_placeholder
from policyd.engine.states import UserState
from policyd.store.database import (
    ESCAPE,
    LONG,
    escaped,
    metadata,
    reading,
    storable,
    upsert,
)
from policyd.store.steps import Steps, delete_some

_HOUR = 3600
_DAY = 24 * _HOUR
_ERROR = 400
"""The first status that is an error."""
_BROKEN = (Ending.UPSTREAM_BROKE, Ending.NO_ANSWER)
_KEEP = timedelta(days=400)
"""How long the counts by hour are kept: long enough to compare a year with the one before."""


@dataclass(slots=True)
class Counts:
    """Counts of some requests."""

    requests: int = 0
    denied: int = 0
    would_deny: int = 0
    attributed: int = 0
    """In scope, with a valid end-user identifier."""
    unattributed: int = 0
    """In scope, without one. Requests out of scope count in neither."""
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0
    """Billionths of a US dollar, of the requests whose cost is known."""
    flagged: int = 0
    errors: int = 0
    """Answered with a status of 400 or more, broken off by the upstream, or not answered at all."""
    timed: int = 0
    """Requests whose duration is known, and ..."""
    duration_us: int = 0
    """... the sum of their durations, in microseconds."""
    placeholders: int = 0
    """Attributed to a placeholder in place of an end user: see descriptor/placeholders.py."""

    @property
    def latency_us(self) -> int | None:
        """The mean duration of a request. None: not known."""
        return self.duration_us // self.timed if self.timed else None


_NAMES = tuple(field.name for field in fields(Counts))


def _counts() -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in _NAMES]


_hourly = sa.Table(
    "hourly_counts",
    metadata,
    sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("key_id", sa.String(32), primary_key=True),
    *_counts(),
)
_daily = sa.Table(
    "daily_user_counts",
    metadata,
    sa.Column("day", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("end_user", sa.String(256), primary_key=True),
    *_counts(),
)
_has_placeholders = _daily.c.placeholders > sa.literal_column("0")
sa.Index(
    "ix_daily_user_counts_placeholders",
    _daily.c.day,
    sqlite_where=_has_placeholders,
    postgresql_where=_has_placeholders,
)
_EMAIL = "%_@_%.__%"
"""What an e-mail address looks like, to SQL's LIKE."""
_sum = sa.func.sum
_SORTS: dict[str, sa.ColumnElement[Any]] = {
    "requests": _sum(_daily.c.requests),
    "flagged": _sum(_daily.c.flagged),
    "errors": _sum(_daily.c.errors),
    # SQLite and PostgreSQL sort NULL to different ends.
    "latency": sa.func.coalesce(
        _sum(_daily.c.duration_us) / sa.func.nullif(_sum(_daily.c.timed), 0), -1
    ),
    "tokens": _sum(_daily.c.input_tokens + _daily.c.output_tokens),
    "cost": _sum(_daily.c.cost_nano),
}
SORTS = (*_SORTS, "user")
"""What end users can be sorted by."""


class Tally:
    """The counts that one transaction adds."""

    def __init__(self) -> None:
        self._hours: dict[tuple[Any, ...], Counts] = defaultdict(Counts)
        self._users: dict[tuple[Any, ...], Counts] = defaultdict(Counts)

    def count(self, record: Record) -> None:
        """Count one decision, unless its key was refused: older versions logged such requests."""
        if record.is_key_refused:
            return
        is_known = record.in_scope and record.mode is not None
        has_user = record.user_state is UserState.VALID
        is_empty = is_known and has_user and is_placeholder(record.end_user)
        for counts in self._of(record.id, record.key_id, record.end_user):
            counts.requests += 1
            counts.denied += record.verdict is Verdict.DENIED
            counts.would_deny += record.verdict is Verdict.WOULD_DENY
            counts.attributed += is_known and has_user
            counts.unattributed += is_known and not has_user
            counts.flagged += record.flags != ""
            counts.placeholders += is_empty

    def add_outcome(self, outcome: Outcome, key_id: str, end_user: str) -> None:
        """Count what became of one request."""
        if not key_id:
            return
        is_error = outcome.status >= _ERROR or outcome.ending in _BROKEN
        for counts in self._of(outcome.decision_id, key_id, end_user):
            counts.input_tokens += outcome.input_tokens or 0
            counts.output_tokens += outcome.output_tokens or 0
            counts.cost_nano += outcome.cost_nano or 0
            counts.errors += is_error
            counts.timed += outcome.duration_us is not None
            counts.duration_us += outcome.duration_us or 0

    def write(self, connection: sa.Connection) -> None:
        """Add the counts to those in the database."""
        # In one order, so that two writers never wait for each other.
        for table, counted in ((_hourly, self._hours), (_daily, self._users)):
            keys = table.primary_key.columns.keys()
            rows = [
                dict(zip(keys, key, strict=True)) | {name: getattr(counts, name) for name in _NAMES}
                for key, counts in sorted(counted.items())
            ]
            upsert(connection, table, rows, add=_NAMES)

    def _of(self, decision_id: str, key_id: str, end_user: str) -> tuple[Counts, Counts]:
        seconds = int(moment(decision_id).timestamp())
        user = end_user.replace("\0", "\N{REPLACEMENT CHARACTER}")
        return (
            self._hours[seconds // _HOUR, key_id],
            self._users[seconds // _DAY, key_id, user],
        )


def forget_users(steps: Steps, oldest: datetime) -> None:
    """Delete the counts of end users for days before `oldest`, and those of hours long ago."""
    day = int(oldest.timestamp()) // _DAY
    steps.run(lambda c, limit: delete_some(c, _daily, _daily.c.day < day, limit))
    kept = int((oldest - _KEEP).timestamp()) // _HOUR
    steps.run(lambda c, limit: delete_some(c, _hourly, _hourly.c.hour < kept, limit))


class Statistics:
    """The counts in the database of `engine`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def hours(
        self, since: datetime, until: datetime, key_id: str = ""
    ) -> list[tuple[datetime, Counts]]:
        """Counts by the hour, in order of time. Hours without a request are left out."""
        query = sa.select(_hourly.c.hour, *_sums(_hourly)).where(_within_hours(since, until))
        if key_id:
            query = query.where(_hourly.c.key_id == key_id)
        rows = self._rows(query.group_by(_hourly.c.hour).order_by(_hourly.c.hour))
        return [(datetime.fromtimestamp(hour * _HOUR, UTC), counts) for hour, counts in rows]

    def keys(self, since: datetime, until: datetime) -> list[tuple[str, Counts]]:
        """Counts by the key's ID, most requests first."""
        query = sa.select(_hourly.c.key_id, *_sums(_hourly)).where(_within_hours(since, until))
        most = _sum(_hourly.c.requests).desc()
        return self._rows(query.group_by(_hourly.c.key_id).order_by(most, _hourly.c.key_id))

    def placeholders(
        self, since: datetime, until: datetime, *, key_id: str = "", limit: int = 10
    ) -> list[tuple[str, str, int]]:
        """Placeholders in place of end users, over whole days of UTC: the value, the key that sent
        it, and in how many requests. Most requests first."""
        within = (_within_days(since, until), _has_placeholders)
        return self._most(_daily.c.placeholders, within, key_id, limit)

    def emails(
        self, since: datetime, until: datetime, *, key_id: str = "", limit: int = 10
    ) -> tuple[int, list[tuple[str, str, int]]]:
        """End users that look like e-mail addresses, over whole days of UTC: in how many requests
        in all, and the values as placeholders() gives them."""
        within = (_within_days(since, until), _of_keys(_daily), _daily.c.end_user.like(_EMAIL))
        count = sa.select(sa.func.coalesce(_sum(_daily.c.requests), 0)).where(*within)
        if key_id:
            count = count.where(_daily.c.key_id == key_id)
        with reading(self._engine, LONG) as connection:
            total = int(connection.execute(count).scalar_one())
        most = self._most(_daily.c.requests, within, key_id, limit) if total else []
        return total, most

    def _most(
        self,
        column: sa.Column[int],
        within: Sequence[sa.ColumnElement[bool]],
        key_id: str,
        limit: int,
    ) -> list[tuple[str, str, int]]:
        count = _sum(column)
        query = (
            sa.select(_daily.c.end_user, _daily.c.key_id, count)
            .where(*within)
            .group_by(_daily.c.end_user, _daily.c.key_id)
            .order_by(count.desc(), _daily.c.end_user, _daily.c.key_id)
            .limit(limit)
        )
        if key_id:
            query = query.where(_daily.c.key_id == key_id)
        with reading(self._engine, LONG) as connection:
            return [(user, key, int(number)) for user, key, number in connection.execute(query)]

    def users(
        self,
        since: datetime,
        until: datetime,
        *,
        key_id: str = "",
        text: str = "",
        sort: str = "requests",
        descending: bool = True,
        offset: int = 0,
        limit: int = 50,
    ) -> list[tuple[str, Counts]]:
        """Counts by the end user, over whole days of UTC. "" stands for requests that named no end
        user, or one that the log does not know.

        `text` is a part of the end user, in any letter case; `sort` is one of SORTS.
        """
        user = _daily.c.end_user
        key = user if sort == "user" else _SORTS[sort]
        query = (
            sa.select(user, *_sums(_daily))
            .where(_within_days(since, until), _of_keys(_daily))
            .group_by(user)
            .order_by(key.desc() if descending else key, user)
            .offset(offset)
            .limit(limit)
        )
        if text:
            # The database lowers both, as each knows other alphabets.
            pattern = sa.func.lower(f"%{escaped(storable(text))}%")
            query = query.where(sa.func.lower(user).like(pattern, escape=ESCAPE))
        return self._rows(query.where(_daily.c.key_id == key_id) if key_id else query)

    def _rows(self, query: sa.Select[Any]) -> list[tuple[Any, Counts]]:
        with reading(self._engine, LONG) as connection:
            return [(key, Counts(*map(int, counts))) for key, *counts in connection.execute(query)]


def _sums(table: sa.Table) -> Sequence[sa.ColumnElement[int]]:
    return [_sum(table.c[name]).label(name) for name in _NAMES]


def _number(at: datetime, seconds: int) -> int:
    return int(at.timestamp()) // seconds


def _within_hours(since: datetime, until: datetime) -> sa.ColumnElement[bool]:
    hours = _hourly.c.hour.between(_number(since, _HOUR), _number(until, _HOUR))
    return sa.and_(hours, _of_keys(_hourly))


def _within_days(since: datetime, until: datetime) -> sa.ColumnElement[bool]:
    return _daily.c.day.between(_number(since, _DAY), _number(until, _DAY))


def _of_keys(table: sa.Table) -> sa.ColumnElement[bool]:
    # Older versions of policyd counted refused keys here, under an empty key.
    return table.c.key_id != sa.literal_column("''")
