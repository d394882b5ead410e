"""Transactions on SQLite and PostgreSQL: what they may take, their errors, and what both can store.

Every call to the store is one reading() or writing(). Each checks that the database is still the
one that the server started with (identity.py), ends within its bound, and reports what goes wrong
as StoreUnavailable. A write on SQLite takes the write lock first (BEGIN IMMEDIATE): a transaction
that reads first could not write once another one has written. After its commit the file is looked
at again, as a program may have replaced it (database_file.py).
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from policyd.command import deadline
from policyd.errors import StoreUnavailable, StoreUnusable
from policyd.store import database_file, identity, sqlite_errors
from policyd.store.engine import timeout_of

_READ_ONLY = "25006"
"""PostgreSQL's code for a change in a read-only transaction."""

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


MOST = 2**62
"""The largest count, which fits into a BIGINT."""

metadata = sa.MetaData()


@dataclass(frozen=True, slots=True)
class Bound:
    """Seconds that an extraordinary call may take: all of it, and each of its statements.

    None: each statement may take as long as an ordinary call.
    """

    total: float
    statement: float | None = None


SHIPPING = Bound(120.0)
"""Many small statements. Each has the usual time, so a silent database is noticed as soon as
usual."""
LONG = Bound(300.0, 300.0)
"""Calls that may look at every row of the log: statistics, simulations, exports, retention."""
MIGRATING = Bound(24 * 3600.0, 24 * 3600.0)
"""Calls that may build an index over every row, or wait for another process that does."""

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
    """`value` as every database takes it: PostgreSQL cannot store a NUL in a text."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value


ESCAPE = "\\"
"""Stands before a character that LIKE is to take as it is."""


def escaped(text: str) -> str:
    """`text` as a pattern of LIKE that matches it alone."""
    for one in (ESCAPE, "%", "_"):
        text = text.replace(one, ESCAPE + one)
    return text


@contextmanager
def errors(file: Path | None) -> Iterator[None]:
    """Report errors of the database as StoreUnavailable. `file` is SQLite's."""
    try:
        yield
    except SQLAlchemyError as error:
        # The driver's own message: SQLAlchemy's would add the statement.
        cause = getattr(error, "orig", None)
        if getattr(cause, "sqlstate", None) == _READ_ONLY:
            raise StoreUnavailable(identity.READ_ONLY) from error
        code = getattr(cause, "sqlite_errorcode", 0)
        if code & 0xFF in _DAMAGE:
            raise damaged(str(cause), file) from error
        words = (str(cause or error).strip().splitlines() or [type(error).__name__])[0]
        if words == "interrupted":
            words = deadline.OVERDUE
        fix = sqlite_errors.advice(code, file) if file else ""
        raise StoreUnavailable(
            f"the database {f'{file} ' if file else ''}cannot be used: {words}"
            + (f"; {fix}" if fix else "")
        ) from error


def damaged(cause: str, file: Path | None) -> StoreUnusable:
    """The error for a SQLite `file` that is damaged, or is no SQLite file."""
    return StoreUnusable(
        f"the database {f'{file} ' if file else ''}is damaged: {cause}. Stop policyd, keep the "
        "file for a rescue, and put a backup in its place (policyd db restore)"
    )


def file_of(engine: sa.Engine) -> Path | None:
    """The file of a SQLite database."""
    name = engine.url.database if engine.dialect.name == "sqlite" else None
    return Path(name).absolute() if name else None


@contextmanager
def reading(
    engine: sa.Engine, bound: Bound | None = None, *, is_snapshot: bool = False
) -> Iterator[sa.Connection]:
    """A connection to read with. Raises StoreUnavailable, also where the block takes too long.

    With `is_snapshot`, all statements read the database as it was at the first one. On SQLite they
    always do.
    """
    is_asked = is_snapshot and engine.dialect.name == "postgresql"
    options = {"isolation_level": "REPEATABLE READ"} if is_asked else {}
    with _bounded(engine, bound, **options) as connection:
        identity.check(connection)
        yield connection


@contextmanager
def writing(engine: sa.Engine, bound: Bound | None = None) -> Iterator[sa.Connection]:
    """A transaction that is committed at the end of the block. Raises StoreUnavailable, like
    reading()."""
    with _bounded(engine, bound, policyd_begin="BEGIN IMMEDIATE") as connection:
        if not connection.in_transaction():
            connection.begin()
        identity.check(connection)
        yield connection
        connection.commit()
        database_file.confirm(connection)


@contextmanager
def _bounded(engine: sa.Engine, bound: Bound | None, **options: str) -> Iterator[sa.Connection]:
    timeout = timeout_of(engine)
    with ExitStack() as ending:
        ending.enter_context(errors(file_of(engine)))
        ending.enter_context(deadline.within(max(bound.total, timeout) if bound else timeout))
        connection = ending.enter_context(engine.connect())
        connection.execution_options(**options)
        if bound and bound.statement:
            ending.enter_context(_long_statements(connection, max(bound.statement, timeout)))
        yield connection


@contextmanager
def _long_statements(connection: sa.Connection, seconds: float) -> Iterator[None]:
    """Allow each statement of the transaction that begins here so many seconds, on PostgreSQL:
    SQLite has no bound for a single statement."""
    if connection.dialect.name != "postgresql":
        yield
        return
    from policyd.store.postgresql import BoundedConnection, allow_statements

    driver = connection.connection.driver_connection
    assert isinstance(driver, BoundedConnection)
    driver.statement = seconds
    try:
        allow_statements(connection, seconds)
        yield
    finally:
        driver.statement = 0.0


def _sum(one: sa.ColumnElement[int], other: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    # A number that does not fit would fail the transaction at every try.
    return sa.case((one > MOST - other, MOST), else_=one + other)


def upsert(
    connection: sa.Connection,
    table: sa.Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    add: Sequence[str] = (),
    replace: Sequence[str] = (),
) -> None:
    """Insert the rows; where one is there already, add to some of its columns and replace others.

    Sums grow up to 2**62.
    """
    if rows:
        statement = _upsertion(connection.dialect.name, table, tuple(add), tuple(replace))
        connection.execute(statement, rows)


# Statements are built once, as building one takes longer than executing it; so are find()'s.
@lru_cache
def _upsertion(
    dialect: str, table: sa.Table, add: Sequence[str], replace: Sequence[str]
) -> sa.Insert:
    insert: Any = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement = insert(table)
    new = statement.excluded
    changes: dict[str, Any] = {name: _sum(table.c[name], new[name]) for name in add}
    changes |= {name: new[name] for name in replace}
    key = list(table.primary_key.columns)
    if changes:
        found: sa.Insert = statement.on_conflict_do_update(index_elements=key, set_=changes)
    else:
        found = statement.on_conflict_do_nothing(index_elements=key)
    return found


def find(
    connection: sa.Connection,
    key: sa.Column[str],
    values: Iterable[str],
    *more: sa.Column[Any],
    query: Callable[..., sa.Select[Any]] = sa.select,
) -> Sequence[Any]:
    """The rows in which `key` has one of many values: that column and `more`."""
    wanted: Any = list(values)
    if not wanted:
        return ()
    dialect = connection.dialect.name
    if dialect != "postgresql":
        wanted = msgspec.json.encode(wanted).decode()
    return connection.execute(_search(dialect, key, more, query), {"values": wanted}).all()


@lru_cache
def _search(
    dialect: str,
    key: sa.Column[str],
    more: tuple[sa.Column[Any], ...],
    query: Callable[..., sa.Select[Any]],
) -> sa.Select[Any]:
    # One parameter for all values: SQLAlchemy would build a new statement for each number of them.
    given = key == sa.any_(_LIST) if dialect == "postgresql" else key.in_(_JSON)
    return query(key, *more).where(given)


_LIST = sa.bindparam("values", type_=postgresql.ARRAY(sa.Text))
_JSON: sa.Select[Any] = sa.select(sa.column("value")).select_from(
    sa.func.json_each(sa.bindparam("values"))
)
