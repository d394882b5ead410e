"""The server's defaults, as administrators applied them for all servers of the database."""

import json
from typing import Any

import sqlalchemy as sa

from policyd.engine.settings import ServerDefaults, Settings
from policyd.store import key_settings
from policyd.store.database import metadata, upsert

_defaults = sa.Table(
    "server_defaults",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("policies", sa.Text, nullable=False),
    sa.Column("end_user_headers", sa.Text, nullable=False),
    sa.Column("end_user_callers", sa.Text, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
)
_ONE = 1
"""The ID of the only row."""


def read(connection: sa.Connection) -> ServerDefaults | None:
    """The defaults that were applied. None: there are none."""
    row = connection.execute(sa.select(_defaults)).one_or_none()
    if row is None:
        return None
    return ServerDefaults(
        key_settings.read_all(row.policies),
        tuple(json.loads(row.end_user_headers)),
        tuple(json.loads(row.end_user_callers)),
        row.revision,
    )


def write(connection: sa.Connection, wanted: ServerDefaults) -> None:
    """Replace the stored defaults by these."""
    row: dict[str, Any] = {
        "id": _ONE,
        "policies": key_settings.text_of_all(wanted.policies),
        "end_user_headers": json.dumps(wanted.end_user_headers),
        "end_user_callers": json.dumps(wanted.end_user_callers),
        "revision": wanted.revision,
    }
    upsert(connection, _defaults, [row], replace=[name for name in row if name != "id"])


def same(one: ServerDefaults, other: ServerDefaults) -> bool:
    """Whether both have the same content, whatever their revisions."""
    return _content(one) == _content(other)


def _content(defaults: ServerDefaults) -> tuple[Settings, frozenset[str], frozenset[str]]:
    return (
        defaults.policies,
        frozenset(defaults.end_user_headers),
        frozenset(defaults.end_user_callers),
    )
