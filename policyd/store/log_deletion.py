"""Deletes decisions and what belongs to them: see retention.py for how many, steps.py for how."""

from datetime import datetime

import sqlalchemy as sa

from policyd.decision_log.record import first_id, moment
from policyd.store import log_size
from policyd.store.counts import forget
from policyd.store.database import reading
from policyd.store.decisions import decisions
from policyd.store.outcomes import settle
from policyd.store.partitions import drop_days
from policyd.store.refused_keys import forget_refused_keys
from policyd.store.retention import take_turn
from policyd.store.steps import Steps


def expire(engine: sa.Engine, steps: Steps, before: datetime, max_rows: int, at: datetime) -> int:
    """Delete some of the decisions older than `before` and of the oldest beyond `max_rows`, and the
    counts and outcomes that go with them. `at` is now, by the database's clock. Returns how many
    decisions were deleted."""
    settle(engine, steps, at)
    first = first_id(before)
    deleted = drop_days(engine, first, log_size.add)
    deleted += steps.run(lambda c, limit: _delete_older(c, first, limit))
    with reading(engine) as connection:
        excess = log_size.total(connection) - max_rows
    if excess > 0:
        deleted += steps.run(lambda c, limit: _delete_beyond(c, max_rows, limit))
    with reading(engine) as connection:
        oldest = connection.execute(sa.select(sa.func.min(decisions.c.id))).scalar_one()
    forget(steps, moment(oldest) if oldest else before)
    forget_refused_keys(engine, steps, before, at)
    return deleted


def _delete_older(connection: sa.Connection, first: str, limit: int) -> int:
    """Delete the oldest of the decisions whose ID is less than `first`."""
    return _delete(connection, _oldest.where(decisions.c.id < first), limit)


def _delete_beyond(connection: sa.Connection, max_rows: int, limit: int) -> int:
    """Delete the oldest of the decisions in excess of `max_rows`."""
    take_turn(connection)
    excess = max(log_size.total(connection) - max_rows, 0)
    return _delete(connection, _oldest, min(limit, excess))


_oldest = sa.select(decisions.c.id).order_by(decisions.c.id)


def _delete(connection: sa.Connection, query: sa.Select[tuple[str]], limit: int) -> int:
    ids = list(connection.execute(query.limit(limit)).scalars())
    if not ids:
        return 0
    deleted = connection.execute(sa.delete(decisions).where(decisions.c.id <= ids[-1])).rowcount
    log_size.add(connection, -deleted)
    return deleted
