"""The epochs of revisions: a random one for each, so that a revision is more than its number.

A backup put back, or a failover that lost the last commits, goes on to numbers that were there
before, with other settings. A worker that knows the epoch of the revision that it read last sees
whether the database still has that one, and reads everything if not. A trigger writes them
(migration 0007), so changes by a version that knows of no epochs have one too.
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
    """The epoch of a revision; empty where that is not known, or no longer."""
    found = connection.execute(sa.select(epochs.c.epoch).where(epochs.c.revision == revision))
    return found.scalar_one_or_none() or ""
