"""Brings a database to this version's form, beside servers that use it.

On PostgreSQL no step holds a lock for long that others wait for: what takes long is done first,
under a lock that stops no reader or writer, and the rest gives up when it would have to wait and
tries again.
"""

import random
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from policyd.decision_log.record import first_id, moment
from policyd.errors import StoreUnavailable
from policyd.store import migrations
from policyd.store.clock import database_time, midnight
from policyd.store.database import MIGRATING, reading, writing

_LOCK_WAIT = "2s"
"""Of PostgreSQL: so long others wait at most behind a migration that waits itself."""
_TRIES = 30
_OTHERS = 600.0
"""Seconds for another process that migrates the same database."""
_PARTITIONED = "0009"
"""The form in which PostgreSQL has the log by days."""
_BUSY = ("55P03", "40P01")
"""What PostgreSQL says where a lock was not to be had in time, or would have been waited for in a
circle."""
_EXISTS = ("42710", "42P07")


def read(engine: sa.Engine) -> migrations.Form:
    """The database's form. Raises StoreUnavailable."""
    with reading(engine) as connection:
        return migrations.form(connection)


def migrate(engine: sa.Engine) -> None:
    """Bring the tables to this version's form; those of a newer version that this one can use
    stay. Several processes may do so at once. Raises StoreUnavailable."""
    found = read(engine)
    if not found.is_behind:
        found.check()
        return
    if engine.dialect.name != "postgresql":
        with writing(engine, MIGRATING) as connection:
            migrations.upgrade(connection)
        return
    if found.revision is not None and found.revision < _PARTITIONED:
        _prove_bound(engine)
    _patiently(engine, _upgrade)


def _upgrade(connection: sa.Connection) -> None:
    end = time.monotonic() + _OTHERS
    locked = sa.select(sa.func.pg_try_advisory_xact_lock(migrations.POSTGRESQL_LOCK))
    while not connection.execute(locked).scalar_one():
        if time.monotonic() > end:
            raise StoreUnavailable(
                "another policyd has been migrating this database for ten minutes: see what it "
                "waits for, end it, and try again"
            )
        time.sleep(0.2)
    migrations.upgrade(connection)


def _prove_bound(engine: sa.Engine) -> None:
    """Let PostgreSQL see that no row is from after some midnight to come, so that it need not look
    when the rows become a partition. It reads them for that, and holds up no other."""
    _patiently(engine, _add_bound, ignore=_EXISTS)
    _patiently(engine, _validate_bound)


def _add_bound(connection: sa.Connection) -> None:
    # First of all: a lock that grows would meet another one's.
    connection.exec_driver_sql("LOCK TABLE decisions IN ACCESS EXCLUSIVE MODE")
    newest = connection.exec_driver_sql("SELECT max(id) FROM decisions").scalar_one()
    at = max(database_time(connection), moment(newest)) if newest else database_time(connection)
    bound = first_id(midnight(at) + timedelta(days=2))
    connection.exec_driver_sql(
        f"ALTER TABLE decisions ADD CONSTRAINT decisions_before CHECK (id < '{bound}') NOT VALID"
    )


def _validate_bound(connection: sa.Connection) -> None:
    # Its lock keeps only another one's migration waiting, and that may take as long as it takes.
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_OTHERS:.0f}s'")
    # Where another process has made partitions meanwhile, there is no such constraint any more.
    query = "SELECT 1 FROM pg_constraint WHERE conname = 'decisions_before' AND NOT convalidated"
    if connection.exec_driver_sql(query).first():
        connection.exec_driver_sql("ALTER TABLE decisions VALIDATE CONSTRAINT decisions_before")


def _patiently(
    engine: sa.Engine, step: Callable[[sa.Connection], None], ignore: Sequence[str] = ()
) -> None:
    """Take a step in a transaction of its own, again where a lock is not to be had soon."""
    for left in reversed(range(_TRIES)):
        try:
            with writing(engine, MIGRATING) as connection:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_WAIT}'")
                step(connection)
            return
        except StoreUnavailable as error:
            state = sqlstate(error)
            if state in ignore:
                return
            if state not in _BUSY or not left:
                raise
        time.sleep(random.uniform(0.2, 1.0))  # noqa: S311  # keeps no secret


def sqlstate(error: StoreUnavailable) -> str:
    """PostgreSQL's code for what went wrong; "" where it has none."""
    cause = error.__cause__
    return getattr(cause.orig, "sqlstate", None) or "" if isinstance(cause, DBAPIError) else ""
