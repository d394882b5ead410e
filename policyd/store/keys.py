"""API keys in the store, and the revisions of their settings.

One row counts revisions. A change locks that row, writes the key with the new number and commits.
So commits come in the order of revisions, and a worker that asks for keys `WHERE revision > last`
misses none, whatever else commits at the same time. A revoked key stays as a row, a tombstone, as
workers must learn of it too. A revision is unmistakable only with its epoch: see epochs.py.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from policyd.engine.places import IDENTIFIERS
from policyd.engine.settings import ApiKey, KeyChange, KeyChanges, KeySettings
from policyd.errors import EtagMismatch, InvalidArgument, KeyNotFound, KeyRevoked
from policyd.keys import api_key
from policyd.keys.settings import Change, changed
from policyd.store import hints, key_settings
from policyd.store.database import Moment, metadata, now, reading, writing
from policyd.store.epochs import epoch_of, epochs
from policyd.store.key_settings import Accept

MAX_NAME = 200
"""Characters of a key's name."""
CHANGEABLE = ("name", "policies", "accept")
"""The fields of an ApiKey that Keys.update() takes."""

_revision = sa.Table(
    "revision",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(MAX_NAME), nullable=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("mode", sa.SmallInteger),
    sa.Column("override", sa.SmallInteger, nullable=False),
    sa.Column("accept", Accept, nullable=False),
    sa.Column("policies", sa.Text, nullable=False, server_default="{}"),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("updated_at", Moment, nullable=False),
    sa.Column("revoked_at", Moment),
    sa.Column("revision", sa.BigInteger, nullable=False, index=True),
)


class Keys:
    """The API keys in the database of `engine`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def create(
        self,
        name: str,
        policies: Change = (),
        accept: tuple[str, ...] = IDENTIFIERS,
    ) -> tuple[ApiKey, str]:
        """Make a key. Returns its settings and the key itself, which is stored as a digest only.

        Raises InvalidArgument.
        """
        key = api_key.generate()
        row = _valid({"name": name, "accept": accept})
        row |= key_settings.row(changed((), policies))
        at = now()  # It is only shown, so this machine's clock will do.
        row |= {"id": api_key.generate_id(), "digest": api_key.digest(key)}
        row |= {"created_at": at, "updated_at": at, "revoked_at": None}
        with self._change() as (connection, revision):
            row["revision"] = revision
            connection.execute(sa.insert(_keys).values(row))
            return _read(connection, row["id"]), key

    def list(
        self, *, after: str = "", limit: int = 100, show_revoked: bool = False
    ) -> list[ApiKey]:
        """Up to `limit` keys, oldest first, that were made after the key with the ID `after`."""
        query = sa.select(_keys).order_by(_keys.c.created_at, _keys.c.id).limit(limit)
        if not show_revoked:
            query = query.where(_keys.c.revoked_at.is_(None))
        with reading(self._engine) as connection:
            if after:
                last = _read(connection, after)
                place = sa.tuple_(_keys.c.created_at, _keys.c.id)
                query = query.where(place > sa.tuple_(last.created_at, last.id))
            return [_api_key(row) for row in connection.execute(query)]

    def get(self, key_id: str) -> ApiKey:
        """The key with this ID. Raises KeyNotFound."""
        with reading(self._engine) as connection:
            return _read(connection, key_id)

    def update(self, key_id: str, changes: Mapping[str, object], etag: str | None = None) -> ApiKey:
        """Change some of CHANGEABLE. `policies` are all that the key then has, or a function that
        makes them of those that it has.

        Raises KeyNotFound, KeyRevoked, EtagMismatch or InvalidArgument.
        """
        row = _valid(changes)
        policies: Change | None = row.pop("policies", None)
        if not changes:
            raise InvalidArgument(f"nothing to change: name one of {', '.join(CHANGEABLE)}")
        with self._change() as (connection, revision):
            current = _read(connection, key_id, etag)
            if current.revoked_at:
                raise KeyRevoked(f"{key_id} is revoked and cannot be changed: create a new key")
            if policies is not None:
                row |= key_settings.row(changed(current.policies, policies))
            return _write(connection, key_id, row, revision)

    def revoke(self, key_id: str, etag: str | None = None) -> ApiKey:
        """Revoke a key for good. A revoked key stays as it is. Raises KeyNotFound, EtagMismatch."""
        with self._change() as (connection, revision):
            current = _read(connection, key_id, etag)
            if current.revoked_at:
                connection.rollback()
                return current
            return _write(connection, key_id, {"revoked_at": now()}, revision)

    def changes_since(self, revision: int, epoch: str | None = None) -> KeyChanges:
        """The keys that changed after `revision`, up to some newer one.

        Every key for revision 0, and where the database does not have this revision with this
        epoch, because it was restored from a backup or has lost changes. None stands for any
        epoch.
        """
        newest = sa.select(_revision.c.value, sa.func.coalesce(epochs.c.epoch, ""))
        newest = newest.outerjoin_from(_revision, epochs, epochs.c.revision == _revision.c.value)
        with reading(self._engine) as connection:
            # The number is read first: a key that commits between the two reads is read once more
            # at the next call.
            latest, latest_epoch = connection.execute(newest).one()
            # Nearly every call finds nothing new, and takes this one query.
            known = latest_epoch if latest == revision else epoch_of(connection, revision)
            is_known = epoch in (None, known)
            if latest == revision and is_known:
                return KeyChanges(latest, (), epoch=latest_epoch)
            since = revision if latest > revision and is_known else 0
            rows = connection.execute(sa.select(_keys).where(_keys.c.revision > since))
            changed = tuple(map(_key_change, rows))
            return KeyChanges(latest, changed, everything=since == 0, epoch=latest_epoch)

    @contextmanager
    def _change(self) -> Iterator[tuple[sa.Connection, int]]:
        with writing(self._engine) as connection:
            # The transaction begins with the lock, so that writers queue up here.
            count = sa.update(_revision).values(value=_revision.c.value + 1)
            revision = connection.execute(count.returning(_revision.c.value)).scalar_one()
            hints.give(connection)
            yield connection, revision


def _valid(changes: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := set(changes) - set(CHANGEABLE):
        raise InvalidArgument(f"a key has no changeable field {', '.join(sorted(unknown))}")
    row = dict(changes)
    if "name" in row:
        row["name"] = _valid_name(row["name"])
    if "accept" in row:
        row["accept"] = key_settings.accept_text(row["accept"])
    return row


def _valid_name(name: str) -> str:
    name = name.strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise InvalidArgument(f"a key's name has 1 to {MAX_NAME} printable characters")
    return name


def _read(connection: sa.Connection, key_id: str, etag: str | None = None) -> ApiKey:
    # PostgreSQL takes no NUL in a text.
    wanted = sa.select(_keys).where(_keys.c.id == key_id.replace("\0", ""))
    row = connection.execute(wanted).one_or_none()
    if row is None:
        raise KeyNotFound(
            f"no API key has the ID {key_id[:64]!r}: list them to see which there are"
        )
    key = _api_key(row)
    # Older versions of policyd gave out the revision as the etag.
    if etag and etag not in (key.etag, str(key.revision)):
        raise EtagMismatch(f"{key_id} has changed since it was read: read it again, then change it")
    return key


def _write(connection: sa.Connection, key_id: str, row: dict[str, Any], revision: int) -> ApiKey:
    row = {**row, "updated_at": now(), "revision": revision}
    connection.execute(sa.update(_keys).where(_keys.c.id == key_id).values(row))
    return _read(connection, key_id)


def _api_key(row: Any) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        policies=key_settings.policies(row.mode, row.override, row.policies),
        accept=key_settings.accept(row.accept),
        created_at=row.created_at,
        updated_at=row.updated_at,
        revoked_at=row.revoked_at,
        revision=row.revision,
    )


def _key_change(row: Any) -> KeyChange:
    if row.revoked_at:
        return KeyChange(row.digest, None)
    settings = key_settings.policies(row.mode, row.override, row.policies)
    return KeyChange(row.digest, KeySettings(row.id, settings, key_settings.accept(row.accept)))
