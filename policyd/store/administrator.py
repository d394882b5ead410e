"""The administrator of the console: the password's hash, and which sessions have ended.

Sessions and the link of the first start are signed with an epoch, so a new epoch ends all of them.
A single session that ends is kept here by its ID until its cookie would have expired.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from policyd.store.clock import database_time
from policyd.store.database import Moment, metadata, reading, upsert, writing

_administrator = sa.Table(
    "administrator",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("password_hash", sa.String(300), nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
)
_ended = sa.Table(
    "ended_sessions",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("expires_at", Moment, nullable=False),
)
_NEXT = _administrator.c.epoch + 1
MAX_ENDED = 10_000
"""Ended sessions that are kept. One more ends every session, and then none needs to be kept."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a password is checked against, and what sessions are signed with."""

    password_hash: str
    """By Argon2. Empty: no password was set yet."""
    epoch: int


class Administrator:
    """The administrator in the database of `engine`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def get(self) -> Credentials:
        """The password's hash and the epoch that are in force."""
        query = sa.select(_administrator.c.password_hash, _administrator.c.epoch)
        with reading(self._engine) as connection:
            return Credentials(*connection.execute(query).one())

    def set_password(self, password_hash: str, epoch: int) -> int | None:
        """Set the password and end every session, if `epoch` is still in force. Returns the new
        epoch; None where another one is in force, and nothing has changed.
        """
        new = {"password_hash": password_hash, "epoch": _NEXT}
        return self._update(_administrator.c.epoch == epoch, new)

    def end_sessions(self) -> None:
        """End every session."""
        self._update(sa.true(), {"epoch": _NEXT})

    def end_session(self, session: str, good_for: timedelta) -> None:
        """End one session. Its cookie is valid for no longer than `good_for` from now on."""
        with writing(self._engine) as connection:
            # By the database's clock: a server whose own clock is ahead would forget sessions that
            # others have ended, and those would be valid again.
            now = database_time(connection)
            connection.execute(sa.delete(_ended).where(_ended.c.expires_at < now))
            upsert(connection, _ended, [{"id": session, "expires_at": now + good_for}])
            count = connection.execute(sa.select(sa.func.count()).select_from(_ended)).scalar_one()
            if count > MAX_ENDED:
                connection.execute(sa.update(_administrator).values(epoch=_NEXT))
                connection.execute(sa.delete(_ended))

    def has_ended(self, session: str) -> bool:
        """Whether this one session was ended."""
        query = sa.select(sa.exists().where(_ended.c.id == session))
        with reading(self._engine) as connection:
            return bool(connection.execute(query).scalar_one())

    def _update(self, where: sa.ColumnElement[bool], new: Mapping[str, Any]) -> int | None:
        statement = sa.update(_administrator).where(where).values(new)
        with writing(self._engine) as connection:
            returned = connection.execute(statement.returning(_administrator.c.epoch))
            epoch: int | None = returned.scalar_one_or_none()
            return epoch
