"""How many decisions the log holds, counted while it is written.

The count is spread over several rows, and a transaction adds to a row that no other transaction has
locked. So none waits for another one, which may stand still, or whose replica may have vanished.
Older versions of policyd count in the one row of `log_size`, which is a part of the sum.
"""

import secrets

import sqlalchemy as sa

from policyd.store.database import metadata

_one = sa.Table(
    "log_size",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("decisions", sa.BigInteger, nullable=False),
)
_parts = sa.Table(
    "log_sizes",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("decisions", sa.BigInteger, nullable=False),
)


def total(connection: sa.Connection) -> int:
    """How many decisions the log holds."""
    parts = sa.func.coalesce(sa.func.sum(_parts.c.decisions), 0)
    query = sa.select(_one.c.decisions + sa.select(parts).scalar_subquery())
    return int(connection.execute(query).scalar_one())


def add(connection: sa.Connection, number: int) -> None:
    """Count `number` more decisions, or fewer if it is negative."""
    if not number:
        return
    if not connection.execute(_count, {"number": number}).rowcount:
        row = {"id": secrets.token_hex(16), "decisions": number}
        connection.execute(sa.insert(_parts).values(row))


# So there are never more rows than transactions that ran at the same time.
_free = sa.select(_parts.c.id).limit(1).with_for_update(skip_locked=True).scalar_subquery()
_count = (
    sa.update(_parts)
    .where(_parts.c.id == _free)
    .values(decisions=_parts.c.decisions + sa.bindparam("number", type_=sa.BigInteger))
)
