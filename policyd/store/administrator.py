"""The administrator of the console: a digest of the password, and the epoch of the sessions.

Sessions and the link of the first start are signed for one epoch, so a new epoch ends all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from policyd.store.database import metadata, reading, writing

_administrator = sa.Table(
    "administrator",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("password_hash", sa.String(300), nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
)
_NEXT = _administrator.c.epoch + 1


@dataclass(frozen=True, slots=True)
class Credentials:
    """What signs the administrator in."""

    password_hash: str
    """By Argon2. Empty: no password was set yet."""
    epoch: int


class Administrator:
    """The administrator in the database of `engine`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def get(self) -> Credentials:
        """What signs in now."""
        query = sa.select(_administrator.c.password_hash, _administrator.c.epoch)
        with reading(self._engine) as connection:
            return Credentials(*connection.execute(query).one())

    def set_password(self, password_hash: str, epoch: int) -> int | None:
        """Set the password and end every session, if `epoch` still is. Returns the new epoch.

        None: the epoch is another one, and nothing has changed.
        """
        new = {"password_hash": password_hash, "epoch": _NEXT}
        return self._update(_administrator.c.epoch == epoch, new)

    def end_sessions(self) -> None:
        """End every session."""
        self._update(sa.true(), {"epoch": _NEXT})

    def _update(self, where: sa.ColumnElement[bool], new: Mapping[str, Any]) -> int | None:
        statement = sa.update(_administrator).where(where).values(new)
        with writing(self._engine) as connection:
            returned = connection.execute(statement.returning(_administrator.c.epoch))
            epoch: int | None = returned.scalar_one_or_none()
            return epoch
