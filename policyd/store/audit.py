"""The audit trail: what administrators changed, and when they signed in and took copies of the log.

A record of a change is written in the transaction of the change. One row counts the records and is
locked with each, so that their numbers come in the order of their commits.

Up to MAX_RECORDS stay for ever; beyond that, the oldest go. Of failed attempts to sign in, which
any stranger can make, only the newest MAX_FAILED stay, so that they push out no other record.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from policyd.keys.audit import Action, AuditRecord, Fields
from policyd.store.clock import database_time
from policyd.store.database import Moment, metadata, reading, storable, writing

MAX_RECORDS = 1_000_000
MAX_FAILED = 10_000
_ACTOR = 200
"""Characters of an actor that are kept."""

_records = sa.Table(
    "audit_records",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at", Moment, nullable=False),
    sa.Column("actor", sa.String(_ACTOR), nullable=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("key_id", sa.String(32), nullable=False),
    sa.Column("key_name", sa.String(200), nullable=False),
    sa.Column("before", sa.Text, nullable=False),
    sa.Column("after", sa.Text, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Index("ix_audit_records_key", "key_id", "id"),
    sa.Index("ix_audit_records_action", "action", "id"),
)
_count = sa.Table(
    "audit_count",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)


class Entry(NamedTuple):
    """What a record is to say about one act."""

    action: str
    by: str
    key_id: str = ""
    key_name: str = ""
    changed: tuple[Fields, Fields] = ({}, {})
    """The fields that changed: as they were, and as they are."""
    revision: int = 0


class Audit:
    """The audit trail in the database of `engine`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, action: str, by: str, after: Fields | None = None) -> None:
        """Note an act that changes no settings: an Action, and its details in `after`."""
        with writing(self._engine) as connection:
            add(connection, [Entry(action, by, changed=({}, after or {}))])

    def list(
        self,
        *,
        key_id: str = "",
        action: str = "",
        by: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        before_id: int = 0,
        limit: int = 100,
    ) -> list[AuditRecord]:
        """Up to `limit` records that match all that is given, newest first: of a key, of an action,
        of actors whose names contain `by`, made at `since` or later and before `until`, and with a
        number below `before_id`."""
        column = _records.c
        given = (
            (key_id, column.key_id == storable(key_id)),
            (action, column.action == storable(action)),
            (by, column.actor.contains(storable(by), autoescape=True)),
            (before_id, column.id < before_id),
        )
        query = sa.select(_records).where(*(where for value, where in given if value))
        if since is not None:
            query = query.where(column.at >= since)
        if until is not None:
            query = query.where(column.at < until)
        with reading(self._engine) as connection:
            rows = connection.execute(query.order_by(column.id.desc()).limit(limit))
            return [_record(row) for row in rows]


def add(connection: sa.Connection, entries: Sequence[Entry]) -> None:
    """Write a record of each entry, in the transaction that `connection` is in."""
    if not entries:
        return
    count = sa.update(_count).values(value=_count.c.value + len(entries))
    last: int = connection.execute(count.returning(_count.c.value)).scalar_one()
    at = database_time(connection)
    first = last - len(entries) + 1
    rows = [{"id": number, "at": at} | _row(one) for number, one in enumerate(entries, first)]
    connection.execute(sa.insert(_records), rows)
    connection.execute(sa.delete(_records).where(_records.c.id <= last - MAX_RECORDS))
    if any(one.action == Action.SIGN_IN_FAILED for one in entries):
        _forget_failed(connection)


def _forget_failed(connection: sa.Connection) -> None:
    failed = _records.c.action == Action.SIGN_IN_FAILED
    newest = sa.select(_records.c.id).where(failed).order_by(_records.c.id.desc())
    beyond = newest.offset(MAX_FAILED).limit(1).scalar_subquery()
    connection.execute(sa.delete(_records).where(failed, _records.c.id <= beyond))


def _row(entry: Entry) -> dict[str, Any]:
    actor = "".join(one for one in entry.by if one.isprintable())
    before, after = entry.changed
    return {
        "actor": actor[:_ACTOR],
        "action": str(entry.action),
        "key_id": entry.key_id,
        "key_name": entry.key_name,
        "before": _text(before),
        "after": _text(after),
        "revision": entry.revision,
    }


def _text(fields: Fields) -> str:
    return json.dumps(fields, separators=(",", ":"))


def _record(row: Any) -> AuditRecord:
    return AuditRecord(
        id=row.id,
        at=row.at,
        by=row.actor,
        action=row.action,
        key_id=row.key_id,
        key_name=row.key_name,
        before=json.loads(row.before),
        after=json.loads(row.after),
        revision=row.revision,
    )
