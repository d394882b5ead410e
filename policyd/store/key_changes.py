"""What workers follow: which digests are in force, and the server's defaults."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from policyd.engine.settings import KeyChange, KeyChanges, KeySettings
from policyd.store import defaults, key_settings
from policyd.store.clock import database_time
from policyd.store.database import reading
from policyd.store.epochs import epoch_of, epochs
from policyd.store.key_rows import ended_digests, keys
from policyd.store.revisions import revisions

_LONG_ENDED = timedelta(days=1)
"""After so long, a secret that was kept for a while is in force by no worker's clock."""


def since(engine: sa.Engine, revision: int, epoch: str | None = None) -> KeyChanges:
    """The digests whose keys changed after `revision`, up to some newer one.

    Every digest in force for revision 0, and where the database does not have this revision with
    this epoch, because it was restored from a backup or has lost changes. None stands for any
    epoch.
    """
    newest = sa.select(revisions.c.value, sa.func.coalesce(epochs.c.epoch, ""))
    newest = newest.outerjoin_from(revisions, epochs, epochs.c.revision == revisions.c.value)
    # All that is read is of one moment: keys and defaults that changed together arrive together.
    with reading(engine, is_snapshot=True) as connection:
        latest, latest_epoch = connection.execute(newest).one()
        # Nearly every call finds nothing new, and takes this one query.
        known = latest_epoch if latest == revision else epoch_of(connection, revision)
        is_known = epoch in (None, known)
        if latest == revision and is_known:
            return KeyChanges(latest, (), epoch=latest_epoch)
        begin = revision if latest > revision and is_known else 0
        changed = tuple(_changes(connection, begin))
        in_force = defaults.read(connection)
        return KeyChanges(latest, changed, begin == 0, latest_epoch, in_force)


def _changes(connection: sa.Connection, begin: int) -> Iterator[KeyChange]:
    at = database_time(connection)
    if begin:
        ended = sa.select(ended_digests.c.digest).where(ended_digests.c.revision > begin)
        for digest in connection.execute(ended).scalars():
            yield KeyChange(digest, None)
    for row in connection.execute(sa.select(keys).where(keys.c.revision > begin)):
        yield from _of_key(row, at)


def _of_key(row: Any, at: datetime) -> Iterator[KeyChange]:
    end = row.expires_at.timestamp() if row.expires_at else None
    yield KeyChange(row.digest, _settings(row, end))
    if row.previous_digest and row.previous_until > at - _LONG_ENDED:
        until = row.previous_until.timestamp()
        until = until if end is None else min(until, end)
        yield KeyChange(row.previous_digest, _settings(row, until))


def _settings(row: Any, until: float | None) -> KeySettings | None:
    if row.revoked_at:
        return None
    settings = key_settings.policies(row.mode, row.override, row.policies)
    return KeySettings(row.id, settings, key_settings.accept(row.accept), until)


def in_force(connection: sa.Connection, digest: bytes) -> KeySettings | None:
    """The settings of the key whose secret has this digest. None: it is not in force now."""
    at = database_time(connection)
    wanted = sa.select(keys).where((keys.c.digest == digest) | (keys.c.previous_digest == digest))
    changes = [change for row in connection.execute(wanted) for change in _of_key(row, at)]
    found = next((one.settings for one in changes if one.digest == digest), None)
    if found is not None and found.until is not None and found.until <= at.timestamp():
        return None
    return found
