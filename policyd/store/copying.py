"""Copies a database into another one, of the same kind or the other: all tables, and its identity.

A copy may be interrupted at any moment, and the next run goes on from there: each batch is
committed together with the copy's progress. Until all rows are there and counted, no version of
policyd uses the new database.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from policyd.errors import StoreUnavailable
from policyd.store import identity as identities
from policyd.store import migrations
from policyd.store.database import MIGRATING, metadata, reading, storable, upsert, writing
from policyd.store.engine import make_file
from policyd.store.epochs import epochs
from policyd.store.schema import migrate
from policyd.store.workers import hosts

_BATCH = 1000
"""Rows of one transaction."""
_REASON = "policyd db copy has not filled it yet: run that again, which goes on where it was"
"""Why no version uses the database meanwhile."""
_progress = sa.Table(
    "schema_copy",
    sa.MetaData(),
    sa.Column("table_name", sa.String(64), primary_key=True),
    sa.Column("identity", sa.String(32), nullable=False),
    sa.Column("last_key", sa.Text, nullable=False),
    sa.Column("copied", sa.BigInteger, nullable=False),
    sa.Column("is_done", sa.Boolean, nullable=False),
)


class CopyRefused(StoreUnavailable):
    """This database cannot be copied into that one. The message says why."""


@dataclass(frozen=True, slots=True)
class Copied:
    """How far the copy of a table is."""

    table: str
    rows: int
    of: int


def copy(source: sa.Engine, target: sa.Engine, tell: Callable[[Copied], None]) -> dict[str, int]:
    """Copy every table, and `tell` how far each is. Returns how many rows each has in both.

    No process may write to the source meanwhile. Raises CopyRefused, StoreUnavailable.
    """
    identity = _check_source(source)
    make_file(target.url.render_as_string(hide_password=False))
    _migrate_unless_copying(target)
    _begin(target, identity)
    counts = {}
    for table in _tables():
        counts[table.name] = _count(source, table)
        _copy_table(source, target, table, counts[table.name], tell)
    for table in _tables():
        found = _count(target, table), _count(source, table)
        if found != (counts[table.name],) * 2:
            raise CopyRefused(
                f"{table.name} has {found[0]} rows in the copy and {found[1]} in the source, which "
                f"had {counts[table.name]}: something writes to one of the two. Stop it, empty "
                "the new database, and copy again"
            )
    _finish(target)
    return counts


def _tables() -> list[sa.Table]:
    """All but the epochs of revisions: the new database makes its own as its revision changes."""
    return [table for table in metadata.sorted_tables if table is not epochs]


def _migrate_unless_copying(target: sa.Engine) -> None:
    """Make the tables where they are missing."""
    with reading(target) as connection:
        found = migrations.form(connection)
    if found.reason != _REASON:
        migrate(target)
    elif found.revision != migrations.HEAD:
        raise CopyRefused("another version of policyd has begun to fill the new database: use that")


def _check_source(source: sa.Engine) -> str:
    with reading(source) as connection:
        found = migrations.form(connection)
        found.check()
        if found.revision != migrations.HEAD:
            raise CopyRefused(
                f"the database has the form {found.revision}, and this version copies the form "
                f"{migrations.HEAD}: use the version that made it"
            )
        if names := ", ".join(hosts(connection)):
            raise CopyRefused(f"policyd serve uses the database (on {names}): stop it first")
        return identities.read(connection)


def _begin(target: sa.Engine, identity: str) -> None:
    """Reserve the database for this copy. Raises CopyRefused where it is in use, or holds another
    copy."""
    with writing(target) as connection:
        _progress.create(connection, checkfirst=True)
        others = set(connection.execute(sa.select(_progress.c.identity)).scalars())
        if others == {identity}:
            return
        if others:
            raise CopyRefused("the new database holds part of the copy of another one: empty it")
        _check_unused(connection)
        migrations.close(connection, _REASON)
        for table in reversed(metadata.sorted_tables):
            connection.execute(sa.delete(table))
        rows = [
            {"table_name": table.name, "identity": identity, "last_key": "", "copied": 0}
            | {"is_done": False}
            for table in _tables()
        ]
        connection.execute(sa.insert(_progress), rows)


def _check_unused(connection: sa.Connection) -> None:
    for name in ("api_keys", "decisions", "hourly_counts", "workers"):
        table = metadata.tables[name]
        if connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first():
            raise CopyRefused(
                f"the new database is in use (it has rows in {name}): give an empty one"
            )


def _copy_table(
    source: sa.Engine,
    target: sa.Engine,
    table: sa.Table,
    rows: int,
    tell: Callable[[Copied], None],
) -> None:
    with reading(target) as connection:
        state = connection.execute(_state_of(table)).one()
    copied = state.copied
    if state.is_done:
        tell(Copied(table.name, copied, rows))
        return
    last = tuple(json.loads(state.last_key)) if state.last_key else None
    for batch in _batches(source, table, last):
        copied += len(batch)
        key = [batch[-1][column.name] for column in table.primary_key.columns]
        with writing(target) as connection:
            # A row that is there already is of an earlier run, and is written over.
            names = [c.name for c in table.columns if not c.primary_key]
            upsert(connection, table, batch, replace=names)
            _note(connection, table, last_key=json.dumps(key), copied=copied)
        tell(Copied(table.name, copied, rows))
    with writing(target) as connection:
        _note(connection, table, is_done=True)
    tell(Copied(table.name, copied, rows))


def _state_of(table: sa.Table) -> sa.Select[Any]:
    return sa.select(_progress).where(_progress.c.table_name == table.name)


def _note(connection: sa.Connection, table: sa.Table, **values: object) -> None:
    of_table = _progress.c.table_name == table.name
    connection.execute(sa.update(_progress).where(of_table).values(values))


def _batches(
    source: sa.Engine, table: sa.Table, last: tuple[Any, ...] | None
) -> Iterator[list[dict[str, Any]]]:
    key = list(table.primary_key.columns)
    query = sa.select(table).order_by(*key).limit(_BATCH)
    while True:
        page = query if last is None else query.where(_after(key, last))
        with reading(source) as connection:
            found = connection.execute(page).mappings().all()
        if not found:
            return
        yield [{name: storable(value) for name, value in row.items()} for row in found]
        last = tuple(found[-1][column.name] for column in key)


def _after(key: list[sa.Column[Any]], last: tuple[Any, ...]) -> sa.ColumnElement[bool]:
    return key[0] > last[0] if len(key) == 1 else sa.tuple_(*key) > sa.tuple_(*last)


def _count(engine: sa.Engine, table: sa.Table) -> int:
    with reading(engine, MIGRATING) as connection:
        query = sa.select(sa.func.count()).select_from(table)
        return int(connection.execute(query).scalar_one())


def _finish(target: sa.Engine) -> None:
    with writing(target) as connection:
        # Servers that knew the source find a new revision, and read all keys anew.
        revision = metadata.tables["revision"]
        connection.execute(sa.update(revision).values(value=revision.c.value + 1))
        migrations.close(connection, "")
        _progress.drop(connection)
