"""The work of `policyd db` on a database of either kind, beside what servers do with it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from policyd.command.database_url import sqlite_file
from policyd.decision_log.record import moment
from policyd.store import copying, log_size, migrations
from policyd.store.clock import database_time
from policyd.store.database import metadata, reading
from policyd.store.engine import open_engine
from policyd.store.partitions import make_days, partitions
from policyd.store.workers import hosts


@dataclass(frozen=True, slots=True)
class Figures:
    """A description of a database. None: a database of this form does not say."""

    name: str
    """Its URL, without a password."""
    form: migrations.Form
    pending: list[str]
    """Migrations that have not run, a line for each."""
    size: int
    """Bytes."""
    free: int | None
    """How many of them are free."""
    mode: str
    """SQLite's kind of journal, and whether the file gives space back; "" for PostgreSQL."""
    identity: str | None
    revision: int | None
    keys: int | None
    decisions: int | None
    oldest: datetime | None
    newest: datetime | None
    days: int
    """Partitions of the log."""
    hosts: list[str]
    """The machines on which `policyd serve` uses it."""
    time: datetime
    """By the database's clock."""


_SECRETS = ("password", "sslpassword")
"""The parameters of a URL's query that are not shown."""


def figures(url: str) -> Figures:
    """Look at a database, whatever its form. Raises StoreUnavailable."""
    engine = open_engine(url)
    try:
        with reading(engine) as connection:
            if connection.dialect.name == "postgresql":
                # Without a transaction, which would hold locks on several tables, and could end in
                # a deadlock with a migration that runs meanwhile.
                connection.execution_options(isolation_level="AUTOCOMMIT")
            return _figures(connection, _shown(url).render_as_string())
    finally:
        engine.dispose()


def _figures(connection: sa.Connection, name: str) -> Figures:
    form = migrations.form(connection)
    size, free, mode = _size(connection)
    tables = set(sa.inspect(connection).get_table_names())
    has_log = "decisions" in tables
    oldest, newest = (_end(connection, which) if has_log else None for which in ("min", "max"))
    return Figures(
        name=name,
        form=form,
        pending=migrations.pending(form.revision) if form.is_behind else [],
        size=size,
        free=free,
        mode=mode,
        identity=_value(connection, tables, "installation", "identity"),
        revision=_value(connection, tables, "revision", "value"),
        keys=_count(connection, "api_keys") if "api_keys" in tables else None,
        decisions=None if form.is_behind else log_size.total(connection),
        oldest=oldest,
        newest=newest,
        days=len(partitions(connection)),
        hosts=hosts(connection) if "workers" in tables else [],
        time=database_time(connection),
    )


def _size(connection: sa.Connection) -> tuple[int, int | None, str]:
    if connection.dialect.name == "postgresql":
        query = sa.select(sa.func.pg_database_size(sa.func.current_database()))
        return int(connection.execute(query).scalar_one()), None, ""
    names = ("page_size", "page_count", "freelist_count", "journal_mode", "auto_vacuum")
    size, pages, free, journal, vacuum = (
        connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names
    )
    gives = ("no", "full", "incremental")[vacuum]
    return size * pages, size * free, f"journal {journal}, auto_vacuum {gives}"


def _value(connection: sa.Connection, tables: set[str], table: str, column: str) -> Any:
    if table not in tables:
        return None
    wanted: sa.ColumnClause[Any] = sa.column(column)
    query = sa.select(wanted).select_from(sa.table(table))
    return connection.execute(query).scalar_one_or_none()


def _end(connection: sa.Connection, which: str) -> datetime | None:
    column = metadata.tables["decisions"].c.id
    found = connection.execute(sa.select(getattr(sa.func, which)(column))).scalar_one()
    return moment(found) if found else None


def _count(connection: sa.Connection, table: str) -> int:
    query = sa.select(sa.func.count()).select_from(metadata.tables[table])
    return int(connection.execute(query).scalar_one())


def make_days_to_come(url: str) -> None:
    """Make the log's partitions of the next days, where it has any. Raises StoreUnavailable."""
    engine = open_engine(url)
    try:
        with reading(engine) as connection:
            now = database_time(connection)
        make_days(engine, now)
    finally:
        engine.dispose()


def copy(url: str, to: str, tell: Callable[[copying.Copied], None]) -> dict[str, int]:
    """Copy the database at `url` into the one at `to`: see copying.py."""
    source, target = open_engine(url), open_engine(to)
    try:
        return copying.copy(source, target, tell)
    finally:
        source.dispose()
        target.dispose()


def tool_arguments(url: str) -> str:
    """The database's URL as PostgreSQL's programs take it, without a password; "" for SQLite."""
    if sqlite_file(url) is not None:
        return ""
    open_engine(url).dispose()  # Raises SettingsError for a URL that is not usable.
    return _shown(url).set(drivername="postgresql").render_as_string()


def _shown(url: str) -> sa.URL:
    """The URL as the operator gave it, without its secrets."""
    shown: sa.URL = sa.URL.create(**(sa.make_url(url)._asdict() | {"password": None}))
    return shown.difference_update_query(_SECRETS)
