"""What workers follow: which digests are in force, and the server's defaults."""

import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from policyd.command import deadline
from policyd.engine.settings import KeyChanges, KeySettings
from policyd.keys.changed_keys import ChangedKeys
from policyd.store import defaults, key_settings
from policyd.store.clock import database_time
from policyd.store.database import reading
from policyd.store.epochs import epoch_of, epochs
from policyd.store.key_rows import ended_digests, keys
from policyd.store.revisions import revisions

_LONG_ENDED = timedelta(days=1)
"""How long after its end a secret that was kept for a while may be in force by a worker's clock."""
_PIECE = 500
"""Rows that are read at a time."""
_PAUSE = 0.0001
"""Seconds between two pieces."""
_Stored = tuple[int | None, int, str, str]
"""A key's settings as they are in the columns."""
_columns = sa.select(
    keys.c.id,
    keys.c.digest,
    *(keys.c.mode, keys.c.override, keys.c.accept, keys.c.policies),
    *(keys.c.revoked_at, keys.c.expires_at, keys.c.previous_digest, keys.c.previous_until),
)
"""Only what deciding needs: each column of a million keys costs half a second."""


def since(engine: sa.Engine, revision: int, epoch: str | None = None) -> KeyChanges:
    """The digests whose keys changed after `revision`, up to some newer one.

    For revision 0 these are all digests in force; so they are where the database does not have this
    revision with this epoch, because it was restored from a backup or has lost changes. None stands
    for any epoch.
    """
    newest = sa.select(revisions.c.value, sa.func.coalesce(epochs.c.epoch, ""))
    newest = newest.outerjoin_from(revisions, epochs, epochs.c.revision == revisions.c.value)
    # Everything is read as of one moment: keys and defaults that changed together arrive together.
    with reading(engine, is_snapshot=True) as connection:
        latest, latest_epoch = connection.execute(newest).one()
        # Nearly every call finds nothing new, and takes this one query.
        known = latest_epoch if latest == revision else epoch_of(connection, revision)
        is_known = epoch in (None, known)
        if latest == revision and is_known:
            return KeyChanges(latest, (), epoch=latest_epoch)
        begin = revision if latest > revision and is_known else 0
        changed = _changes(connection, begin)
        in_force = defaults.read(connection)
        return KeyChanges(latest, changed, begin == 0, latest_epoch, in_force)


def _changes(connection: sa.Connection, begin: int) -> ChangedKeys:
    changed, kinds = ChangedKeys(), dict[_Stored, int]()
    at = database_time(connection)
    if begin:
        ended = sa.select(ended_digests.c.digest).where(ended_digests.c.revision > begin)
        for some in _pieces(connection, ended):
            for (digest,) in some:
                changed.drop(digest)
        wanted = _columns.where(keys.c.revision > begin)
    else:
        # Where all keys are read, those in force are enough.
        wanted = _columns.where(keys.c.revoked_at.is_(None))
    for some in _pieces(connection, wanted):
        for row in some:
            _add(changed, kinds, row, at)
    return changed


def _pieces(connection: sa.Connection, query: sa.Select[Any]) -> Iterator[Sequence[Any]]:
    """The rows of a query, which may be all keys, some at a time. Each piece counts as an answer of
    the database, and between two pieces the threads that decide have their turn."""
    result = connection.execute(query.execution_options(yield_per=_PIECE))
    for some in result.partitions():
        deadline.renew()
        yield some
        if len(some) == _PIECE:
            # Without a pause, this thread would have the interpreter again before the others.
            time.sleep(_PAUSE)


def _add(changed: ChangedKeys, kinds: dict[_Stored, int], row: Any, at: datetime) -> None:
    """Add the key of a row of _columns. `kinds` has the numbers of the settings so far."""
    key_id, digest, mode, override, accept, policies, revoked, expires, previous, until = row
    if revoked is not None:
        changed.drop(digest)
        if previous:
            changed.drop(previous)
        return
    settings = changed.in_force
    as_stored = (mode, override, policies, accept)
    kind = kinds.get(as_stored)
    if kind is None:
        read = key_settings.policies(mode, override, policies), key_settings.accept(accept)
        kind = kinds[as_stored] = settings.number(*read)
    end = expires.timestamp() if expires else None
    settings.put(digest, key_id, kind, end)
    if previous and until > at - _LONG_ENDED:
        kept = until.timestamp()
        settings.put(previous, key_id, kind, kept if end is None else min(kept, end))


def in_force(connection: sa.Connection, digest: bytes) -> KeySettings | None:
    """The settings of the key whose secret has this digest. None: it is not in force now."""
    at = database_time(connection)
    changed = ChangedKeys()
    is_its = (keys.c.digest == digest) | (keys.c.previous_digest == digest)
    for row in connection.execute(_columns.where(is_its, keys.c.revoked_at.is_(None))):
        _add(changed, {}, row, at)
    found = changed.in_force.get(digest)
    if found is not None and found.until is not None and found.until <= at.timestamp():
        return None
    return found
