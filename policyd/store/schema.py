"""Brings a database to this version's form while servers use it.

On PostgreSQL, no step holds for long a lock that servers wait for. What takes long is done first,
under a lock that stops no reader or writer. Steps that need a stronger lock give up where they
would have to wait long for it, and are tried again.
"""

import random
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from policyd.decision_log.record import first_id, moment
from policyd.errors import StoreUnavailable
from policyd.store import key_indexes, log_indexes, migrations
from policyd.store.clock import database_time, midnight
from policyd.store.database import MIGRATING, reading, writing

_LOCK_WAIT = "2s"
"""How long a step waits for a lock on PostgreSQL, and so how long others wait behind it."""
_TRIES = 30
_OTHERS = 600.0
"""Seconds to wait for another process that migrates the same database."""
_PARTITIONED = "0009"
"""The first form in which PostgreSQL's log is partitioned by days."""
_NO_FLAGS = "0010"
"""The form in which PostgreSQL's log has no index of flags: see log_indexes.py."""
_BUSY = ("55P03", "40P01")
"""PostgreSQL's codes for a lock that was not free in time, and for a deadlock."""
_EXISTS = ("42710", "42P07")
"""PostgreSQL's codes for a constraint or table that is there already."""


def read(engine: sa.Engine) -> migrations.Form:
    """The database's form. Raises StoreUnavailable."""
    with reading(engine) as connection:
        return migrations.form(connection)


def migrate(engine: sa.Engine) -> None:
    """Bring the tables to this version's form. A newer form that this version can use stays as it
    is. Several processes may do so at once. Raises StoreUnavailable."""
    found = read(engine)
    if not found.is_behind:
        found.check()
        return
    if engine.dialect.name != "postgresql":
        with writing(engine, MIGRATING) as connection:
            migrations.upgrade(connection)
        return
    if found.revision is not None:
        if found.revision < _PARTITIONED:
            _prove_bound(engine)
        _upgrade(engine, _NO_FLAGS)
        for build in (log_indexes.build, key_indexes.build):
            _with_patience(partial(build, engine))
    _upgrade(engine)


def _upgrade(engine: sa.Engine, to: str = migrations.HEAD) -> None:
    end = time.monotonic() + _OTHERS
    # Another process that migrates may have to wait for all older transactions to end. So this one
    # has none open while it waits for its turn.
    while not _patiently(engine, partial(_try_to_upgrade, to=to)):
        if time.monotonic() > end:
            raise StoreUnavailable(
                "another policyd has been migrating this database for ten minutes: see what it "
                "waits for, end it, and try again"
            )
        time.sleep(0.2)


def _try_to_upgrade(connection: sa.Connection, to: str) -> bool:
    """Whether it was this process's turn."""
    locked = sa.select(sa.func.pg_try_advisory_xact_lock(migrations.POSTGRESQL_LOCK))
    if not connection.execute(locked).scalar_one():
        return False
    migrations.upgrade(connection, to)
    return True


def downgrade(engine: sa.Engine, to: str, *, force: bool = False) -> None:
    """Take the tables back to an older form, for a version that does not know the present one. No
    server may use the database meanwhile.

    Raises StoreUnusable where that would lose settings of keys, unless it is forced.
    """
    step = partial(migrations.downgrade, to=to, force=force)
    if engine.dialect.name == "postgresql":
        _patiently(engine, step)
        return
    with writing(engine, MIGRATING) as connection:
        step(connection)


def _prove_bound(engine: sa.Engine) -> None:
    """Prove to PostgreSQL, by a constraint, that all rows are from before a coming midnight.

    PostgreSQL reads every row for that, and holds up no other statement. So it need not read them
    under a stronger lock later, when the rows become a partition.
    """
    _patiently(engine, _add_bound, ignore=_EXISTS)
    _patiently(engine, _validate_bound)


def _add_bound(connection: sa.Connection) -> None:
    # First, as strengthening a lock later may end in a deadlock.
    connection.exec_driver_sql("LOCK TABLE decisions IN ACCESS EXCLUSIVE MODE")
    newest = connection.exec_driver_sql("SELECT max(id) FROM decisions").scalar_one()
    at = max(database_time(connection), moment(newest)) if newest else database_time(connection)
    bound = first_id(midnight(at) + timedelta(days=2))
    connection.exec_driver_sql(
        f"ALTER TABLE decisions ADD CONSTRAINT decisions_before CHECK (id < '{bound}') NOT VALID"
    )


def _validate_bound(connection: sa.Connection) -> None:
    # Only other migrations wait for its lock, so it may take its time.
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_OTHERS:.0f}s'")
    # If another process has made the partitions meanwhile, the constraint is gone.
    query = "SELECT 1 FROM pg_constraint WHERE conname = 'decisions_before' AND NOT convalidated"
    if connection.exec_driver_sql(query).first():
        connection.exec_driver_sql("ALTER TABLE decisions VALIDATE CONSTRAINT decisions_before")


def _patiently(
    engine: sa.Engine, step: Callable[[sa.Connection], bool | None], ignore: Sequence[str] = ()
) -> bool | None:
    """Take a step in a transaction of its own, and try again where a lock is not free soon."""

    def attempt() -> bool | None:
        with writing(engine, MIGRATING) as connection:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_WAIT}'")
            return step(connection)

    return _with_patience(attempt, ignore)


def _with_patience(attempt: Callable[[], bool | None], ignore: Sequence[str] = ()) -> bool | None:
    """Try again where a lock is not free soon, or PostgreSQL ends a deadlock at this process's
    cost: of several that migrate, one may build an index while another proves a constraint."""
    for left in reversed(range(_TRIES)):
        try:
            return attempt()
        except StoreUnavailable as error:
            state = sqlstate(error)
            if state in ignore:
                return None
            if state not in _BUSY or not left:
                raise
        time.sleep(random.uniform(0.2, 1.0))  # noqa: S311  # keeps no secret
    return None


def sqlstate(error: StoreUnavailable) -> str:
    """PostgreSQL's code for the error; "" where it has none."""
    cause = error.__cause__
    return getattr(cause.orig, "sqlstate", None) or "" if isinstance(cause, DBAPIError) else ""
