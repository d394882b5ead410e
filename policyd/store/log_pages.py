"""Reads pages of the log, along its indexes.

With a filter that no index serves and few rows match, reading a page would look at every row.
search() reads such a page in stretches of time that grow while they are quick, and stops after
_SEARCH seconds: so it costs about the same whatever the log holds, says how far it has looked, and
can go on from there.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import sqlalchemy as sa

from policyd.decision_log.record import Record
from policyd.store.decisions import decisions, read_record
from policyd.store.log_filter import LogFilter, conditions, equal, ids

_AT_ONCE = 8
"""Sets of flags that one query looks for."""
_SEARCH = 1.0
"""Seconds after which a search begins no further stretch."""
_QUICK = 0.05
"""Seconds of a quick stretch. After a quick one, the next is _GROWS times as long, else twice."""
_FIRST = 60_000
"""Milliseconds of the first stretch."""
_GROWS = 8
_END = "g"
"""Sorts after every ID."""
_PREFIX = 12
"""The digits of an ID that are its millisecond."""


class Page(NamedTuple):
    """Decisions in order, and where a search has stopped."""

    records: list[Record]
    reached: str = ""
    """The ID after which to go on, where the search stopped before the page was full; "" where it
    has come to its end."""


def newest(
    connection: sa.Connection,
    wanted: LogFilter,
    after: str,
    newer_than: str,
    limit: int,
    *,
    ascending: bool = False,
) -> list[Record]:
    """The page of Log.page(), or the same from its oldest end."""
    every = _flag_sets(connection, wanted)
    if every is None:
        query = page_query(wanted, after, newer_than, limit, ascending=ascending)
        return [read_record(row) for row in connection.execute(query)]
    rows: list[sa.Row[Any]] = []
    for start in range(0, len(every), _AT_ONCE):
        some = every[start : start + _AT_ONCE]
        query = page_query(wanted, after, newer_than, limit, some, ascending=ascending)
        rows += connection.execute(query)
    rows.sort(key=lambda row: row.id, reverse=not ascending)
    return [read_record(row) for row in rows[:limit]]


def search(
    connection: sa.Connection,
    wanted: LogFilter,
    after: str,
    newer_than: str,
    limit: int,
    *,
    ascending: bool = False,
) -> Page:
    """The same page, within bounded time: see above."""
    if not wanted.needs_search:
        return Page(newest(connection, wanted, after, newer_than, limit, ascending=ascending))
    found: list[Record] = []
    stretches = _Stretches(connection, wanted, after, newer_than, ascending=ascending)
    # Without further bounds of time, as SQLite follows an index only between one pair of them.
    within = replace(wanted, since=None, until=None)
    for newer, older in stretches:
        missing = limit - len(found)
        found += newest(connection, within, older, newer, missing, ascending=ascending)
        if len(found) == limit:
            return Page(found)
    return Page(found, stretches.reached)


class _Stretches:
    """Stretches of the log, one after the other from one of its ends, until _SEARCH seconds have
    passed: each a pair of bounds of IDs, of which the first is less."""

    def __init__(
        self,
        connection: sa.Connection,
        wanted: LogFilter,
        after: str,
        newer_than: str,
        *,
        ascending: bool,
    ) -> None:
        bounds = LogFilter(since=wanted.since, until=wanted.until)
        # Two queries: SQLite would read every row for both ends at once.
        self._first, self._last = (
            connection.execute(
                _between(sa.select(end), after, newer_than).where(*conditions(bounds))
            ).scalar_one()
            for end in (sa.func.min(decisions.c.id), sa.func.max(decisions.c.id))
        )
        self._after, self._newer_than = after, newer_than
        self._ascending = ascending
        self.reached = ""
        """See Page."""

    def __iter__(self) -> Iterator[tuple[str, str]]:
        if self._first is None or self._last is None:
            return
        bottom, top = (int(one[:_PREFIX], 16) for one in (self._first, self._last))
        top += 1
        width, began = _FIRST, time.monotonic()
        while bottom < top:
            before = time.monotonic()
            if self._ascending:
                low, high = bottom, min(bottom + width, top)
                bottom = high
            else:
                low, high = max(top - width, bottom), top
                top = low
            # Within a millisecond, the given IDs are the bounds.
            yield max(_bound(low), self._newer_than), min(_bound(high), self._after or _END)
            now = time.monotonic()
            if now - began > _SEARCH and bottom < top:
                self.reached = _bound(bottom if self._ascending else top).ljust(32, "0")
                return
            width *= _GROWS if now - before < _QUICK else 2


def _bound(milliseconds: int) -> str:
    """A bound that is less than each ID of this millisecond or later, and more than each earlier
    one."""
    return f"{milliseconds:0{_PREFIX}x}"


def _flag_sets(connection: sa.Connection, wanted: LogFilter) -> list[str] | None:
    """The sets of flags in the log that hold the wanted ones. None: every set is wanted."""
    if not wanted.flags:
        return None
    found = connection.execute(flag_sets_query()).scalars()
    return [one for one in found if wanted.flags <= set(one.split(","))]


def flag_sets_query() -> sa.Select[Any]:
    """The query of the different sets of flags in the log. It reads one entry of the index for each
    set, as it looks for the next larger one each time."""
    flags = decisions.c.flags
    least = sa.select(sa.func.min(flags)).where(flags != sa.literal_column("''"))
    sets = least.cte("sets", recursive=True)
    known = sets.c[0]
    following = least.where(flags > known).correlate(sets).scalar_subquery()
    sets = sets.union_all(sa.select(following).where(known.is_not(None)))
    return sa.select(sets.c[0]).where(sets.c[0].is_not(None))


def page_query(
    wanted: LogFilter,
    after: str,
    newer_than: str,
    limit: int,
    flag_sets: Sequence[str] = (),
    *,
    ascending: bool = False,
) -> sa.Select[Any]:
    """The query of a page: it follows an index from its newest end, or its oldest, and stops at
    `limit`.

    `flag_sets` are the sets of flags that are wanted, where a flag is.
    """
    query = _between(sa.select(decisions).where(*conditions(wanted)), after, newer_than)
    if not (flag_sets or wanted.any_id):
        return query.order_by(_order(decisions.c.id, ascending)).limit(limit)
    # Rows found along one index are in order of time, but those of several indexes are not. So up
    # to `limit` rows are read along each, and sorted together.
    flags, sought = [equal("flags", one) for one in flag_sets], ids(wanted.any_id)
    if flags and sought:
        query = query.where(sa.or_(*(sa.and_(*one) for one in flags)))
    query = query.order_by(_order(decisions.c.id, ascending)).limit(limit)
    parts = [sa.select(query.where(*one).subquery()) for one in sought or flags]
    every = (sa.union if sought else sa.union_all)(*parts).subquery()
    return sa.select(every).order_by(_order(every.c.id, ascending)).limit(limit)


def _between(query: sa.Select[Any], after: str, newer_than: str) -> sa.Select[Any]:
    if after:
        query = query.where(decisions.c.id < after)
    return query.where(decisions.c.id > newer_than) if newer_than else query


def _order(column: sa.ColumnElement[Any], ascending: bool) -> sa.ColumnElement[Any]:
    return column if ascending else column.desc()


def usage_query(users: Sequence[str], key_id: str, limit: int) -> sa.CompoundSelect[Any]:
    """End user, model and key of the newest `limit` requests of each of these end users."""
    column = decisions.c
    query = sa.select(column.end_user, column.model, column.key_id).where(
        *conditions(LogFilter(key_id=key_id))
    )
    parts = [
        query.where(*equal("end_user", user)).order_by(column.id.desc()).limit(limit).subquery()
        for user in users
    ]
    return sa.union_all(*map(sa.select, parts))
