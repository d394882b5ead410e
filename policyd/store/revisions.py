"""The revisions of settings, and how one is made.

One row counts revisions. A change locks that row, writes what it changes with the new number, and
commits. So commits come in the order of revisions, and a worker that asks for rows `WHERE revision
> last` misses none, whatever else commits at the same time. A revision is unique only with its
epoch: see epochs.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from policyd.store import hints
from policyd.store.database import Bound, metadata, writing

revisions = sa.Table(
    "revision",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)


@contextmanager
def change(engine: sa.Engine, bound: Bound | None = None) -> Iterator[tuple[sa.Connection, int]]:
    """A transaction that makes a revision, and the revision's number. A block that finds nothing to
    change rolls back, and makes none."""
    with writing(engine, bound) as connection:
        # The transaction begins with the lock, so that writers queue up here.
        count = sa.update(revisions).values(value=revisions.c.value + 1)
        revision = connection.execute(count.returning(revisions.c.value)).scalar_one()
        hints.give(connection)
        yield connection, revision
