"""How policyd talks to SQLite and PostgreSQL: the engine, its errors, and what they do unlike."""

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from policyd.command import deadline, private_files
from policyd.command.database_url import sqlite_file
from policyd.command.deadline import TIMEOUT
from policyd.errors import SettingsError, StoreUnavailable, StoreUnusable
from policyd.store import database_file, identity
from policyd.store.database_file import DatabaseFile

_CONNECTIONS = 20
"""To PostgreSQL, of one process. All that ask at once are fewer."""
LOOK = 100_000
"""Steps of SQLite between two looks at the deadline: less than a millisecond of work."""
_AGAIN = 0.02
"""Seconds between two tries for a lock for which SQLite itself does not wait."""

_INCREMENTAL = 2

_READ_ONLY = "25006"
"""PostgreSQL's code for a change in a transaction that takes none."""

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


_MOST = 2**62
"""Of a count: it fits into a BIGINT."""

metadata = sa.MetaData()


@dataclass(frozen=True, slots=True)
class Bound:
    """Seconds that a call may take which is no ordinary one: in all, and each statement of it.

    None: as long as an ordinary one.
    """

    total: float
    statement: float | None = None


SHIPPING = Bound(120.0)
"""Many small statements, each as quick as others: a database that is silent is noticed as soon."""
LONG = Bound(300.0, 300.0)
"""What may look at every row of the log: statistics, simulations, exports, retention."""
MIGRATING = Bound(24 * 3600.0, 24 * 3600.0)
"""What may build an index over every row, or wait until another process has."""

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


def open_engine(url: str, timeout: float = TIMEOUT) -> sa.Engine:
    """The engine for `url`; an ordinary call may take `timeout` seconds. Raises SettingsError."""
    try:
        engine = _open_postgresql(url, timeout) or _create_engine(url, timeout)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError) as error:
        # The URL may hold a password, so the message does not repeat it.
        raise SettingsError(
            "--database-url is not usable: give sqlite:///FILE, or "
            "postgresql+psycopg://USER@HOST/NAME with the extra policyd[postgresql] "
            f"({type(error).__name__})"
        ) from None
    if engine.dialect.name == "sqlite":
        _bound_sqlite(engine, url, timeout)
    engine.update_execution_options(policyd_timeout=timeout)
    return engine


def timeout_of(engine: sa.Engine) -> float:
    """Seconds that an ordinary call of this engine may take."""
    return float(engine.get_execution_options()["policyd_timeout"])


def _create_engine(url: str | sa.URL, timeout: float) -> sa.Engine:
    return sa.create_engine(
        url,
        pool_pre_ping=True,
        hide_parameters=True,
        poolclass=sa.QueuePool,  # Of every kind of URL, so that its bounds hold.
        pool_size=5,
        max_overflow=_CONNECTIONS - 5,
        pool_timeout=timeout,
    )


def _open_postgresql(url: str, timeout: float) -> sa.Engine | None:
    """The engine, if the URL is one of PostgreSQL."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "postgresql":
        return None
    # An extra of its own, which SQLite does without.
    from policyd.store import postgresql as bounded

    query = bounded.patience(timeout) | dict(parsed.query)
    engine = _create_engine(parsed.set(query=query), timeout)
    bounded.bound(engine, timeout)
    return engine


def _bound_sqlite(engine: sa.Engine, url: str, timeout: float) -> None:
    file = sqlite_file(url)
    if file is None:
        raise SettingsError(
            "--database-url must name a file: a database in memory cannot be shared"
        )
    event.listen(engine, "connect", partial(_prepare_sqlite, timeout))
    event.listen(engine, "begin", _begin_sqlite)
    DatabaseFile(file).guard(engine)


def make_file(url: str) -> None:
    """Make the file of a SQLite database, empty, unless it is there.

    Nothing else makes it, so that none appears in the place of one that was deleted.
    """
    if file := sqlite_file(url):
        private_files.make_file(Path(os.path.realpath(file)))


def _prepare_sqlite(timeout: float, connection: Any, _: object) -> None:
    connection.isolation_level = None  # The driver leaves transactions to _begin_sqlite.
    # It stops a query whose thread has waited long enough.
    connection.set_progress_handler(deadline.is_over, LOOK)
    with deadline.within(timeout):
        connection.execute(_wait_for_locks(timeout))
        # A file that is new, or vacuumed next, gives back what retention has freed: see space.py.
        # To one that does so already, setting it once more would be a write.
        if connection.execute("PRAGMA auto_vacuum").fetchone() != (_INCREMENTAL,):
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        _use_wal(connection)
        # What is committed is on the disk: the spool has deleted it by then.
        connection.execute("PRAGMA synchronous = FULL")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Have readers wait for no writer. To begin with that, SQLite needs the file for itself, and
    does not wait for another process that has it."""
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or deadline.is_over():
                raise
            time.sleep(_AGAIN)
        else:
            return


def _wait_for_locks(timeout: float) -> str:
    """Has SQLite wait for another one's lock until the deadline, and no longer than `timeout`."""
    seconds = max(min(timeout, deadline.remaining()), 0)
    return f"PRAGMA busy_timeout = {int(seconds * 1000)}"


def _begin_sqlite(connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    connection.exec_driver_sql(_wait_for_locks(options["policyd_timeout"]))
    connection.exec_driver_sql(options.get("policyd_begin", "BEGIN"))


@contextmanager
def errors() -> Iterator[None]:
    """Report what the database says as StoreUnavailable."""
    try:
        yield
    except SQLAlchemyError as error:
        # The driver's own words; SQLAlchemy's would add the statement.
        cause = getattr(error, "orig", None)
        if getattr(cause, "sqlstate", None) == _READ_ONLY:
            raise StoreUnavailable(identity.READ_ONLY) from error
        if getattr(cause, "sqlite_errorcode", 0) & 0xFF in _DAMAGE:
            raise damaged(str(cause)) from error
        words = (str(cause or error).strip().splitlines() or [type(error).__name__])[0]
        if words == "interrupted":
            words = deadline.OVERDUE
        raise StoreUnavailable(f"the database cannot be used: {words}") from error


def damaged(cause: str) -> StoreUnusable:
    """What is said of a SQLite file that is damaged, or none."""
    return StoreUnusable(
        f"the database is damaged: {cause}. Stop policyd, keep the file for a rescue, and put a "
        "backup in its place (policyd db restore)"
    )


@contextmanager
def reading(engine: sa.Engine, bound: Bound | None = None) -> Iterator[sa.Connection]:
    """A connection to read by. Raises StoreUnavailable, also where that takes too long."""
    with _bounded(engine, bound) as connection:
        identity.check(connection)
        yield connection


@contextmanager
def writing(engine: sa.Engine, bound: Bound | None = None) -> Iterator[sa.Connection]:
    """A transaction that writes, committed at the end. Raises StoreUnavailable, as reading()."""
    # SQLite: a transaction that reads first could not write once another one has written.
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
        ending.enter_context(errors())
        ending.enter_context(deadline.within(max(bound.total, timeout) if bound else timeout))
        connection = ending.enter_context(engine.connect())
        connection.execution_options(**options)
        if bound and bound.statement:
            ending.enter_context(_long_statements(connection, max(bound.statement, timeout)))
        yield connection


@contextmanager
def _long_statements(connection: sa.Connection, seconds: float) -> Iterator[None]:
    """Of the transaction that begins here: SQLite bounds no statement by itself."""
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
