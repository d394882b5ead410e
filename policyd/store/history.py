"""A key's logged requests by kind. Requests of one kind get the same decision, whatever the
settings: so simulation.py decides each kind once, and not each request."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from policyd.decision_log.record import Record
from policyd.engine.policy import Need
from policyd.engine.states import Source
from policyd.policies import TABLE
from policyd.store.database import LONG, reading
from policyd.store.decisions import decisions, read_record
from policyd.store.log_filter import LogFilter, conditions


class Kind(NamedTuple):
    """What the decision on a request depends on, besides the settings, and what simulations show of
    it. The fields are a Record's. What no policy looks at is left out: "" or None."""

    in_scope: bool
    operation: str
    body_user: int
    body_safety_identifier: int
    overrides: str
    end_users: str
    header_overrides: str
    model_state: int
    model: str
    user_agent: str
    path: str
    identifier: str
    end_user: str
    token_limit: int | None
    prompt_chars: int | None


class Group(NamedTuple):
    """The requests of one kind."""

    kind: Kind
    requests: int
    newest: str
    """The ID of the newest decision."""


_DETAILS = {
    "path": Need.MODEL,
    "identifier": Need.END_USER_VALUE,
    "end_user": Need.END_USER_VALUE,
    "token_limit": Need.TOKEN_LIMIT,
    "prompt_chars": Need.PROMPT_CHARS,
}
"""Columns with so many different values that they are read only where a policy looks at them."""
_BY_HEADER = frozenset(need for policy in TABLE.by_header.values() for need in policy.needs)


_NO_TEXT: sa.ColumnElement[Any] = sa.literal_column("''")
_NO_NUMBER: sa.ColumnElement[Any] = sa.literal_column("NULL")


class History:
    """A key's requests between two moments, in the database of `engine`.

    Requests that were decided by a route's own settings are left out: the key's do not apply there.
    `needs` are what the policies that are set look at.
    """

    def __init__(
        self,
        engine: sa.Engine,
        key_id: str,
        since: datetime,
        until: datetime,
        needs: frozenset[Need],
    ) -> None:
        self._engine = engine
        wanted = LogFilter(key_id=key_id, since=since, until=until)
        by_route = decisions.c.source.is_not_distinct_from(int(Source.ROUTE))
        self._conditions = [*conditions(wanted), ~by_route]
        self._columns = [_column(name, needs) for name in Kind._fields]

    def groups(self) -> Iterator[Group]:
        """The kinds of requests that occur, with their numbers."""
        found = (*self._columns, sa.func.count(), sa.func.max(decisions.c.id))
        differing = [one for one in self._columns if one is not _NO_TEXT and one is not _NO_NUMBER]
        query = sa.select(*found).group_by(*differing)
        for *kind, count, last in self._rows(query):
            yield Group(Kind(*kind), count, last)

    def newest(self, kinds: Iterable[Kind], limit: int) -> list[Record]:
        """The newest requests of these few kinds."""
        among = sa.or_(
            *(
                sa.and_(
                    *(
                        column.is_not_distinct_from(value)
                        for column, value in zip(self._columns, kind, strict=True)
                    )
                )
                for kind in kinds
            )
        )
        query = sa.select(decisions).where(among).order_by(decisions.c.id.desc())
        return [read_record(row) for row in self._rows(query.limit(limit))]

    def _rows(self, query: sa.Select[Any]) -> list[Any]:
        with reading(self._engine, LONG) as connection:
            return list(connection.execute(query.where(*self._conditions)))


def _column(name: str, needs: frozenset[Need]) -> sa.ColumnElement[Any]:
    column: sa.ColumnElement[Any] = decisions.c[name]
    need = _DETAILS.get(name)
    if need is None or need in needs:
        return column
    nothing = _NO_TEXT if isinstance(column.type, sa.String) else _NO_NUMBER
    if need not in _BY_HEADER:
        return nothing
    # A header may set a policy that looks at it.
    has_header = decisions.c.header_overrides.not_in([sa.literal_column("''")])
    return sa.case((has_header, column), else_=nothing)
