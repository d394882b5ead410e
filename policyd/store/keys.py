"""API keys in the store: what administrators do with them, one key at a time.

Each change makes one revision (revisions.py), and writes its record of the audit trail in the same
transaction (audit.py). `by` names the actor who makes the change.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from policyd.engine.places import IDENTIFIERS
from policyd.engine.settings import ApiKey, KeyChanges, KeySettings
from policyd.errors import InvalidArgument, KeyNotFound, KeyRevoked
from policyd.keys import api_key
from policyd.keys.audit import Action, changed_fields
from policyd.keys.settings import Change, changed
from policyd.store import audit, key_changes, key_rows, key_settings, workers
from policyd.store.clock import database_time
from policyd.store.database import find, now, reading
from policyd.store.key_rows import CHANGEABLE, keys
from policyd.store.revisions import change

MAX_KEEP = timedelta(days=90)
"""How long, at most, the secret before a rotation stays in force."""


class Keys:
    """The API keys in the database of `engine`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def create(
        self,
        name: str,
        policies: Change = (),
        accept: tuple[str, ...] = IDENTIFIERS,
        *,
        expires_at: datetime | None = None,
        digest: str | None = None,
        by: str = "",
    ) -> tuple[ApiKey, str]:
        """Make a key. Returns its settings and the key itself, which is stored as a digest only; or
        "", where its `digest` is given: the SHA-256 of a secret made elsewhere, in hexadecimal.

        Raises InvalidArgument, NameTaken or OlderServers.
        """
        row = key_rows.valid({"name": name, "accept": accept, "expires_at": expires_at})
        row |= key_settings.row(changed((), policies))
        secret = new_secret(row, digest)
        with change(self._engine) as (connection, revision):
            check_free(connection, row, needs_workers=expires_at is not None)
            connection.execute(sa.insert(keys).values(row | {"revision": revision}))
            key = key_rows.read(connection, row["id"])
            _note(connection, Action.KEY_CREATE, by, None, key)
            return key, secret

    def list(
        self, *, after: str = "", limit: int = 100, show_revoked: bool = False
    ) -> list[ApiKey]:
        """Up to `limit` keys, oldest first, that were made after the key with the ID `after`."""
        with reading(self._engine) as connection:
            last = key_rows.read(connection, after) if after else None
            place = (last.created_at, last.id) if last else None
            query = list_query(place, show_revoked=show_revoked)
            rows = connection.execute(query.limit(limit))
            return [key_rows.api_key_of(row) for row in rows]

    def get(self, key_id: str) -> ApiKey:
        """The key with this ID. Raises KeyNotFound."""
        with reading(self._engine) as connection:
            return key_rows.read(connection, key_id)

    def find(self, name: str) -> ApiKey:
        """The key of this name that is not revoked. Raises KeyNotFound, and InvalidArgument where
        several have it, as older versions of policyd allowed."""
        with reading(self._engine) as connection:
            found = key_rows.named(connection, name.strip())
        if not found:
            raise KeyNotFound(
                f"no API key that is not revoked has the name {name[:64]!r}: list them to see "
                "which there are"
            )
        return key_rows.only(found)

    def update(
        self,
        key_id: str,
        changes: Mapping[str, object],
        etag: str | None = None,
        *,
        by: str = "",
    ) -> ApiKey:
        """Change some of CHANGEABLE. `policies` are all settings that the key then has, or a
        function that makes them from those that it has.

        Raises KeyNotFound, KeyRevoked, EtagMismatch, InvalidArgument, NameTaken or OlderServers.
        """
        row = key_rows.valid(changes)
        policies: Change | None = row.pop("policies", None)
        if not changes:
            raise InvalidArgument(f"nothing to change: name one of {', '.join(CHANGEABLE)}")
        with change(self._engine) as (connection, revision):
            current = _read_unrevoked(connection, key_id, etag)
            if row.get("name", current.name) != current.name:
                key_rows.check_name_is_free(connection, row["name"])
            if row.get("expires_at") is not None:
                workers.check_all_follow(connection)
            if policies is not None:
                row |= key_settings.row(changed(current.policies, policies))
            key = key_rows.write(connection, key_id, row, revision)
            _note(connection, Action.KEY_UPDATE, by, current, key)
            return key

    def rotate(
        self, key_id: str, keep: timedelta, etag: str | None = None, *, by: str = ""
    ) -> tuple[ApiKey, str]:
        """Give a key a new secret. Returns its settings and the new secret. The previous secret
        stays in force for `keep`, up to MAX_KEEP; one that an earlier rotation kept ends now.

        Raises KeyNotFound, KeyRevoked, EtagMismatch, InvalidArgument or OlderServers.
        """
        if not timedelta() <= keep <= MAX_KEEP:
            raise InvalidArgument(
                f"the previous secret is kept for 0 to {MAX_KEEP.days} days, no longer"
            )
        secret = api_key.generate()
        with change(self._engine) as (connection, revision):
            current = _read_unrevoked(connection, key_id, etag)
            workers.check_all_follow(connection)
            until = database_time(connection) + keep if keep else None
            row = replaced(connection, key_id, api_key.digest(secret), until, revision)
            row["suffix"] = api_key.suffix(secret)
            key = key_rows.write(connection, key_id, row, revision)
            _note(connection, Action.KEY_ROTATE, by, current, key)
            return key, secret

    def revoke(self, key_id: str, etag: str | None = None, *, by: str = "") -> ApiKey:
        """Revoke a key for good. A revoked key stays as it is. Raises KeyNotFound, EtagMismatch."""
        with change(self._engine) as (connection, revision):
            current = key_rows.read(connection, key_id, etag)
            if current.revoked_at:
                connection.rollback()
                return current
            key = key_rows.write(connection, key_id, {"revoked_at": now()}, revision)
            _note(connection, Action.KEY_REVOKE, by, current, key)
            return key

    def in_force(self, digest: bytes) -> KeySettings | None:
        """The settings of the key whose secret has this digest. None: it is not in force."""
        with reading(self._engine) as connection:
            return key_changes.in_force(connection, digest)

    def known(self, ids: Iterable[str]) -> set[str]:
        """Which of these IDs are those of keys, revoked ones included."""
        with reading(self._engine) as connection:
            return {row.id for row in find(connection, keys.c.id, ids)}

    def first_created(self) -> datetime | None:
        """When the first key was made, even if it was revoked since. None: there is none."""
        with reading(self._engine) as connection:
            made: datetime | None = connection.execute(
                sa.select(sa.func.min(keys.c.created_at))
            ).scalar_one()
        return made

    def changes_since(self, revision: int, epoch: str | None = None) -> KeyChanges:
        """What changed after `revision`, up to some newer one: see key_changes.py."""
        return key_changes.since(self._engine, revision, epoch)


def list_query(place: tuple[datetime, str] | None, *, show_revoked: bool) -> sa.Select[Any]:
    """The query of keys, oldest first, after a moment and an ID, or of all."""
    age = (keys.c.created_at, keys.c.id)
    query = sa.select(keys).order_by(*age)
    if not show_revoked:
        query = query.where(keys.c.revoked_at.is_(None))
    if place is not None:
        query = query.where(sa.tuple_(*age) > sa.tuple_(*place, types=[one.type for one in age]))
    return query


def new_secret(row: dict[str, Any], digest: str | None) -> str:
    """Complete the row of a new key, with a new secret or the `digest` of one. Returns the secret;
    "" where only its digest is known. Raises InvalidArgument."""
    at = now()  # It is only shown, so this machine's clock will do.
    row |= {"id": api_key.generate_id(), "created_at": at, "updated_at": at, "revoked_at": None}
    if digest is not None:
        row |= {"digest": api_key.read_digest(digest), "suffix": ""}
        return ""
    secret = api_key.generate()
    row |= {"digest": api_key.digest(secret), "suffix": api_key.suffix(secret)}
    return secret


def check_free(connection: sa.Connection, row: Mapping[str, Any], *, needs_workers: bool) -> None:
    """Raises NameTaken, InvalidArgument or OlderServers where a new key cannot have this name or
    digest, or where workers run that would not follow it."""
    key_rows.check_name_is_free(connection, row["name"])
    key_rows.check_digest_is_free(connection, row["digest"])
    if needs_workers:
        workers.check_all_follow(connection)


def replaced(
    connection: sa.Connection,
    key_id: str,
    digest: bytes,
    until: datetime | None,
    revision: int,
) -> dict[str, Any]:
    """The columns of a key's row that change where `digest` takes the place of its own, which stays
    in force `until` then. Notes which digests are no longer in force."""
    row = key_rows.read_row(connection, key_id)
    kept, ended = (row.digest, [row.previous_digest]) if until else (None, [row.digest])
    if not until:
        ended.append(row.previous_digest)
    key_rows.end(connection, ended, revision)
    return {"digest": digest, "previous_digest": kept, "previous_until": until}


def _read_unrevoked(connection: sa.Connection, key_id: str, etag: str | None) -> ApiKey:
    current = key_rows.read(connection, key_id, etag)
    if current.revoked_at:
        raise KeyRevoked(f"{key_id} is revoked and cannot be changed: create a new key")
    return current


def _note(
    connection: sa.Connection, action: Action, by: str, before: ApiKey | None, after: ApiKey
) -> None:
    audit.add(connection, [entry(action, by, before, after)])


def entry(action: Action, by: str, before: ApiKey | None, after: ApiKey) -> audit.Entry:
    """The audit trail's entry for a change to a key."""
    fields = changed_fields(before, after)
    return audit.Entry(action, by, after.id, after.name, fields, after.revision)
