"""The engine of a database: how policyd connects to SQLite and PostgreSQL.

Every wait of a connection has an end. SQLite looks at the deadline while it works, and waits for
another writer's lock no longer than the running thread may wait; postgresql.py does the same for
PostgreSQL. An engine carries the seconds that an ordinary call may take: see timeout_of().
"""

import os
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from policyd.command import deadline, private_files
from policyd.command.database_url import sqlite_file
from policyd.command.deadline import TIMEOUT
from policyd.errors import SettingsError
from policyd.extras import lacks
from policyd.store.database_file import DatabaseFile

_CONNECTIONS = 20
"""Connections of one process to PostgreSQL: more than the calls that run at the same time."""
INCREMENTAL = 2
"""What SQLite calls a file that gives free space back in steps: PRAGMA auto_vacuum."""
LOOK = 100_000
"""Steps of SQLite between two looks at the deadline: less than a millisecond."""
_AGAIN = 0.02
"""Seconds between two tries to get a lock that SQLite itself does not wait for."""


def open_engine(url: str, timeout: float = TIMEOUT) -> sa.Engine:
    """The engine for `url`; an ordinary call may take `timeout` seconds. Raises SettingsError."""
    try:
        engine = _open_postgresql(url, timeout) or _create_engine(url, timeout)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError) as error:
        # The URL may hold a password, so the message does not show it.
        raise SettingsError(
            "--database-url is not usable: give sqlite:///FILE, or "
            f"postgresql+psycopg://USER@HOST/NAME ({type(error).__name__})"
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
        poolclass=sa.QueuePool,  # For every kind of URL, so that the bounds of the pool hold.
        pool_size=5,
        max_overflow=_CONNECTIONS - 5,
        pool_timeout=timeout,
    )


def _open_postgresql(url: str, timeout: float) -> sa.Engine | None:
    """The engine, if the URL is PostgreSQL's."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "postgresql":
        return None
    # psycopg is an extra that SQLite does not need.
    try:
        from policyd.store import postgresql as bounded
    except ModuleNotFoundError as problem:
        package = problem.name or "psycopg"
        raise SettingsError(f"a PostgreSQL database {lacks(package, 'postgresql')}") from None

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
    """Make an empty file for a SQLite database, unless there is one.

    Only a start makes it, so that no empty database takes the place of one that was deleted.
    """
    if file := sqlite_file(url):
        private_files.make_file(Path(os.path.realpath(file)))


def _prepare_sqlite(timeout: float, connection: Any, _: object) -> None:
    connection.isolation_level = None  # The driver leaves transactions to _begin_sqlite.
    # This stops a query whose thread has waited long enough.
    connection.set_progress_handler(deadline.is_over, LOOK)
    with deadline.within(timeout):
        connection.execute(_wait_for_locks(timeout))
        # A file that is new, or vacuumed later, gives back the space that retention frees: see
        # space.py. Where it does so already, setting it again would be a needless write.
        if connection.execute("PRAGMA auto_vacuum").fetchone() != (INCREMENTAL,):
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        _use_wal(connection)
        # What is committed must be on the disk, as the spool then deletes its copy.
        connection.execute("PRAGMA synchronous = FULL")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Use a write-ahead log, so that readers wait for no writer. To change to it, SQLite needs the
    file to itself, and it does not wait for another process that has the file open."""
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
    """The statement that has SQLite wait for locks until the deadline, or `timeout` seconds."""
    seconds = max(min(timeout, deadline.remaining()), 0)
    return f"PRAGMA busy_timeout = {int(seconds * 1000)}"


def _begin_sqlite(connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    connection.exec_driver_sql(_wait_for_locks(options["policyd_timeout"]))
    connection.exec_driver_sql(options.get("policyd_begin", "BEGIN"))
