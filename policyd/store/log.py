"""The decision log in the store: what was decided, and what became of it.

Whatever is appended twice is there once: the spool may hand the same entries over again after a
crash. The counts of statistics.py change in the same transaction.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from policyd.errors import DecisionNotFound
from policyd.record import FLAG_SETS, Outcome, Record, Verdict, first_id, moment
from policyd.store.database import Id, Moment, metadata, now, reading, upsert, writing
from policyd.store.statistics import Tally, forget_users

_CHUNK = 5000
"""Rows of one transaction that deletes."""
_WAIT = timedelta(days=1)
"""How long an outcome waits for its decision."""
_FIELDS = Record.__struct_fields__[:-1]
_OUTCOME_FIELDS = Outcome.__struct_fields__[1:]
_OUTCOME = tuple("outcome_" + name for name in _OUTCOME_FIELDS)


def _text(name: str, length: int) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), nullable=False, default="")


_decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("verdict", sa.SmallInteger, nullable=False),
    sa.Column("status", sa.SmallInteger, nullable=False),
    _text("key_id", 32),
    _text("operation", 32),
    sa.Column("mode", sa.SmallInteger),
    sa.Column("source", sa.SmallInteger),
    sa.Column("ignored", sa.SmallInteger, nullable=False),
    sa.Column("in_scope", sa.Boolean, nullable=False),
    sa.Column("user_state", sa.SmallInteger, nullable=False),
    _text("identifier", 32),
    _text("summary", 500),
    _text("flags", 100),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("body_user", sa.SmallInteger, nullable=False),
    sa.Column("body_safety_identifier", sa.SmallInteger, nullable=False),
    _text("overrides", 32),
    _text("end_user", 256),
    _text("model", 256),
    _text("method", 256),
    _text("path", 512),
    _text("source_ip", 256),
    _text("user_agent", 512),
    _text("organization", 256),
    _text("trace_id", 100),
    _text("request_id", 256),
    sa.Column("sample", sa.Boolean, nullable=False),
    sa.Column("outcome_ending", sa.SmallInteger),
    sa.Column("outcome_status", sa.SmallInteger),
    sa.Column("outcome_first_byte_us", sa.BigInteger),
    sa.Column("outcome_duration_us", sa.BigInteger),
    sa.Column("outcome_openai_id", sa.String(256)),
    sa.Column("outcome_model", sa.String(256)),
    sa.Column("outcome_organization", sa.String(256)),
    sa.Column("outcome_input_tokens", sa.BigInteger),
    sa.Column("outcome_output_tokens", sa.BigInteger),
    sa.Column("outcome_cached_tokens", sa.BigInteger),
    sa.Column("outcome_cost_nano", sa.BigInteger),
    sa.Index("ix_decisions_key", "key_id", "id"),
    sa.Index("ix_decisions_key_verdict", "key_id", "verdict", "id"),
    sa.Index("ix_decisions_verdict", "verdict", "id"),
    sa.Index("ix_decisions_operation", "operation", "id"),
    sqlite_with_rowid=False,
)


def _sparse(name: str, column: str) -> None:
    # Most rows have "" there, which nobody looks for.
    filled = _decisions.c[column] != sa.literal_column("''")
    sa.Index(
        name, _decisions.c[column], _decisions.c.id, sqlite_where=filled, postgresql_where=filled
    )


_sparse("ix_decisions_flags", "flags")
_sparse("ix_decisions_end_user", "end_user")
_sparse("ix_decisions_trace", "trace_id")

_waiting = sa.Table(
    "waiting_outcomes",
    metadata,
    sa.Column("decision_id", Id, primary_key=True),
    sa.Column("outcome", sa.LargeBinary, nullable=False),
    sa.Column("since", Moment, nullable=False),
)
_size = sa.Table(
    "log_size",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("decisions", sa.BigInteger, nullable=False),
)
_lost = sa.Table(
    "log_lost",
    metadata,
    sa.Column("process", sa.String(32), primary_key=True),
    sa.Column("decisions", sa.BigInteger, nullable=False),
)


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which decisions are wanted. Empty and None ask for nothing in particular."""

    key_id: str = ""
    verdict: Verdict | None = None
    flag: str = ""
    operation: str = ""
    end_user: str = ""
    trace_id: str = ""
    since: datetime | None = None
    until: datetime | None = None
    """Before, not at."""


@dataclass(frozen=True, slots=True)
class LogStatus:
    """How the log is."""

    decisions: int
    lost: int
    """Decisions that were answered and never logged, of all time."""
    oldest: datetime | None


@dataclass(frozen=True, slots=True)
class Facts:
    """Requests that were alike in all that a decision depends on, and how many there were."""

    in_scope: bool
    operation: str
    body_user: int
    body_safety_identifier: int
    overrides: str
    model: str
    user_agent: str
    requests: int
    newest: str
    """The ID of the newest one."""


class Log:
    """The decision log in the database of `engine`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def append(self, entries: Sequence[Record | Outcome]) -> None:
        """Add decisions and outcomes: all of them, or none. What is there already stays."""
        records = {entry.id: entry for entry in entries if isinstance(entry, Record)}
        outcomes = {entry.decision_id: entry for entry in entries if isinstance(entry, Outcome)}
        tally = Tally()
        with writing(self._engine) as connection:
            for known in _known(connection, _decisions.c.id, records):
                del records[known.id]
            _insert(connection, records.values(), tally)
            waited = _known(connection, _waiting.c.decision_id, records, _waiting.c.outcome)
            stored = {row.decision_id: _decode(row.outcome) for row in waited}
            missing = _attach(connection, outcomes | stored, tally)
            _put_aside(connection, missing)
            _forget_waiting(connection, stored)
            tally.write(connection)

    def page(
        self, wanted: LogFilter, *, after: str = "", newer_than: str = "", limit: int = 50
    ) -> list[Record]:
        """Up to `limit` decisions, newest first: behind the one with the ID `after`, and before
        the one with the ID `newer_than`."""
        query = page_query(wanted, after, newer_than, limit)
        with reading(self._engine) as connection:
            return [_record(row) for row in connection.execute(query)]

    def get(self, decision_id: str) -> Record:
        """The decision with this ID. Raises DecisionNotFound."""
        query = sa.select(_decisions).where(_decisions.c.id == decision_id.replace("\0", ""))
        with reading(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise DecisionNotFound(
                f"the log has no decision {decision_id[:64]!r}: it may not have arrived yet, "
                "or is older than the log's retention"
            )
        return _record(row)

    def status(self) -> LogStatus:
        """How the log is."""
        with reading(self._engine) as connection:
            decisions = connection.execute(sa.select(_size.c.decisions)).scalar_one()
            lost = connection.execute(sa.select(sa.func.sum(_lost.c.decisions))).scalar_one()
            oldest = connection.execute(sa.select(sa.func.min(_decisions.c.id))).scalar_one()
        return LogStatus(decisions, int(lost or 0), moment(oldest) if oldest else None)

    def lose(self, lost: Mapping[str, int]) -> None:
        """Take note of how many decisions each process has dropped in all."""
        rows = [{"process": process, "decisions": count} for process, count in lost.items()]
        with writing(self._engine) as connection:
            upsert(connection, _lost, rows, replace=("decisions",))

    def facts(self, key_id: str, since: datetime, until: datetime) -> list[Facts]:
        """What a key's requests between the two moments were, alike ones together."""
        columns = [_decisions.c[name] for name in Facts.__slots__[:-2]]
        query = (
            sa.select(*columns, sa.func.count(), sa.func.max(_decisions.c.id))
            .where(*_conditions(LogFilter(key_id=key_id, since=since, until=until)))
            .group_by(*columns)
        )
        with reading(self._engine) as connection:
            return [Facts(*tuple(row)) for row in connection.execute(query)]

    def expire(self, before: datetime, max_rows: int) -> int:
        """Delete what is older than `before`, and the oldest beyond `max_rows`. Returns how many.

        Outcomes whose decision has come after all are given to it; others are given up in time.
        """
        self._settle()
        deleted = 0
        while chunk := self._expire_chunk(first_id(before), max_rows):
            deleted += chunk
        with writing(self._engine) as connection:
            oldest = connection.execute(sa.select(sa.func.min(_decisions.c.id))).scalar_one()
            forget_users(connection, moment(oldest) if oldest else before)
        return deleted

    def _settle(self) -> None:
        tally = Tally()
        with writing(self._engine) as connection:
            found = sa.select(_waiting.c.outcome).where(
                _waiting.c.decision_id.in_(sa.select(_decisions.c.id))
            )
            rows = connection.execute(found.limit(_CHUNK)).scalars()
            outcomes = {one.decision_id: one for one in map(_decode, rows)}
            _attach(connection, outcomes, tally)
            _forget_waiting(connection, outcomes)
            connection.execute(sa.delete(_waiting).where(_waiting.c.since < now() - _WAIT))
            tally.write(connection)

    def _expire_chunk(self, before: str, max_rows: int) -> int:
        with writing(self._engine) as connection:
            held = connection.execute(sa.select(_size.c.decisions)).scalar_one()
            excess = min(max(held - max_rows, 0), _CHUNK)
            oldest = sa.select(_decisions.c.id).order_by(_decisions.c.id)
            old = set(connection.execute(oldest.limit(excess)).scalars())
            aged = oldest.where(_decisions.c.id < before).limit(_CHUNK - excess)
            old.update(connection.execute(aged).scalars())
            if not old:
                return 0
            connection.execute(sa.delete(_decisions).where(_decisions.c.id <= max(old)))
            _resize(connection, -len(old))
            return len(old)


def page_query(wanted: LogFilter, after: str, newer_than: str, limit: int) -> sa.Select[Any]:
    """The query of Log.page(): it follows an index from its newest end and stops at `limit`."""
    conditions = _conditions(wanted)
    if after:
        conditions.append(_decisions.c.id < after)
    if newer_than:
        conditions.append(_decisions.c.id > newer_than)
    query = sa.select(_decisions).where(*conditions)
    if not wanted.flag:
        return query.order_by(_decisions.c.id.desc()).limit(limit)
    # Each set of flags lies in order of time, and together they do not: so a few of each.
    sets = [one for one in FLAG_SETS if wanted.flag in one.split(",")]
    parts = [
        sa.select(
            query.where(_decisions.c.flags == one, _decisions.c.flags != sa.literal_column("''"))
            .order_by(_decisions.c.id.desc())
            .limit(limit)
            .subquery()
        )
        for one in sets or [""]
    ]
    every = sa.union_all(*parts).subquery()
    return sa.select(every).order_by(every.c.id.desc()).limit(limit)


def _conditions(wanted: LogFilter) -> list[sa.ColumnElement[bool]]:
    column = _decisions.c
    conditions: list[sa.ColumnElement[bool]] = []
    for name in ("key_id", "operation", "end_user", "trace_id"):
        if value := getattr(wanted, name).replace("\0", ""):
            conditions.append(column[name] == value)
            if name in ("end_user", "trace_id"):
                # So that SQLite sees that the partial index holds whatever is asked for.
                conditions.append(column[name] != sa.literal_column("''"))
    if wanted.verdict is not None:
        conditions.append(column.verdict == int(wanted.verdict))
    if wanted.since is not None:
        conditions.append(column.id >= first_id(wanted.since))
    if wanted.until is not None:
        conditions.append(column.id < first_id(wanted.until))
    return conditions


def _known(
    connection: sa.Connection, key: sa.Column[str], ids: Iterable[str], *more: sa.Column[Any]
) -> Iterator[Any]:
    wanted = list(ids)
    for start in range(0, len(wanted), _CHUNK):
        some = wanted[start : start + _CHUNK]
        yield from connection.execute(sa.select(key, *more).where(key.in_(some))).all()


def _insert(connection: sa.Connection, records: Iterable[Record], tally: Tally) -> None:
    rows = []
    for record in records:
        rows.append(dict(zip(_FIELDS, map(_storable, _builtins(record)), strict=False)))
        tally.count(record)
    if rows:
        connection.execute(sa.insert(_decisions), rows)
        _resize(connection, len(rows))


def _builtins(entry: Record | Outcome) -> list[Any]:
    values: list[Any] = msgspec.to_builtins(entry)
    return values[1:]


def _storable(value: Any) -> Any:
    # PostgreSQL has no way to keep a NUL in a text.
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value


def _attach(
    connection: sa.Connection, outcomes: Mapping[str, Outcome], tally: Tally
) -> dict[str, Outcome]:
    """Give each outcome to its decision, if that has none. Returns those without a decision."""
    column = _decisions.c
    more = (column.key_id, column.end_user, column.in_scope, column.outcome_ending)
    missing = dict(outcomes)
    rows = []
    for row in _known(connection, column.id, outcomes, *more):
        outcome = missing.pop(row.id)
        if row.outcome_ending is None:
            values = map(_storable, _builtins(outcome)[1:])
            rows.append({"decision": row.id} | dict(zip(_OUTCOME, values, strict=True)))
            tally.add_outcome(outcome, row.key_id, row.end_user)
    if rows:
        update = sa.update(_decisions).where(column.id == sa.bindparam("decision"))
        connection.execute(update.values({name: sa.bindparam(name) for name in _OUTCOME}), rows)
    return missing


def _put_aside(connection: sa.Connection, outcomes: Mapping[str, Outcome]) -> None:
    at = now()
    rows = [
        {"decision_id": key, "outcome": msgspec.json.encode(outcome), "since": at}
        for key, outcome in outcomes.items()
    ]
    upsert(connection, _waiting, rows)


def _forget_waiting(connection: sa.Connection, outcomes: Iterable[str]) -> None:
    ids = list(outcomes)
    if ids:
        connection.execute(sa.delete(_waiting).where(_waiting.c.decision_id.in_(ids)))


def _resize(connection: sa.Connection, by: int) -> None:
    connection.execute(sa.update(_size).values(decisions=_size.c.decisions + by))


def _decode(outcome: bytes) -> Outcome:
    return msgspec.json.decode(outcome, type=Outcome)


def _record(row: Any) -> Record:
    values = list(row)
    fields, outcome = values[: len(_FIELDS)], values[len(_FIELDS) :]
    reported = None if row.outcome_ending is None else ["O", row.id, *outcome]
    return msgspec.convert(["D", *fields, reported], Record)
