"""The database's forms, one after the other, as Alembic migrations.

A migration only expands: the previous version still works on the result, and can be started again.
So a database says two things about itself: its form, and the oldest version that works on it.

    schema_version   the form: the last migration that has run
    schema_form      `works_from`: versions that know this migration or a later one can use it;
                     `reason`: why no version can at the moment, if it is not empty
    alembic_version  for versions that know neither of the two and refuse every other value
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from policyd.errors import StoreUnusable

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0015"
"""The form that this version makes."""
NEEDS = "0015"
"""The oldest form that this version works on."""
VERSION_TABLE = "schema_version"
_OLD_TABLE = "alembic_version"
_OLD_HEAD = "0005"
"""The form that versions which do not know `schema_form` take for the newest."""

# Any number will do that no other program locks in the same database.
POSTGRESQL_LOCK = 0x706F6C69637964

_Form = sa.table("schema_form", sa.column("works_from"), sa.column("reason"))


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a database, and which versions can use it."""

    revision: str | None
    """None: the database has no tables of policyd's."""
    works_from: str = ""
    reason: str = ""

    @property
    def is_behind(self) -> bool:
        """Whether migrations of this version have not run on it."""
        return self.revision is None or self.revision < HEAD

    def check(self) -> None:
        """Raises StoreUnusable where this version cannot work on it."""
        if self.reason:
            raise StoreUnusable(f"the database cannot be used now: {self.reason}")
        if self.revision is None:
            raise StoreUnusable(
                "the database has no tables of policyd: run policyd db migrate, or check "
                "--database-url"
            )
        if self.revision < NEEDS:
            raise StoreUnusable(
                f"the database has the form {self.revision} of an older policyd, and this version "
                f"needs {NEEDS}: run policyd db migrate, which older servers run on beside, or use "
                "that older version"
            )
        if self.works_from > HEAD:
            raise StoreUnusable(
                f"the database has the form {self.revision}, which needs a policyd that knows "
                f"{self.works_from}, and this version knows {HEAD}: it was used with a newer "
                "policyd; run that version or another database"
            )


def form(connection: sa.Connection) -> Form:
    """What the database says about its form."""
    tables = sa.inspect(connection)
    old = _number(connection, tables, _OLD_TABLE)
    if old is not None and old > _OLD_HEAD:
        return Form(old, works_from=old)
    revision = _number(connection, tables, VERSION_TABLE) or old
    if not tables.has_table(_Form.name):
        return Form(revision)
    works_from, reason = connection.execute(sa.select(_Form)).one()
    return Form(revision, works_from, reason)


def _number(connection: sa.Connection, tables: sa.Inspector, name: str) -> str | None:
    if not tables.has_table(name):
        return None
    number = sa.select(sa.column("version_num", sa.String)).select_from(sa.table(name))
    found: str | None = connection.execute(number).scalar_one_or_none()
    return found


def close(connection: sa.Connection, reason: str) -> None:
    """Let no version use the database from now on, for this reason; "" opens it again."""
    connection.execute(sa.update(_Form).values(reason=reason))


def upgrade(connection: sa.Connection, to: str = HEAD) -> None:
    """Bring the database to the form `to`, in the transaction that `connection` is in.

    A newer form stays as it is. Raises StoreUnusable where this version cannot work on it.
    """
    found = form(connection)
    if not found.is_behind:
        found.check()
    if found.revision is not None and found.revision >= to:
        return
    # Alembic is slow to import, and only a process that migrates needs it.
    from alembic import command

    if found.revision is not None:
        _take_over(connection, found.revision)
    command.upgrade(_config(connection), to)
    _mark_for_older(connection)


def downgrade(connection: sa.Connection, to: str, *, force: bool = False) -> None:
    """Take the database back to the form `to`, in the transaction that `connection` is in.

    Raises StoreUnusable where that would lose settings of keys, unless it is forced.
    """
    from alembic import command

    config = _config(connection)
    config.attributes["force"] = force
    command.downgrade(config, to)


def pending(revision: str | None) -> list[str]:
    """The migrations that a database of this form lacks, in order: a line for each."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(_config(None))
    found = list(scripts.walk_revisions("base", HEAD))
    return [
        f"{one.revision} {(one.doc or '').partition(chr(10))[0]}"
        for one in reversed(found)
        if revision is None or one.revision > revision
    ]


def _config(connection: sa.Connection | None) -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "policyd.store:migrations")
    config.attributes["connection"] = connection
    return config


def _take_over(connection: sa.Connection, revision: str) -> None:
    """Copy the form from where old versions noted it to where this one looks for it."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        number = sa.Column("version_num", sa.String(32), primary_key=True)
        table = sa.Table(VERSION_TABLE, sa.MetaData(), number)
        table.create(connection)
        connection.execute(sa.insert(table).values(version_num=revision))


def _mark_for_older(connection: sa.Connection) -> None:
    number = sa.Column("version_num", sa.String(32), primary_key=True)
    table = sa.Table(_OLD_TABLE, sa.MetaData(), number)
    table.create(connection, checkfirst=True)
    connection.execute(sa.delete(table))
    connection.execute(sa.insert(table).values(version_num=_OLD_HEAD))
