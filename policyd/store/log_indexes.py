"""Builds PostgreSQL's index of flags, partition by partition, while servers write to the log.

The form 0010 makes the column of flags wider. PostgreSQL would build an index with a condition on
it anew for that, under a lock that everybody waits for; so that form drops the index, and the next
one has it again. What is built here by then is taken over as it is.
"""

import time

import sqlalchemy as sa

from policyd.store.database import MIGRATING, reading
from policyd.store.migrations import POSTGRESQL_LOCK

_PARTITIONS = (
    "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    " WHERE i.inhparent = to_regclass('decisions') ORDER BY c.relname"
)
_HALF_BUILT = (
    "SELECT c.relname FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid"
    " WHERE NOT x.indisvalid AND c.relnamespace = current_schema()::regnamespace"
    " AND c.relname ~ '^decisions_[a-z0-9]+_flags_id_idx$'"
)
_EXISTS = "SELECT to_regclass('ix_decisions_flags') IS NOT NULL"


def build(engine: sa.Engine) -> None:
    """Build the index of each partition that has none, unless the log has its index. Several
    processes may do so at once. Raises StoreUnavailable."""
    with reading(engine, MIGRATING) as connection:
        # Such an index is not built within a transaction.
        connection.rollback()
        connection.execution_options(isolation_level="AUTOCOMMIT")
        try:
            for setting in ("statement_timeout", "lock_timeout"):
                connection.exec_driver_sql(f"SET {setting} = 0")
            _take_turn(connection)
            _build(connection)
        finally:
            connection.invalidate()  # With its settings, and the lock.


def _take_turn(connection: sa.Connection) -> None:
    # A statement that waited for the lock would be one that the other process waits for.
    locked = sa.select(sa.func.pg_try_advisory_lock(POSTGRESQL_LOCK))
    while not connection.execute(locked).scalar_one():
        time.sleep(0.2)


def _build(connection: sa.Connection) -> None:
    if connection.exec_driver_sql(_EXISTS).scalar_one():
        return
    for name in list(connection.exec_driver_sql(_HALF_BUILT).scalars()):
        connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY {name}")
    for name in list(connection.exec_driver_sql(_PARTITIONS).scalars()):
        connection.exec_driver_sql(
            f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name}_flags_id_idx ON {name} (flags, id)"
            " WHERE flags <> ''"
        )
