"""Counts of the decision log: by hour and key, by day, key and end user, by hour, key and model.

They change in the transaction that writes the log, so they always agree with it, and stay when its
rows are retired. statistics.py reads them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from functools import lru_cache
from operator import itemgetter
from typing import Any

import sqlalchemy as sa

from policyd.decision_log.record import Outcome, Record, Verdict
from policyd.descriptor.placeholders import is_placeholder
from policyd.engine.states import UserState
from policyd.store import latencies, many_rows
from policyd.store.database import metadata, storable
from policyd.store.latencies import EVERY_KEY
from policyd.store.log_filter import BROKEN, ERROR
from policyd.store.steps import Steps, delete_some

HOUR = 3600
DAY = 24 * HOUR
"""Seconds."""
_HOURS = DAY // HOUR
_KEEP = timedelta(days=400)
"""How long the counts by hour are kept: long enough to compare a year with the one before."""


@dataclass(slots=True)
class Counts:
    """Counts of some requests."""

    requests: int = 0
    denied: int = 0
    would_deny: int = 0
    attributed: int = 0
    """Requests in scope with a valid end-user identifier."""
    unattributed: int = 0
    """Requests in scope without one. Requests out of scope count in neither."""
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
        """The mean duration of a request, in microseconds. None: not known."""
        return self.duration_us // self.timed if self.timed else None


NAMES = tuple(field.name for field in fields(Counts))
_OF_DECISION = (
    *("requests", "denied", "would_deny", "attributed", "unattributed", "placeholders"),
    "flagged",
)
_OF_OUTCOME = ("input_tokens", "output_tokens", "cost_nano", "errors", "timed", "duration_us")
_COUNTED = (*_OF_DECISION, *_OF_OUTCOME)
_NO_DECISION = (0,) * len(_OF_DECISION)
_NO_OUTCOME = (0,) * len(_OF_OUTCOME)
_Numbers = tuple[int, ...]
"""The counts of some requests, in the order of _COUNTED."""


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
"""The counts of each key, and of all keys together, as EVERY_KEY."""
has_placeholders = daily.c.placeholders > sa.literal_column("0")
sa.Index(
    "ix_daily_user_counts_placeholders",
    daily.c.day,
    sqlite_where=has_placeholders,
    postgresql_where=has_placeholders,
)


class Tally:
    """The counts that one transaction of `writer` adds: see latencies.EVERY_KEY.

    A request is counted by its key and end user, and by its key and model. The counts of keys, and
    of all keys together, are sums of those by model.
    """

    def __init__(self, writer: str) -> None:
        self._writer = writer
        self._users: dict[tuple[int, str, str], list[_Numbers]] = defaultdict(list)
        self._models: dict[tuple[int, str, str], list[_Numbers]] = defaultdict(list)
        self._latencies: Counter[tuple[int, str, int]] = Counter()

    def count(self, record: Record, outcome: Outcome | None = None) -> None:
        """Count one decision and its outcome, if that is known, unless its key was refused: older
        versions logged such requests."""
        if record.key_id:
            numbers = _of_decision(record) + (_of_outcome(outcome) if outcome else _NO_OUTCOME)
            self._count(record.id, record.key_id, record.end_user, record.model, numbers, outcome)

    def add_outcome(self, outcome: Outcome, key_id: str, end_user: str, model: str) -> None:
        """Count the outcome of one request."""
        if key_id:
            numbers = _NO_DECISION + _of_outcome(outcome)
            self._count(outcome.decision_id, key_id, end_user, model, numbers, outcome)

    def _count(
        self,
        decision_id: str,
        key_id: str,
        end_user: str,
        model: str,
        numbers: _Numbers,
        outcome: Outcome | None,
    ) -> None:
        hour = int(decision_id[:12], 16) // (1000 * HOUR)
        self._users[hour // _HOURS, key_id, storable(end_user)].append(numbers)
        self._models[hour, key_id, storable(model)].append(numbers)
        if outcome is not None and outcome.duration_us is not None:
            self._latencies[hour, key_id, latencies.mark(outcome.duration_us)] += 1

    def write(self, connection: sa.Connection) -> None:
        """Add the counts to those in the database."""
        for table, rows in self._rows():
            many_rows.add(connection, table, _COUNTED, rows)
        latencies.write(connection, self._every_latency())

    def take_back(self, connection: sa.Connection) -> None:
        """Take the counts out of those in the database, and delete rows that then count nothing."""
        for table, rows in self._rows():
            key = len(table.primary_key.columns)
            less = [(*row[:key], *(-count for count in row[key:])) for row in rows]
            many_rows.add(connection, table, _COUNTED, less)
        latencies.take_back(connection, self._every_latency())
        for table, rows in self._rows():
            key = len(table.primary_key.columns)
            latencies.delete_empty(connection, table, [row[:key] for row in rows])

    def _rows(self) -> Iterator[tuple[sa.Table, list[tuple[Any, ...]]]]:
        """What was counted, by table and in the order of keys: in one order, so that two writers
        never wait for each other."""
        hours: dict[tuple[int, str], list[_Numbers]] = defaultdict(list)
        named: dict[tuple[int, str, str, str], list[_Numbers]] = defaultdict(list)
        for (hour, key_id, model), counted in self._models.items():
            total = _total(counted)
            hours[hour, key_id].append(total)
            named[hour, key_id, "", model].append(total)
            named[hour, EVERY_KEY, self._writer, model].append(total)
        yield hourly, _totals(hours)
        yield daily, _totals(self._users)
        yield models, _totals(named)

    def _every_latency(self) -> Counter[tuple[int, str, str, int]]:
        """The latencies by key, and of all keys together."""
        found: Counter[tuple[int, str, str, int]] = Counter()
        for (hour, key_id, below), number in self._latencies.items():
            found[hour, key_id, "", below] += number
            found[hour, EVERY_KEY, self._writer, below] += number
        return found


def _total(counted: list[_Numbers]) -> _Numbers:
    return counted[0] if len(counted) == 1 else tuple(map(sum, zip(*counted, strict=True)))


def _totals(counted: Mapping[Any, list[_Numbers]]) -> list[tuple[Any, ...]]:
    return [(*key, *_total(some)) for key, some in sorted(counted.items(), key=itemgetter(0))]


def _of_decision(record: Record) -> _Numbers:
    is_known = record.in_scope and record.mode is not None
    has_user = record.user_state is UserState.VALID
    verdict = record.verdict
    return (
        1,
        int(verdict is Verdict.DENIED),
        int(verdict is Verdict.WOULD_DENY),
        int(is_known and has_user),
        int(is_known and not has_user),
        int(is_known and has_user and _is_placeholder(record.end_user)),
        int(record.flags != ""),
    )


def _of_outcome(outcome: Outcome) -> _Numbers:
    return (
        outcome.input_tokens or 0,
        outcome.output_tokens or 0,
        outcome.cost_nano or 0,
        int(outcome.status >= ERROR or outcome.ending in BROKEN),
        int(outcome.duration_us is not None),
        outcome.duration_us or 0,
    )


# An end user sends many requests.
_is_placeholder = lru_cache(maxsize=4096)(is_placeholder)


def forget(steps: Steps, oldest: datetime) -> None:
    """Delete the counts of end users, models and latencies from before `oldest`, and the counts by
    hour that are older than _KEEP."""
    day = int(oldest.timestamp()) // DAY
    steps.run(lambda c, limit: delete_some(c, daily, daily.c.day < day, limit))
    hour = int(oldest.timestamp()) // HOUR
    steps.run(lambda c, limit: delete_some(c, models, models.c.hour < hour, limit))
    times = latencies.table
    steps.run(lambda c, limit: delete_some(c, times, times.c.hour < hour, limit))
    kept = int((oldest - _KEEP).timestamp()) // HOUR
    steps.run(lambda c, limit: delete_some(c, hourly, hourly.c.hour < kept, limit))
