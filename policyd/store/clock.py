"""The database's clock, which all that share the database go by."""

from datetime import UTC, datetime

import sqlalchemy as sa


def database_time(connection: sa.Connection) -> datetime:
    """This moment in UTC: PostgreSQL's own, for SQLite this machine's."""
    if connection.dialect.name == "postgresql":
        at: datetime = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
        return at.astimezone(UTC)
    return datetime.now(UTC)
