"""The database's forms, one after the other, as Alembic migrations."""

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from policyd.errors import StoreUnusable

# Any number will do, as long as nobody else locks it in the same database.
_POSTGRESQL_LOCK = 0x706F6C69637964


def is_current(connection: sa.Connection) -> bool:
    """Whether the database has the newest form already. It costs a start next to nothing, where
    Alembic would have to be loaded first."""
    known = sa.text("SELECT version_num FROM alembic_version")
    try:
        return list(connection.execute(known).scalars()) == [newest()]
    except SQLAlchemyError:
        return False  # There is no such table yet, or upgrade() says what is wrong.


def newest() -> str:
    """The newest form's name: the number that begins the name of its file."""
    versions = Path(__file__).parent / "versions"
    return max(file.name.partition("_")[0] for file in versions.glob("[0-9]*_*.py"))


def upgrade(connection: sa.Connection) -> None:
    """Bring the database to the newest form, in the transaction that `connection` is in."""
    # Only a database that is not in this form yet waits for all that it loads.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_POSTGRESQL_LOCK)))
    config = Config()
    config.set_main_option("script_location", "policyd:migrations")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StoreUnusable(
            f"the database has a form that this version does not know ({error}): "
            "it was used with a newer policyd; run that version or another database"
        ) from error
