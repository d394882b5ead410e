"""Which installation a database belongs to: a server checks it in every transaction.

Otherwise a wrong address, a failover to another cluster, or a file of another installation put in
its place would give a server the other installation's keys, and that installation this one's log.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from policyd.errors import StoreUnavailable, WrongDatabase

_OPTION = "policyd_identity"
_NO_TABLE = "42P01"
"""PostgreSQL's code for a table that does not exist."""
_identity: sa.Select[Any] = sa.select(sa.column("identity")).select_from(sa.table("installation"))
_is_standby = sa.select(sa.func.pg_is_in_recovery())


def read(connection: sa.Connection) -> str:
    """The identity of this database. Only copies of it have the same."""
    return str(connection.execute(_identity).scalar_one())


def expect(engine: sa.Engine, identity: str) -> None:
    """Have every transaction of this engine check that the database is of this identity."""
    engine.update_execution_options(**{_OPTION: identity})


def check(connection: sa.Connection) -> None:
    """Raises WrongDatabase for another database than the expected one, and StoreUnavailable for a
    standby."""
    expected = connection.get_execution_options().get(_OPTION)
    if expected is None:
        return
    query = _identity
    if connection.dialect.name == "postgresql":
        # Both in one statement, as each is a round trip. A standby may lag, and a key that was
        # revoked would be in force again.
        query = query.add_columns(_is_standby.scalar_subquery())
    try:
        found, *standby = connection.execute(query).one()
    except DBAPIError as error:
        if not _is_of_no_table(error):
            raise
        raise _wrong("it has no tables of policyd") from error
    if found != expected:
        raise _wrong(f"it is {found}'s and not {expected}'s")
    if any(standby):
        raise StoreUnavailable(READ_ONLY)


READ_ONLY = (
    "the database takes no changes, as it is a standby or read-only: give --database-url the "
    "primary's address, or several and target_session_attrs=read-write"
)


def _is_of_no_table(error: DBAPIError) -> bool:
    sqlstate = getattr(error.orig, "sqlstate", None)
    return sqlstate == _NO_TABLE or str(error.orig).startswith("no such table")


def _wrong(why: str) -> WrongDatabase:
    return WrongDatabase(
        f"this database is not the one that this policyd started with ({why}): settings stay as "
        "they are, and the log in the spool. Put the right database back; or, to go on with this "
        "one, restart policyd, which asks for another --spool if entries of the old one wait"
    )
