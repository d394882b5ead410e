"""The database's clock: the one that all servers of an installation share.

What two servers compare goes by it: which workers run, when a session or a waiting outcome has had
its time, what is old enough to go. When a key was made or changed is only shown, and decisions are
timed by their worker, which corrects itself by what it has measured here.
"""

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from policyd.store.database import now

_POSTGRESQL = sa.text("SELECT clock_timestamp()")
# SQLite's own look at the machine's clock, in milliseconds: that machine is the database's.
_SQLITE = sa.text("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')")


def database_time(connection: sa.Connection) -> datetime:
    """This moment by the database's clock, in UTC; on SQLite it is this machine's."""
    if connection.dialect.name == "postgresql":
        moment: datetime = connection.execute(_POSTGRESQL).scalar_one()
        return moment.astimezone(UTC)
    text: str = connection.execute(_SQLITE).scalar_one()
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def clock_offset(connection: sa.Connection) -> tuple[datetime, timedelta]:
    """The database's time, and how far this process' clock is ahead of it at least.

    The answer was made at some moment of the wait for it: by so much the offset is uncertain, and
    a slow database makes no clock wrong.
    """
    asked = now()
    moment = database_time(connection)
    answered = now()
    nearest = min(max(moment, asked), answered)
    return moment, nearest - moment


def midnight(at: datetime) -> datetime:
    """The beginning of its day, of UTC."""
    return at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
