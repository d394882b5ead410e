"""Brings keys and defaults to what an operator declares: all of it in one revision, or nothing.

The transaction that makes the changes also finds them, so that nothing comes between. For a dry
run, the same is done and rolled back.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import sqlalchemy as sa

from policyd.descriptor.end_users import check_end_users
from policyd.engine.settings import ServerDefaults
from policyd.errors import InvalidArgument, SettingsError
from policyd.keys import api_key
from policyd.keys.audit import Action, changed_defaults
from policyd.keys.settings import Applied, AppliedChange, DeclaredKey, changed
from policyd.store import audit, key_rows, key_settings, workers
from policyd.store import defaults as stored_defaults
from policyd.store.clock import database_time
from policyd.store.database import LONG, now
from policyd.store.key_rows import keys
from policyd.store.keys import entry, new_secret, replaced
from policyd.store.revisions import change


class _Wanted(NamedTuple):
    """A declared key, checked."""

    key: DeclaredKey
    row: dict[str, Any]
    """Its columns, except its settings of policies."""
    digest: bytes | None


class _Change(NamedTuple):
    """The transaction of the changes, and the revision that it makes."""

    connection: sa.Connection
    revision: int


def apply(
    engine: sa.Engine,
    declared: Sequence[DeclaredKey],
    defaults: ServerDefaults | None,
    *,
    prune: bool = False,
    dry_run: bool = False,
    by: str = "",
) -> Applied:
    """Bring the keys, known by their names, and the defaults to what is declared. See
    Store.apply()."""
    wanted = _checked(declared)
    if prune and not wanted:
        raise InvalidArgument(
            "without a declared key, every key would be revoked: declare those that stay, or "
            "revoke keys one at a time"
        )
    with change(engine, LONG) as (connection, revision):
        this = _Change(connection, revision)
        changes = _apply_keys(this, wanted, prune=prune)
        if defaults is not None:
            changes += _apply_defaults(this, defaults)
        if dry_run or not changes:
            connection.rollback()
            return Applied(tuple(map(_not_made, changes)), revision - 1)
        audit.add(connection, [_entry(one, by, revision) for one in changes])
        return Applied(tuple(changes), revision)


def _not_made(one: AppliedChange) -> AppliedChange:
    """A change that is only reported: its secret and its ID are those of no key."""
    if one.action != Action.KEY_CREATE or one.after is None:
        return one
    return replace(one, after=replace(one.after, id="", suffix=""), secret="")


def _checked(declared: Sequence[DeclaredKey]) -> list[_Wanted]:
    """The declared keys. Raises InvalidArgument, also where two are at odds."""
    wanted = [_checked_key(one) for one in declared]
    _check_once((one.row["name"] for one in wanted), "the name")
    digests = (one.digest.hex()[:12] + "…" for one in wanted if one.digest)
    _check_once(digests, "the digest")
    return wanted


def _checked_key(one: DeclaredKey) -> _Wanted:
    given = {"name": one.name, "accept": one.accept, "expires_at": one.expires_at}
    try:
        digest = None if one.digest is None else api_key.read_digest(one.digest)
        return _Wanted(one, key_rows.valid(given), digest)
    except InvalidArgument as error:
        raise _of_key(one, error) from None


def _of_key(one: DeclaredKey, error: InvalidArgument) -> InvalidArgument:
    return InvalidArgument(f"the key {one.name[:64]!r}: {error}")


def _check_once(given: Iterable[str], what: str) -> None:
    for value, times in Counter(given).items():
        if times > 1:
            raise InvalidArgument(f"{times} declared keys have {what} {value!r}: give each its own")


def _apply_keys(this: _Change, wanted: Sequence[_Wanted], *, prune: bool) -> list[AppliedChange]:
    there: dict[str, list[Any]] = {}
    unrevoked = sa.select(keys).where(keys.c.revoked_at.is_(None))
    rows = this.connection.execute(unrevoked.order_by(keys.c.created_at, keys.c.id))
    for row in rows:
        there.setdefault(row.name, []).append(row)
    changes = []
    # First, as another key may take over a name or a digest that a key gives up.
    if prune:
        names = {one.row["name"] for one in wanted}
        gone = [row for name, found in there.items() if name not in names for row in found]
        changes += [_revoke(this, row) for row in gone]
    for one in wanted:
        try:
            found = there.get(one.row["name"])
            made = _update(this, one, found) if found else _create(this, one)
        except InvalidArgument as error:
            raise _of_key(one.key, error) from None
        changes += [made] if made else []
    return changes


def _revoke(this: _Change, row: Any) -> AppliedChange:
    key = key_rows.write(this.connection, row.id, {"revoked_at": now()}, this.revision)
    return AppliedChange(Action.KEY_REVOKE, key_rows.api_key_of(row), key)


def _create(this: _Change, one: _Wanted) -> AppliedChange:
    row = one.row | key_settings.row(changed((), one.key.policies))
    secret = new_secret(row, one.key.digest)
    # Its name is free, or this would be an update. With many keys each statement counts, as other
    # writers wait meanwhile.
    if one.digest is not None:
        key_rows.check_digest_is_free(this.connection, row["digest"])
    if row["expires_at"] is not None:
        workers.check_all_follow(this.connection)
    this.connection.execute(sa.insert(keys).values(row | {"revision": this.revision}))
    key = key_rows.read(this.connection, row["id"])
    return AppliedChange(Action.KEY_CREATE, None, key, secret)


def _update(this: _Change, one: _Wanted, found: Sequence[Any]) -> AppliedChange | None:
    """Change an existing key. None: it is as declared already."""
    before = key_rows.only([key_rows.api_key_of(row) for row in found])
    row = found[0]
    settings = key_settings.row(changed(before.policies, one.key.policies))
    new = _differing(row, one.row | settings)
    if one.digest is not None and one.digest != row.digest:
        new |= _other_secret(this, row, one.digest) | {"suffix": ""}
    if not new:
        return None
    if new.get("expires_at") is not None or "digest" in new:
        workers.check_all_follow(this.connection)
    after = key_rows.write(this.connection, row.id, new, this.revision)
    return AppliedChange(Action.KEY_UPDATE, before, after)


def _differing(row: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in wanted.items() if getattr(row, name) != value}


def _other_secret(this: _Change, row: Any, digest: bytes) -> dict[str, Any]:
    """Replace a key's secret by a declared one. The old one ends now, as it is not declared."""
    is_kept = digest == row.previous_digest and row.previous_until > database_time(this.connection)
    if is_kept:
        key_rows.end(this.connection, [row.digest], this.revision)
        return {"digest": digest, "previous_digest": None, "previous_until": None}
    key_rows.check_digest_is_free(this.connection, digest)
    return replaced(this.connection, row.id, digest, None, this.revision)


def _apply_defaults(this: _Change, wanted: ServerDefaults) -> list[AppliedChange]:
    before = stored_defaults.read(this.connection) or ServerDefaults()
    policies = changed(before.policies, wanted.policies)
    names = ("end_user_headers", "end_user_callers")
    try:
        check_end_users(wanted.end_user_headers, wanted.end_user_callers, names)
    except SettingsError as error:
        raise InvalidArgument(f"the defaults: {error}") from None
    after = replace(wanted, policies=policies, revision=this.revision)
    if stored_defaults.same(before, after):
        return []
    workers.check_all_follow(this.connection)
    stored_defaults.write(this.connection, after)
    made = AppliedChange(Action.DEFAULTS_UPDATE, defaults_before=before, defaults_after=after)
    return [made]


def _entry(one: AppliedChange, by: str, revision: int) -> audit.Entry:
    if one.after is not None:
        return entry(one.action, by, one.before, one.after)
    assert one.defaults_before
    assert one.defaults_after
    fields = changed_defaults(one.defaults_before, one.defaults_after)
    return audit.Entry(one.action, by, changed=fields, revision=revision)
