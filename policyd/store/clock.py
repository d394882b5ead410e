"""What the database's clock says: one clock for all servers that share a database."""

from datetime import UTC, datetime

import sqlalchemy as sa

from policyd.store.database import now


def database_time(connection: sa.Connection) -> datetime:
    """This moment, in UTC: PostgreSQL's, and with SQLite the machine's."""
    if connection.dialect.name != "postgresql":
        return now()
    moment: datetime = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    return moment.astimezone(UTC)
