"""The database's forms, one after the other, as Alembic migrations."""

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from policyd.errors import StoreUnavailable

# Any number will do, as long as nobody else locks it in the same database.
_POSTGRESQL_LOCK = 0x706F6C69637964


def upgrade(connection: sa.Connection) -> None:
    """Bring the database to the newest form, in the transaction that `connection` is in."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_POSTGRESQL_LOCK)))
    config = Config()
    config.set_main_option("script_location", "policyd:migrations")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StoreUnavailable(
            f"the database has a form that this version does not know ({error}): "
            "it was used with a newer policyd; run that version or another database"
        ) from error
