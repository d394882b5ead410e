"""The database's clock: the one that all servers of an installation share.

Everything that two servers compare goes by it: which workers run, when a session or a waiting
outcome expires, which decisions are old enough to delete. The time at which a key was made or
changed is only shown. Decisions are timed by their worker, which measures its clock by this one:
see command/worker_clock.py.
"""

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from policyd.store.database import now

_POSTGRESQL = sa.text("SELECT clock_timestamp()")
# SQLite reads this machine's clock, in milliseconds: the machine is the database's.
_SQLITE = sa.text("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')")


def database_time(connection: sa.Connection) -> datetime:
    """This moment by the database's clock, in UTC; on SQLite it is this machine's."""
    if connection.dialect.name == "postgresql":
        moment: datetime = connection.execute(_POSTGRESQL).scalar_one()
        return moment.astimezone(UTC)
    text: str = connection.execute(_SQLITE).scalar_one()
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def clock_offset(connection: sa.Connection) -> tuple[datetime, timedelta]:
    """The database's time, and how far this process's clock is ahead of it, at least.

    The database read its clock at some moment between the query and the answer, so the offset is
    uncertain by that time. The smallest that fits is returned, so that a slow database makes no
    clock wrong.
    """
    asked = now()
    moment = database_time(connection)
    answered = now()
    nearest = min(max(moment, asked), answered)
    return moment, nearest - moment


def midnight(at: datetime) -> datetime:
    """The beginning of the day that `at` is in, in UTC."""
    return at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
