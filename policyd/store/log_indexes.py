"""Builds PostgreSQL's index of flags, partition by partition, while servers write to the log.

The form 0010 makes the column of flags wider. For that, PostgreSQL would rebuild an index with a
condition on it, under a lock that all writers wait for; so that form drops the index, and the next
one has it again. The next form takes over as it is whatever was built here by then.
"""

import sqlalchemy as sa

from policyd.store.index_building import building, drop_half_built

_PARTITIONS = (
    "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    " WHERE i.inhparent = to_regclass('decisions') ORDER BY c.relname"
)
_EXISTS = "SELECT to_regclass('ix_decisions_flags') IS NOT NULL"


def build(engine: sa.Engine) -> None:
    """Build the index of each partition that has none, unless the log has its index. Several
    processes may do so at once. Raises StoreUnavailable."""
    with building(engine) as connection:
        _build(connection)


def _build(connection: sa.Connection) -> None:
    if connection.exec_driver_sql(_EXISTS).scalar_one():
        return
    drop_half_built(connection, "^decisions_[a-z0-9]+_flags_id_idx$")
    for name in list(connection.exec_driver_sql(_PARTITIONS).scalars()):
        connection.exec_driver_sql(
            f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name}_flags_id_idx ON {name} (flags, id)"
            " WHERE flags <> ''"
        )
