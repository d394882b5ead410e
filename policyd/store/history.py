"""A key's logged requests by kind. Requests of one kind are decided alike, whatever the settings:
so simulation.py decides each kind once, and not each request."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from policyd.decision_log.record import Record
from policyd.engine.model import Source
from policyd.store.database import LONG, reading
from policyd.store.decisions import LogFilter, conditions, decisions, read_record


@dataclass(frozen=True, slots=True)
class Kind:
    """What the decision on a request depends on, besides the settings."""

    in_scope: bool
    operation: str
    body_user: int
    body_safety_identifier: int
    overrides: str


_COLUMNS = tuple(decisions.c[name] for name in Kind.__slots__)


class History:
    """A key's requests between two moments, in the database of `engine`.

    Requests that were decided by a route's own settings are left out: the key's do not apply there.
    """

    def __init__(self, engine: sa.Engine, key_id: str, since: datetime, until: datetime) -> None:
        self._engine = engine
        wanted = LogFilter(key_id=key_id, since=since, until=until)
        by_route = decisions.c.source.is_not_distinct_from(int(Source.ROUTE))
        self._conditions = [*conditions(wanted), ~by_route]

    def kinds(self) -> list[tuple[Kind, int]]:
        """The kinds that there are, and how many requests are of each."""
        query = sa.select(*_COLUMNS, sa.func.count()).group_by(*_COLUMNS)
        return [(Kind(*kind), count) for *kind, count in self._rows(query)]

    def most(self, kinds: Iterable[Kind], name: str, limit: int) -> list[tuple[str, int]]:
        """The most frequent values of the column `name` in these kinds, and their counts."""
        column, count = decisions.c[name], sa.func.count()
        query = sa.select(column, count).where(_among(kinds)).group_by(column)
        return [tuple(row) for row in self._rows(query.order_by(count.desc(), column).limit(limit))]

    def newest(self, kinds: Iterable[Kind], limit: int) -> list[Record]:
        """The newest requests of these kinds."""
        query = sa.select(decisions).where(_among(kinds)).order_by(decisions.c.id.desc())
        return [read_record(row) for row in self._rows(query.limit(limit))]

    def _rows(self, query: sa.Select[Any]) -> list[Any]:
        with reading(self._engine, LONG) as connection:
            return list(connection.execute(query.where(*self._conditions)))


def _among(kinds: Iterable[Kind]) -> sa.ColumnElement[bool]:
    return sa.tuple_(*_COLUMNS).in_([astuple(kind) for kind in kinds])
