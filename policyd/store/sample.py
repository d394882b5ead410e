"""Removes the made-up requests of `policyd demo` from the log, and from the counts."""

import sqlalchemy as sa

from policyd.store import log_size
from policyd.store.counts import Tally
from policyd.store.decisions import decisions, read_record

_ROWS = 500
"""Decisions that one transaction removes."""


def remove_some(connection: sa.Connection) -> int:
    """Delete some of the decisions that are marked as samples, and take them out of the counts.

    Returns how many.
    """
    query = sa.select(decisions).where(decisions.c.sample).order_by(decisions.c.id).limit(_ROWS)
    records = [read_record(row) for row in connection.execute(query.with_for_update())]
    if not records:
        return 0
    tally = Tally("sample")
    for record in records:
        tally.count(record, record.outcome)
    ids = [record.id for record in records]
    connection.execute(sa.delete(decisions).where(decisions.c.id.in_(ids)))
    log_size.add(connection, -len(ids))
    # Last, as in an append: see log.py.
    tally.take_back(connection)
    return len(ids)
