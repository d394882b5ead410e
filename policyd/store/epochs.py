"""The epochs of revisions: a random one for each, so that a revision is more than its number.

After a restore from a backup, or a failover that lost the last commits, the database counts on to
numbers that it had before, with other settings. A worker remembers the epoch of the revision that
it read last. If the database no longer has that revision with that epoch, the worker reads all keys
again. A trigger writes epochs (migration 0007), so changes by older versions of policyd have them,
too.
"""

import sqlalchemy as sa

from policyd.store.database import metadata

epochs = sa.Table(
    "revision_epochs",
    metadata,
    sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("epoch", sa.String(32), nullable=False),
)


def epoch_of(connection: sa.Connection, revision: int) -> str:
    """The epoch of a revision; "" where the database has none for it, or no longer has it."""
    found = connection.execute(sa.select(epochs.c.epoch).where(epochs.c.revision == revision))
    return found.scalar_one_or_none() or ""
