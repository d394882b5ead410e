"""Builds indexes on PostgreSQL while servers write, before a migration takes them over as they are.

Such an index is built outside of a transaction. Of several processes, only one builds at a time.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from policyd.store.database import MIGRATING, reading
from policyd.store.migrations import POSTGRESQL_LOCK

_HALF_BUILT = (
    "SELECT c.relname FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid"
    " WHERE NOT x.indisvalid AND c.relnamespace = current_schema()::regnamespace"
    " AND c.relname ~ '{}'"
)


@contextmanager
def building(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection on which each statement is a transaction of its own and may take its time.

    Raises StoreUnavailable.
    """
    with reading(engine, MIGRATING) as connection:
        connection.rollback()
        connection.execution_options(isolation_level="AUTOCOMMIT")
        try:
            for setting in ("statement_timeout", "lock_timeout"):
                connection.exec_driver_sql(f"SET {setting} = 0")
            _take_turn(connection)
            yield connection
        finally:
            connection.invalidate()  # This drops its settings, and the lock.


def _take_turn(connection: sa.Connection) -> None:
    # Without waiting in a statement, as the other process would wait for that statement.
    locked = sa.select(sa.func.pg_try_advisory_lock(POSTGRESQL_LOCK))
    while not connection.execute(locked).scalar_one():
        time.sleep(0.2)


def drop_half_built(connection: sa.Connection, names: str) -> None:
    """Drop indexes that a process left half-built when it ended, whose names match the regular
    expression `names`."""
    for name in list(connection.exec_driver_sql(_HALF_BUILT.format(names)).scalars()):
        connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY {name}")
