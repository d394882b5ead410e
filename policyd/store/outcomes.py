"""Outcomes in the store: added to their decisions, or kept until those arrive.

An outcome may be shipped before its decision, from another replica's spool. It waits here for up to
_WAIT, and is then given up.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from policyd.decision_log.record import Outcome
from policyd.store import many_rows
from policyd.store.clock import database_time
from policyd.store.counts import Tally
from policyd.store.database import Id, Moment, find, metadata, reading, upsert, writing
from policyd.store.decisions import OUTCOME_COLUMNS, decisions, outcome_values
from policyd.store.steps import Steps, delete_some

_SETTLED = 500
"""Outcomes that waited and are added to their decisions in one transaction."""
_WAIT = timedelta(days=1)
"""How long an outcome waits for its decision."""

_waiting = sa.Table(
    "waiting_outcomes",
    metadata,
    sa.Column("decision_id", Id, primary_key=True),
    sa.Column("outcome", sa.LargeBinary, nullable=False),
    sa.Column("since", Moment, nullable=False),
)


def waiting_for(connection: sa.Connection, new: Iterable[str]) -> dict[str, Outcome]:
    """The outcomes that wait for decisions with these IDs."""
    rows = find(connection, _waiting.c.decision_id, new, _waiting.c.outcome)
    return {row.decision_id: _decode(row.outcome) for row in rows}


def add_outcomes(connection: sa.Connection, outcomes: Mapping[str, Outcome], tally: Tally) -> None:
    """Add each outcome to its decision, or keep it until that arrives. The keys of `outcomes` are
    their decisions' IDs."""
    _put_aside(connection, _attach(connection, outcomes, tally))


def settle(engine: sa.Engine, steps: Steps, at: datetime) -> None:
    """Add kept outcomes to decisions that have arrived since, and give up those that have waited
    longer than _WAIT. `at` is now, by the database's clock."""
    with reading(engine) as connection:
        if connection.execute(sa.select(_waiting.c.since).limit(1)).first() is None:
            return
    tally = Tally("settled")
    with writing(engine) as connection:
        found = sa.select(_waiting.c.outcome).where(
            _waiting.c.decision_id.in_(sa.select(decisions.c.id))
        )
        rows = connection.execute(found.limit(_SETTLED)).scalars()
        outcomes = {one.decision_id: one for one in map(_decode, rows)}
        _attach(connection, outcomes, tally)
        forget(connection, outcomes)
        tally.write(connection)
    late = _waiting.c.since < at - _WAIT
    steps.run(lambda c, limit: delete_some(c, _waiting, late, limit))


def _attach(
    connection: sa.Connection, outcomes: Mapping[str, Outcome], tally: Tally
) -> dict[str, Outcome]:
    """Add each outcome to its decision, if that has none. Returns those that found no decision."""
    column = decisions.c
    more = (column.key_id, column.end_user, column.model, column.outcome_ending)
    missing = dict(outcomes)
    values = outcome_values(outcomes)
    rows = []
    for row in find(connection, column.id, sorted(outcomes), *more, query=_locked):
        outcome = missing.pop(row.id)
        if row.outcome_ending is None:
            rows.append((*values[row.id], row.id))
            tally.add_outcome(outcome, row.key_id, row.end_user, row.model)
    many_rows.change(connection, decisions, OUTCOME_COLUMNS, rows)
    return missing


def _locked(*columns: sa.Column[Any]) -> sa.Select[Any]:
    # Locked until the transaction ends, so that no other shipper adds an outcome as well; in one
    # order, so that two shippers never wait for each other.
    return sa.select(*columns).order_by(columns[0]).with_for_update()


def _put_aside(connection: sa.Connection, outcomes: Mapping[str, Outcome]) -> None:
    if not outcomes:
        return
    at = database_time(connection)
    rows = [
        {"decision_id": key, "outcome": msgspec.json.encode(outcome), "since": at}
        for key, outcome in outcomes.items()
    ]
    upsert(connection, _waiting, rows)


def forget(connection: sa.Connection, outcomes: Iterable[str]) -> None:
    """Delete the waiting outcomes of these decisions, to which they have been added."""
    ids = list(outcomes)
    if ids:
        connection.execute(sa.delete(_waiting).where(_waiting.c.decision_id.in_(ids)))


def _decode(outcome: bytes) -> Outcome:
    return msgspec.json.decode(outcome, type=Outcome)
