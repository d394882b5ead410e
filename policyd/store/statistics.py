"""Statistics of the log: sums of its counts (counts.py), over hours or whole days of UTC.

They read no row of the log. What a page costs depends on how many hours, keys and models there are.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from policyd.store import latencies
from policyd.store.counts import (
    DAY,
    HOUR,
    NAMES,
    Counts,
    daily,
    has_placeholders,
    hourly,
    models,
)
from policyd.store.database import ESCAPE, LONG, escaped, reading, storable
from policyd.store.latencies import EVERY_KEY, Latencies

_EMAIL = "%_@_%.__%"
"""What an e-mail address looks like, to SQL's LIKE."""
_sum = sa.func.sum
_SORTS: dict[str, sa.ColumnElement[Any]] = {
    "requests": _sum(daily.c.requests),
    "flagged": _sum(daily.c.flagged),
    "errors": _sum(daily.c.errors),
    # SQLite and PostgreSQL sort NULL to different ends.
    "latency": sa.func.coalesce(
        _sum(daily.c.duration_us) / sa.func.nullif(_sum(daily.c.timed), 0), -1
    ),
    "tokens": _sum(daily.c.input_tokens + daily.c.output_tokens),
    "cost": _sum(daily.c.cost_nano),
}
SORTS = (*_SORTS, "user")
"""What end users can be sorted by."""


class Statistics:
    """The counts in the database of `engine`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def first(self) -> datetime | None:
        """The first hour with counts. None: there are none."""
        query = sa.select(sa.func.min(hourly.c.hour))
        with reading(self._engine) as connection:
            hour = connection.execute(query).scalar_one()
        return None if hour is None else datetime.fromtimestamp(hour * HOUR, UTC)

    def hours(
        self, since: datetime, until: datetime, key_id: str = ""
    ) -> list[tuple[datetime, Counts]]:
        """Counts by the hour, in order of time. Hours without a request are left out."""
        query = sa.select(hourly.c.hour, *_sums(hourly)).where(_within_hours(since, until))
        if key_id:
            query = query.where(hourly.c.key_id == key_id)
        rows = self._rows(query.group_by(hourly.c.hour).order_by(hourly.c.hour))
        return [(datetime.fromtimestamp(hour * HOUR, UTC), counts) for hour, counts in rows]

    def keys(self, since: datetime, until: datetime) -> list[tuple[str, Counts]]:
        """Counts by the key's ID, most requests first."""
        query = sa.select(hourly.c.key_id, *_sums(hourly)).where(_within_hours(since, until))
        most = _sum(hourly.c.requests).desc()
        return self._rows(query.group_by(hourly.c.key_id).order_by(most, hourly.c.key_id))

    def models(
        self, since: datetime, until: datetime, *, key_id: str = "", limit: int = 50
    ) -> list[tuple[str, Counts]]:
        """Counts by the model that requests name, most requests first. "" stands for requests that
        name none."""
        name = models.c.model
        query = (
            sa.select(name, *_sums(models))
            # Hour by hour, so that the index skips the rows of all other keys.
            .where(models.c.hour.in_(_numbers(since, until)))
            .where(models.c.key_id == (key_id or EVERY_KEY))
            .group_by(name)
            .having(_sum(models.c.requests) > 0)
            .order_by(_sum(models.c.requests).desc(), name)
            .limit(limit)
        )
        return self._rows(query)

    def latencies(
        self, since: datetime, until: datetime, step: timedelta, *, key_id: str = ""
    ) -> dict[datetime, Latencies]:
        """How long the requests of each `step`, which is whole hours, took. Steps without any are
        left out."""
        with reading(self._engine, LONG) as connection:
            return latencies.read(connection, since, until, key_id or EVERY_KEY, step)

    def placeholders(
        self, since: datetime, until: datetime, *, key_id: str = "", limit: int = 10
    ) -> list[tuple[str, str, int]]:
        """Placeholders in place of end users, over whole days of UTC: the value, the key that sent
        it, and in how many requests. Most requests first."""
        within = (_within_days(since, until), has_placeholders)
        return self._most(daily.c.placeholders, within, key_id, limit)

    def emails(
        self, since: datetime, until: datetime, *, key_id: str = "", limit: int = 10
    ) -> tuple[int, list[tuple[str, str, int]]]:
        """End users that look like e-mail addresses, over whole days of UTC: in how many requests
        in all, and the values as placeholders() gives them."""
        within = (_within_days(since, until), _of_keys(daily), daily.c.end_user.like(_EMAIL))
        count = sa.select(sa.func.coalesce(_sum(daily.c.requests), 0)).where(*within)
        if key_id:
            count = count.where(daily.c.key_id == key_id)
        with reading(self._engine, LONG) as connection:
            total = int(connection.execute(count).scalar_one())
        most = self._most(daily.c.requests, within, key_id, limit) if total else []
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
            sa.select(daily.c.end_user, daily.c.key_id, count)
            .where(*within)
            .group_by(daily.c.end_user, daily.c.key_id)
            .order_by(count.desc(), daily.c.end_user, daily.c.key_id)
            .limit(limit)
        )
        if key_id:
            query = query.where(daily.c.key_id == key_id)
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
        user = daily.c.end_user
        key = user if sort == "user" else _SORTS[sort]
        query = (
            sa.select(user, *_sums(daily))
            .where(_within_days(since, until), _of_keys(daily))
            .group_by(user)
            .order_by(key.desc() if descending else key, user)
            .offset(offset)
            .limit(limit)
        )
        if text:
            # The database lowers both, as each knows other alphabets.
            pattern = sa.func.lower(f"%{escaped(storable(text))}%")
            query = query.where(sa.func.lower(user).like(pattern, escape=ESCAPE))
        return self._rows(query.where(daily.c.key_id == key_id) if key_id else query)

    def _rows(self, query: sa.Select[Any]) -> list[tuple[Any, Counts]]:
        with reading(self._engine, LONG) as connection:
            return [(key, Counts(*map(int, counts))) for key, *counts in connection.execute(query)]


def _sums(table: sa.Table) -> Sequence[sa.ColumnElement[int]]:
    return [_sum(table.c[name]).label(name) for name in NAMES]


def _number(at: datetime, seconds: int) -> int:
    return int(at.timestamp()) // seconds


def _numbers(since: datetime, until: datetime) -> range:
    return range(_number(since, HOUR), _number(until, HOUR) + 1)


def _within_hours(since: datetime, until: datetime) -> sa.ColumnElement[bool]:
    hours = hourly.c.hour.between(_number(since, HOUR), _number(until, HOUR))
    return sa.and_(hours, _of_keys(hourly))


def _within_days(since: datetime, until: datetime) -> sa.ColumnElement[bool]:
    return daily.c.day.between(_number(since, DAY), _number(until, DAY))


def _of_keys(table: sa.Table) -> sa.ColumnElement[bool]:
    # Older versions of policyd counted refused keys here, under an empty key.
    return table.c.key_id != sa.literal_column("''")
