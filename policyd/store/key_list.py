"""The list of API keys as administrators look through it: searched, sorted, a page at a time.

A page begins after a key, or ends before one, and is read along an index from there, so that every
page costs the same. Two kinds of pages have no index: those sorted by "used", which is looked up in
the log for every key, and searches in names, which read keys until a page is full.

When a key was last used is looked up in the log, along its index of keys: one entry for each key
that is asked for, however many rows the log has. (PostgreSQL looks once in each day's partition.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from policyd.decision_log.record import moment
from policyd.engine.settings import ApiKey
from policyd.keys.api_key import is_id
from policyd.store.database import ESCAPE, LONG, escaped, reading, storable
from policyd.store.decisions import decisions
from policyd.store.key_rows import api_key_of, keys

_newest = (
    sa.select(sa.func.max(decisions.c.id))
    .where(decisions.c.key_id == keys.c.id)
    .correlate(keys)
    .scalar_subquery()
)
_age = (keys.c.created_at, keys.c.id)
_SORTS: dict[str, tuple[sa.ColumnElement[Any], ...]] = {
    "name": (sa.func.lower(keys.c.name), *_age),
    "created": _age,
    # SQLite and PostgreSQL sort NULL to different ends.
    "used": (sa.func.coalesce(_newest, sa.literal_column("''")), *_age),
}
SORTS = tuple(_SORTS)
"""What keys can be sorted by."""


@dataclass(frozen=True, slots=True)
class KeyFilter:
    """Which keys are wanted."""

    text: str = ""
    """A part of the name in any letter case, the last characters of the key itself, or its ID."""
    show_revoked: bool = False


class KeyList:
    """The API keys in the database of `engine`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def page(
        self,
        wanted: KeyFilter,
        *,
        sort: str = "created",
        descending: bool = False,
        after: str = "",
        before: str = "",
        limit: int = 100,
    ) -> list[ApiKey]:
        """Up to `limit` keys: the first ones after the key with the ID `after`, or the last ones
        before the key with the ID `before`. `sort` is one of SORTS.

        Where that key does not exist, the first ones of all.
        """
        with reading(self._engine, LONG) as connection:
            place = _place(connection, sort, after or before) if after or before else None
            is_turned = place is not None and not after
            query = page_query(wanted, sort, place, is_descending=descending != is_turned)
            found = [api_key_of(row) for row in connection.execute(query.limit(limit))]
            return found[::-1] if is_turned else found

    def chosen(self, ids: Sequence[str]) -> list[ApiKey]:
        """The keys with these IDs, oldest first. IDs that no key has are left out."""
        wanted = [storable(one) for one in ids]
        query = sa.select(keys).where(keys.c.id.in_(wanted))
        with reading(self._engine) as connection:
            rows = connection.execute(query.order_by(keys.c.created_at, keys.c.id))
            return [api_key_of(row) for row in rows]

    def last_used(self, ids: Sequence[str]) -> dict[str, datetime]:
        """When each of these keys was last used, as far as the log goes back; without keys that the
        log does not have."""
        query = sa.select(keys.c.id, _newest).where(keys.c.id.in_(ids))
        with reading(self._engine, LONG) as connection:
            return {key: moment(last) for key, last in connection.execute(query) if last}


def _place(connection: sa.Connection, sort: str, key_id: str) -> Sequence[Any] | None:
    """Where a key stands in this order. None: there is no such key."""
    query = sa.select(*_SORTS[sort]).where(keys.c.id == storable(key_id))
    return connection.execute(query).one_or_none()


def page_query(
    wanted: KeyFilter, sort: str, place: Sequence[Any] | None, *, is_descending: bool
) -> sa.Select[Any]:
    """The query of keys after a place in this order, or of all."""
    order = _SORTS[sort]
    query = sa.select(keys).where(*_conditions(wanted))
    if place is not None:
        here = sa.tuple_(*order)
        there = sa.tuple_(*place, types=[column.type for column in order])
        query = query.where(here < there if is_descending else here > there)
        # SQLite uses no index to compare a tuple that begins with an expression.
        query = query.where(order[0] <= place[0] if is_descending else order[0] >= place[0])
    return query.order_by(*(column.desc() if is_descending else column for column in order))


def _conditions(wanted: KeyFilter) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    if not wanted.show_revoked:
        found.append(keys.c.revoked_at.is_(None))
    text = storable(wanted.text)
    if is_id(text):
        found.append(keys.c.id == text)
    elif text:
        # The database lowers both, as each knows other alphabets.
        pattern = sa.func.lower(f"%{escaped(text)}%")
        in_name = sa.func.lower(keys.c.name).like(pattern, escape=ESCAPE)
        found.append(in_name | (keys.c.suffix == text))
    return found
