"""How policyd talks to SQLite and PostgreSQL: the engine, its errors, and what they do unlike."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from policyd.errors import SettingsError, StoreUnavailable
from policyd.places import sqlite_file
from policyd.private_files import close_to_others, make_file

_SQLITE_WAIT = 10.0
"""Seconds that a writer waits for another one's transaction."""

_MOST = 2**62
"""Of a count: it fits into a BIGINT."""

_PATIENCE = {"connect_timeout": "10", "tcp_user_timeout": "30000"}
"""How long PostgreSQL's client waits for a server that says nothing, in s and ms. The URL may say
otherwise."""

_BESIDE = ("-wal", "-shm", "-journal")
"""Of SQLite's files beside a database, which have its mode when they are made."""

metadata = sa.MetaData()

Id = sa.String(32).with_variant(sa.String(32, collation="C"), "postgresql")
"""An ID whose order is that of its bytes, whatever the database's language."""


class Moment(sa.TypeDecorator[datetime]):
    """A moment in UTC. SQLite drops the zone, so it is put back."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: object) -> datetime | None:
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


def now() -> datetime:
    """This moment, in UTC."""
    return datetime.now(UTC)


def storable(value: Any) -> Any:
    """`value` as every database takes it: PostgreSQL has no way to keep a NUL in a text."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value


def open_engine(url: str) -> sa.Engine:
    """The engine for `url`. Raises SettingsError."""
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() == "postgresql":
            parsed = parsed.set(query=_PATIENCE | dict(parsed.query))
        engine = sa.create_engine(parsed, pool_pre_ping=True, hide_parameters=True)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError) as error:
        # The URL may hold a password, so the message does not repeat it.
        raise SettingsError(
            "--database-url is not usable: give sqlite:///FILE, or "
            "postgresql+psycopg://USER@HOST/NAME with the extra policyd[postgresql] "
            f"({type(error).__name__})"
        ) from None
    if engine.dialect.name == "sqlite":
        file = sqlite_file(url)
        if file is None:
            raise SettingsError(
                "--database-url must name a file: a database in memory cannot be shared"
            )
        real = os.path.realpath(file)  # SQLite puts its other files beside that.
        for ending in ("", *_BESIDE):
            close_to_others(Path(real + ending))
        event.listen(engine, "do_connect", _make_sqlite_file)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_sqlite_file(_: object, __: object, where: Sequence[Any], how: Mapping[str, Any]) -> None:
    if not how.get("uri"):
        make_file(Path(where[0]))


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # The driver leaves transactions to _begin_sqlite.
    connection.execute(f"PRAGMA busy_timeout = {int(_SQLITE_WAIT * 1000)}")
    connection.execute("PRAGMA journal_mode = WAL")  # Readers do not wait for a writer.


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("policyd_begin", "BEGIN"))


@contextmanager
def errors() -> Iterator[None]:
    """Report what the database says as StoreUnavailable."""
    try:
        yield
    except SQLAlchemyError as error:
        # The driver's own words; SQLAlchemy's would add the statement.
        words = str(getattr(error, "orig", None) or error).strip().splitlines()
        cause = words[0] if words else type(error).__name__
        raise StoreUnavailable(f"the database cannot be used: {cause}") from error


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection to read by. Raises StoreUnavailable."""
    with errors(), engine.connect() as connection:
        yield connection


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that writes, committed at the end. Raises StoreUnavailable."""
    with errors(), engine.connect() as connection:
        # SQLite: a transaction that reads first could not write once another one has written.
        connection.execution_options(policyd_begin="BEGIN IMMEDIATE")
        with connection.begin():
            yield connection


def _sum(one: sa.ColumnElement[int], other: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    # A number that does not fit would fail the transaction, however often it is tried.
    return sa.case((one > _MOST - other, _MOST), else_=one + other)


def upsert(
    connection: sa.Connection,
    table: sa.Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    add: Sequence[str] = (),
    replace: Sequence[str] = (),
) -> None:
    """Insert the rows; where one is there already, add to some columns and replace others.

    What is added to grows up to 2**62.
    """
    if not rows:
        return
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table)
    new = statement.excluded
    changes: dict[str, Any] = {name: _sum(table.c[name], new[name]) for name in add}
    changes |= {name: new[name] for name in replace}
    key = list(table.primary_key.columns)
    if changes:
        statement = statement.on_conflict_do_update(index_elements=key, set_=changes)
    else:
        statement = statement.on_conflict_do_nothing(index_elements=key)
    connection.execute(statement, rows)
