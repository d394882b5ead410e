"""Counts of the decision log: by hour and key, by day, key and end user, by hour, key and model.

They change in the transaction that writes the log, so they always agree with it, and stay when its
rows are retired. statistics.py reads them.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from policyd.decision_log.record import Outcome, Record, Verdict, moment
from policyd.descriptor.placeholders import is_placeholder
from policyd.engine.states import UserState
from policyd.store import latencies
from policyd.store.database import metadata, storable, upsert
from policyd.store.latencies import EVERY_KEY
from policyd.store.log_filter import BROKEN, ERROR
from policyd.store.steps import Steps, delete_some

HOUR = 3600
DAY = 24 * HOUR
"""In seconds."""
_KEEP = timedelta(days=400)
"""How long the counts by hour are kept: long enough to compare a year with the one before."""


@dataclass(slots=True)
class Counts:
    """Counts of some requests."""

    requests: int = 0
    denied: int = 0
    would_deny: int = 0
    attributed: int = 0
    """In scope, with a valid end-user identifier."""
    unattributed: int = 0
    """In scope, without one. Requests out of scope count in neither."""
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0
    """Billionths of a US dollar, of the requests whose cost is known."""
    flagged: int = 0
    errors: int = 0
    """Answered with a status of 400 or more, broken off by the upstream, or not answered at all."""
    timed: int = 0
    """Requests whose duration is known, and ..."""
    duration_us: int = 0
    """... the sum of their durations, in microseconds."""
    placeholders: int = 0
    """Attributed to a placeholder in place of an end user: see descriptor/placeholders.py."""

    @property
    def latency_us(self) -> int | None:
        """The mean duration of a request. None: not known."""
        return self.duration_us // self.timed if self.timed else None


NAMES = tuple(field.name for field in fields(Counts))


def _counts() -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in NAMES]


hourly = sa.Table(
    "hourly_counts",
    metadata,
    sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("key_id", sa.String(32), primary_key=True),
    *_counts(),
)
daily = sa.Table(
    "daily_user_counts",
    metadata,
    sa.Column("day", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("end_user", sa.String(256), primary_key=True),
    *_counts(),
)
models = sa.Table(
    "hourly_model_counts",
    metadata,
    sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("writer", sa.String(8), primary_key=True),
    sa.Column("model", sa.String(256), primary_key=True),
    *_counts(),
)
"""Also of all keys together, as EVERY_KEY."""
has_placeholders = daily.c.placeholders > sa.literal_column("0")
sa.Index(
    "ix_daily_user_counts_placeholders",
    daily.c.day,
    sqlite_where=has_placeholders,
    postgresql_where=has_placeholders,
)


class Tally:
    """The counts that one transaction of `writer` adds: see latencies.EVERY_KEY."""

    def __init__(self, writer: str) -> None:
        self._writer = writer
        self._hours: dict[tuple[Any, ...], Counts] = defaultdict(Counts)
        self._users: dict[tuple[Any, ...], Counts] = defaultdict(Counts)
        self._models: dict[tuple[Any, ...], Counts] = defaultdict(Counts)
        self._latencies: Counter[tuple[int, str, str, int]] = Counter()

    def count(self, record: Record) -> None:
        """Count one decision, unless its key was refused: older versions logged such requests."""
        if record.is_key_refused:
            return
        is_known = record.in_scope and record.mode is not None
        has_user = record.user_state is UserState.VALID
        is_empty = is_known and has_user and is_placeholder(record.end_user)
        for counts in self._of(record.id, record.key_id, record.end_user, record.model):
            counts.requests += 1
            counts.denied += record.verdict is Verdict.DENIED
            counts.would_deny += record.verdict is Verdict.WOULD_DENY
            counts.attributed += is_known and has_user
            counts.unattributed += is_known and not has_user
            counts.flagged += record.flags != ""
            counts.placeholders += is_empty

    def add_outcome(self, outcome: Outcome, key_id: str, end_user: str, model: str) -> None:
        """Count what became of one request."""
        if not key_id:
            return
        is_error = outcome.status >= ERROR or outcome.ending in BROKEN
        if outcome.duration_us is not None:
            hour, below = _hour(outcome.decision_id), latencies.mark(outcome.duration_us)
            for key, writer in ((key_id, ""), (EVERY_KEY, self._writer)):
                self._latencies[hour, key, writer, below] += 1
        for counts in self._of(outcome.decision_id, key_id, end_user, model):
            counts.input_tokens += outcome.input_tokens or 0
            counts.output_tokens += outcome.output_tokens or 0
            counts.cost_nano += outcome.cost_nano or 0
            counts.errors += is_error
            counts.timed += outcome.duration_us is not None
            counts.duration_us += outcome.duration_us or 0

    def write(self, connection: sa.Connection) -> None:
        """Add the counts to those in the database."""
        self._add(connection, 1)
        latencies.write(connection, self._latencies)

    def take_back(self, connection: sa.Connection) -> None:
        """Take the counts out of those in the database, and the rows that then count nothing."""
        self._add(connection, -1)
        latencies.take_back(connection, self._latencies)
        for table, counted in self._written():
            latencies.delete_empty(connection, table, counted)

    def _add(self, connection: sa.Connection, sign: int) -> None:
        for table, counted in self._written():
            keys = table.primary_key.columns.keys()
            rows = [
                dict(zip(keys, key, strict=True))
                | {name: sign * getattr(counts, name) for name in NAMES}
                for key, counts in sorted(counted.items())
            ]
            upsert(connection, table, rows, add=NAMES)

    def _written(self) -> tuple[tuple[sa.Table, dict[tuple[Any, ...], Counts]], ...]:
        """What was counted, by table: in one order, so that two writers never wait for each
        other."""
        return (hourly, self._hours), (daily, self._users), (models, self._models)

    def _of(self, decision_id: str, key_id: str, end_user: str, model: str) -> list[Counts]:
        hour = _hour(decision_id)
        user, model = storable(end_user), storable(model)
        return [
            self._hours[hour, key_id],
            self._users[hour * HOUR // DAY, key_id, user],
            self._models[hour, key_id, "", model],
            self._models[hour, EVERY_KEY, self._writer, model],
        ]


def _hour(decision_id: str) -> int:
    return int(moment(decision_id).timestamp()) // HOUR


def forget(steps: Steps, oldest: datetime) -> None:
    """Delete the counts of end users, models and latencies from before `oldest`, and those of hours
    long ago."""
    day = int(oldest.timestamp()) // DAY
    steps.run(lambda c, limit: delete_some(c, daily, daily.c.day < day, limit))
    hour = int(oldest.timestamp()) // HOUR
    steps.run(lambda c, limit: delete_some(c, models, models.c.hour < hour, limit))
    times = latencies.table
    steps.run(lambda c, limit: delete_some(c, times, times.c.hour < hour, limit))
    kept = int((oldest - _KEEP).timestamp()) // HOUR
    steps.run(lambda c, limit: delete_some(c, hourly, hourly.c.hour < kept, limit))
