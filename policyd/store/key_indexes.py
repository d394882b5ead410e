"""The indexes along which the list of keys is read, as migration 0014 makes them.

On PostgreSQL they are built before that, while servers write.
"""

import sqlalchemy as sa

from policyd.store.index_building import building, drop_half_built

INDEXES = {
    "ix_api_keys_created": "ON api_keys (created_at, id)",
    # Revoked keys pile up at the beginning of the list, where its first page is.
    "ix_api_keys_unrevoked": "ON api_keys (created_at, id) WHERE revoked_at IS NULL",
    "ix_api_keys_lower_name": "ON api_keys (lower(name), created_at, id)",
}
"""The table and columns of each index, by its name."""


def build(engine: sa.Engine) -> None:
    """Build those that are missing. Several processes may do so at once. Raises
    StoreUnavailable."""
    with building(engine) as connection:
        drop_half_built(connection, f"^({'|'.join(INDEXES)})$")
        for name, columns in INDEXES.items():
            connection.exec_driver_sql(f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} {columns}")
