"""Whether a database is fit to serve from: checked once, at the start.

A damaged SQLite file answers most queries, some of them wrongly, and fails on others for ever.
Reading a whole file with a large log takes a long time. So the tables with settings are read first,
and the rest only as far as _PATIENCE allows.
"""

import logging
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from policyd.command import deadline
from policyd.errors import StoreUnavailable
from policyd.store import identity
from policyd.store.database import damaged, file_of, reading, writing
from policyd.store.engine import LOOK

_log = logging.getLogger(__name__)

_PATIENCE = 0.25
"""Seconds for the tables that hold no settings."""
_SETTINGS = ("api_keys", "revision", "installation", "administrator")
_STEPS = 10_000
"""Steps of SQLite between two looks at the time."""


def check(engine: sa.Engine) -> None:
    """Raises StoreUnavailable where the database is damaged or read-only."""
    with reading(engine) as connection:
        if connection.dialect.name == "postgresql":
            _check_primary(connection)
        else:
            _check_file(connection)


def _check_primary(connection: sa.Connection) -> None:
    setting = connection.execute(sa.text("SHOW transaction_read_only")).scalar_one()
    if setting == "on":  # It is a standby, or read-only by its own settings.
        raise StoreUnavailable(identity.READ_ONLY)


def why_unchangeable(engine: sa.Engine) -> str:
    """Why the database takes no changes, though it answers; "": it takes them."""
    try:
        if engine.dialect.name == "postgresql":
            with reading(engine) as connection:
                _check_primary(connection)
        else:
            with writing(engine) as connection:
                # In a read-only file SQLite begins a transaction, and fails on its first change.
                connection.exec_driver_sql("DELETE FROM installation WHERE 0")
    except StoreUnavailable as error:
        return str(error)
    return ""


def _check_file(connection: sa.Connection) -> None:
    tables = connection.execute(sa.text("SELECT name FROM sqlite_master WHERE type = 'table'"))
    for table in set(tables.scalars()) & set(_SETTINGS):
        _check(connection, f"PRAGMA quick_check('{table}')")
    driver: Any = connection.connection.dbapi_connection
    driver.set_progress_handler(deadline.is_over, _STEPS)
    try:
        with deadline.within(_PATIENCE):
            _check(connection, "PRAGMA quick_check(1)")
    except OperationalError as error:
        if "interrupted" not in str(error.orig):
            raise
        _log.info(
            "the settings in the database are not damaged; its log is too large to look through "
            "within %g s",
            _PATIENCE,
        )
    finally:
        driver.set_progress_handler(deadline.is_over, LOOK)  # As on every other connection.


def _check(connection: sa.Connection, statement: str) -> None:
    found = connection.exec_driver_sql(statement).scalars().all()
    if found != ["ok"]:
        raise damaged(str(found[0]).splitlines()[-1], file_of(connection.engine))
