"""The list of API keys as administrators look through it: searched, sorted, a page at a time.

When a key was used last is looked up in the log, along its index of keys: one entry for each key
that is asked for, however many rows the log has. (PostgreSQL looks once in each day's partition.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from policyd.decision_log.record import moment
from policyd.engine.settings import ApiKey
from policyd.store.database import ESCAPE, LONG, escaped, reading, storable
from policyd.store.decisions import decisions
from policyd.store.key_rows import api_key_of, keys

_newest = (
    sa.select(sa.func.max(decisions.c.id))
    .where(decisions.c.key_id == keys.c.id)
    .correlate(keys)
    .scalar_subquery()
)
_SORTS: dict[str, sa.ColumnElement[str] | sa.Column[datetime]] = {
    "name": sa.func.lower(keys.c.name),
    "created": keys.c.created_at,
    # SQLite and PostgreSQL sort NULL to different ends.
    "used": sa.func.coalesce(_newest, sa.literal_column("''")),
}
SORTS = tuple(_SORTS)
"""What keys can be sorted by."""


@dataclass(frozen=True, slots=True)
class KeyFilter:
    """Which keys are wanted."""

    text: str = ""
    """A part of the name in any letter case, the ID, or the last characters of the key itself."""
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
        offset: int = 0,
        limit: int = 100,
    ) -> list[ApiKey]:
        """Up to `limit` keys, behind the first `offset`. `sort` is one of SORTS."""
        by = _SORTS[sort]
        query = sa.select(keys).where(*_conditions(wanted))
        query = query.order_by(by.desc() if descending else by, keys.c.created_at, keys.c.id)
        with reading(self._engine, LONG) as connection:
            rows = connection.execute(query.offset(offset).limit(limit))
            return [api_key_of(row) for row in rows]

    def chosen(self, ids: Sequence[str]) -> list[ApiKey]:
        """The keys with these IDs, oldest first. IDs that no key has are left out."""
        wanted = [storable(one) for one in ids]
        query = sa.select(keys).where(keys.c.id.in_(wanted))
        with reading(self._engine) as connection:
            rows = connection.execute(query.order_by(keys.c.created_at, keys.c.id))
            return [api_key_of(row) for row in rows]

    def last_used(self, ids: Sequence[str]) -> dict[str, datetime]:
        """When each of these keys was used last, as far as the log goes back; without those that
        the log does not have."""
        query = sa.select(keys.c.id, _newest).where(keys.c.id.in_(ids))
        with reading(self._engine, LONG) as connection:
            return {key: moment(last) for key, last in connection.execute(query) if last}


def _conditions(wanted: KeyFilter) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    if not wanted.show_revoked:
        found.append(keys.c.revoked_at.is_(None))
    if text := storable(wanted.text):
        # The database lowers both, as each knows other alphabets.
        pattern = sa.func.lower(f"%{escaped(text)}%")
        in_name = sa.func.lower(keys.c.name).like(pattern, escape=ESCAPE)
        found.append(in_name | (keys.c.id == text) | (keys.c.suffix == text))
    return found
