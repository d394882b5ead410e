"""API keys as rows, and what is checked before one is written.

A revoked key stays as a row, a tombstone, as workers must learn of it, too. A digest that no longer
is a key's stays for the same reason, in a table of its own.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from policyd.engine.settings import ApiKey
from policyd.errors import EtagMismatch, InvalidArgument, KeyNotFound, NameTaken
from policyd.store import key_settings
from policyd.store.database import Moment, metadata, now
from policyd.store.key_settings import Accept

MAX_NAME = 200
"""Characters of a key's name."""
CHANGEABLE = ("name", "policies", "accept", "expires_at")
"""The fields of an ApiKey that Keys.update() takes."""

keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(MAX_NAME), nullable=False, index=True),
    sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("mode", sa.SmallInteger),
    sa.Column("override", sa.SmallInteger, nullable=False),
    sa.Column("accept", Accept, nullable=False),
    sa.Column("policies", sa.Text, nullable=False, server_default="{}"),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("updated_at", Moment, nullable=False),
    sa.Column("revoked_at", Moment),
    sa.Column("revision", sa.BigInteger, nullable=False, index=True),
    sa.Column("previous_digest", sa.LargeBinary(32)),
    sa.Column("previous_until", Moment),
    sa.Column("expires_at", Moment),
    sa.Column("suffix", sa.String(4), nullable=False, server_default=""),
    sa.Index("ix_api_keys_previous", "previous_digest", unique=True),
    sa.Index("ix_api_keys_created", "created_at", "id"),
)
sa.Index(
    "ix_api_keys_unrevoked",
    *(keys.c.created_at, keys.c.id),
    sqlite_where=keys.c.revoked_at.is_(None),
    postgresql_where=keys.c.revoked_at.is_(None),
)
sa.Index("ix_api_keys_lower_name", sa.func.lower(keys.c.name), keys.c.created_at, keys.c.id)
ended_digests = sa.Table(
    "ended_digests",
    metadata,
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False, index=True),
)
"""Digests that keys had before, and the revision in which they ceased to be in force."""


def read_row(connection: sa.Connection, key_id: str, etag: str | None = None) -> Any:
    """The row of the key with this ID. Raises KeyNotFound or EtagMismatch."""
    # PostgreSQL takes no NUL in a text.
    wanted = sa.select(keys).where(keys.c.id == key_id.replace("\0", ""))
    row = connection.execute(wanted).one_or_none()
    if row is None:
        raise KeyNotFound(
            f"no API key has the ID {key_id[:64]!r}: list them to see which there are"
        )
    key = api_key_of(row)
    # Older versions of policyd gave out the revision as the etag.
    if etag and etag not in (key.etag, str(key.revision)):
        raise EtagMismatch(f"{key_id} has changed since it was read: read it again, then change it")
    return row


def read(connection: sa.Connection, key_id: str, etag: str | None = None) -> ApiKey:
    """The key with this ID. Raises KeyNotFound or EtagMismatch."""
    return api_key_of(read_row(connection, key_id, etag))


def named(connection: sa.Connection, name: str) -> list[ApiKey]:
    """The keys of this name that are not revoked, oldest first."""
    # PostgreSQL takes no NUL in a text.
    wanted = sa.select(keys).where(keys.c.name == name.replace("\0", ""))
    wanted = wanted.where(keys.c.revoked_at.is_(None)).order_by(keys.c.created_at, keys.c.id)
    return [api_key_of(row) for row in connection.execute(wanted)]


def only(found: list[ApiKey]) -> ApiKey:
    """The only one of these keys of one name. Raises InvalidArgument where there are several."""
    if len(found) > 1:
        told = ", ".join(f"{key.id}, made {key.created_at:%Y-%m-%d %H:%M}" for key in found[:5])
        raise InvalidArgument(
            f"{len(found)} keys have the name {found[0].name!r} ({told}): give the ID, and all but "
            "one of them another name"
        )
    return found[0]


def write(connection: sa.Connection, key_id: str, row: dict[str, Any], revision: int) -> ApiKey:
    """Change a key's row. Returns the key after that."""
    row = {**row, "updated_at": now(), "revision": revision}
    connection.execute(sa.update(keys).where(keys.c.id == key_id).values(row))
    return read(connection, key_id)


def end(connection: sa.Connection, digests: Iterable[bytes | None], revision: int) -> None:
    """Note that these digests are no longer in force."""
    rows = [{"digest": one, "revision": revision} for one in digests if one]
    if rows:
        connection.execute(sa.insert(ended_digests), rows)


def check_name_is_free(connection: sa.Connection, name: str) -> None:
    """Raises NameTaken where a key that is not revoked has this name. In a database that an older
    version has used, several keys may share a name: they stay as they are."""
    if found := named(connection, name):
        raise NameTaken(
            f"the key {found[0].id} has the name {name!r} already: give another one, or revoke "
            "that key first"
        )


def check_digest_is_free(connection: sa.Connection, digest: bytes) -> None:
    """Raises InvalidArgument where this digest is, or was, a key's."""
    is_used = sa.exists().where((keys.c.digest == digest) | (keys.c.previous_digest == digest))
    was_used = sa.exists().where(ended_digests.c.digest == digest)
    if connection.execute(sa.select(is_used | was_used)).scalar_one():
        raise InvalidArgument(
            f"the digest {digest.hex()[:12]}… is that of another key's secret, or of one that is "
            "no longer in force: make another secret"
        )


def valid(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of CHANGEABLE as columns; `policies` as they are. Raises InvalidArgument."""
    if unknown := set(changes) - set(CHANGEABLE):
        raise InvalidArgument(f"a key has no changeable field {', '.join(sorted(unknown))}")
    row = dict(changes)
    if "name" in row:
        row["name"] = valid_name(row["name"])
    if "accept" in row:
        row["accept"] = key_settings.accept_text(row["accept"])
    if row.get("expires_at") is not None:
        row["expires_at"] = _valid_time(row["expires_at"])
    return row


def valid_name(name: str) -> str:
    """The name without white space around it. Raises InvalidArgument."""
    name = name.strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise InvalidArgument(f"a key's name has 1 to {MAX_NAME} printable characters")
    return name


def _valid_time(at: datetime) -> datetime:
    if at.tzinfo is None:
        raise InvalidArgument("expires_at is a moment in a time zone")
    return at.astimezone(UTC)


def api_key_of(row: Any) -> ApiKey:
    """The key that a row holds."""
    return ApiKey(
        id=row.id,
        name=row.name,
        policies=key_settings.policies(row.mode, row.override, row.policies),
        accept=key_settings.accept(row.accept),
        created_at=row.created_at,
        updated_at=row.updated_at,
        revoked_at=row.revoked_at,
        revision=row.revision,
        expires_at=row.expires_at,
        previous_until=row.previous_until,
        suffix=row.suffix,
    )
