"""The decision log in the store: what was decided, and what became of it.

Whatever is appended twice is there once: the spool may hand the same entries over again after a
crash. The counts of statistics.py change in the same transaction.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from policyd.errors import DecisionNotFound, StoreUnavailable
from policyd.record import Outcome, Record, first_id, moment
from policyd.refusal import Refusal, RefusalCount
from policyd.store.database import Id, Moment, metadata, now, reading, storable, upsert, writing
from policyd.store.decisions import (
    FIELDS,
    OUTCOME_COLUMNS,
    LogFilter,
    decisions,
    page_query,
    read_record,
    usage_query,
)
from policyd.store.positions import Step, advance
from policyd.store.refusals import add_refusals, forget_refusals
from policyd.store.space import give_back
from policyd.store.statistics import Tally, forget_users

_CHUNK = 5000
"""Rows of one transaction that deletes."""
_WAIT = timedelta(days=1)
"""How long an outcome waits for its decision."""


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
class LogStatus:
    """How the log is."""

    decisions: int
    lost: int
    """Decisions that were answered and never logged, of all time."""
    oldest: datetime | None


class Log:
    """The decision log in the database of `engine`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def append(
        self,
        entries: Sequence[Record | Outcome | Refusal | RefusalCount],
        step: Step | None = None,
        *,
        unreadable: int = 0,
    ) -> None:
        """Add decisions and outcomes, and what was counted of refused keys: all of it, or nothing.

        What is there already stays. `step` is where in the spool they stood, and how many lines
        there were `unreadable`, which count as lost. Raises PositionMoved.
        """
        try:
            self._append(entries, step, unreadable)
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, IntegrityError):
                raise
            # A request that was asked again has reached two replicas, and the other one has logged
            # it in this moment: now it is known.
            self._append(entries, step, unreadable)

    def _append(
        self,
        entries: Sequence[Record | Outcome | Refusal | RefusalCount],
        step: Step | None,
        unreadable: int,
    ) -> None:
        records = {entry.id: entry for entry in entries if isinstance(entry, Record)}
        outcomes = {entry.decision_id: entry for entry in entries if isinstance(entry, Outcome)}
        refused = [entry for entry in entries if isinstance(entry, Refusal | RefusalCount)]
        tally = Tally()
        with writing(self._engine) as connection:
            if step is not None:
                _make_durable(connection)
                advance(connection, step)
                _add_lost(connection, f"spool-{step.spool}", unreadable)
            for known in _known(connection, decisions.c.id, records):
                del records[known.id]
            _insert(connection, records.values(), tally)
            waited = _known(connection, _waiting.c.decision_id, records, _waiting.c.outcome)
            stored = {row.decision_id: _decode(row.outcome) for row in waited}
            missing = _attach(connection, outcomes | stored, tally)
            _put_aside(connection, missing)
            _forget_waiting(connection, stored)
            tally.write(connection)
            add_refusals(connection, refused)

    def page(
        self, wanted: LogFilter, *, after: str = "", newer_than: str = "", limit: int = 50
    ) -> list[Record]:
        """Up to `limit` decisions, newest first: behind the one with the ID `after`, and before
        the one with the ID `newer_than`."""
        query = page_query(wanted, after, newer_than, limit)
        with reading(self._engine) as connection:
            return [read_record(row) for row in connection.execute(query)]

    def usage(
        self, users: Iterable[str], *, key_id: str = "", limit: int = 20
    ) -> dict[str, tuple[list[str], list[str]]]:
        """The models and the keys of each end user's newest `limit` requests, commonest first."""
        found: dict[str, tuple[Counter[str], Counter[str]]] = {
            user: (Counter(), Counter()) for user in users if user
        }
        if not found:
            return {}
        with reading(self._engine) as connection:
            for user, *used in connection.execute(usage_query(list(found), key_id, limit)):
                for counter, value in zip(found[user], used, strict=True):
                    counter[value] += value != ""
        return {
            user: (_commonest(models), _commonest(keys)) for user, (models, keys) in found.items()
        }

    def get(self, decision_id: str) -> Record:
        """The decision with this ID. Raises DecisionNotFound."""
        query = sa.select(decisions).where(decisions.c.id == decision_id.replace("\0", ""))
        with reading(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise DecisionNotFound(
                f"the log has no decision {decision_id[:64]!r}: it may not have arrived yet, "
                "or is older than the log's retention"
            )
        return read_record(row)

    def status(self) -> LogStatus:
        """How the log is."""
        with reading(self._engine) as connection:
            held = connection.execute(sa.select(_size.c.decisions)).scalar_one()
            lost = connection.execute(sa.select(sa.func.sum(_lost.c.decisions))).scalar_one()
            oldest = connection.execute(sa.select(sa.func.min(decisions.c.id))).scalar_one()
        return LogStatus(held, int(lost or 0), moment(oldest) if oldest else None)

    def lose(self, lost: Mapping[str, int]) -> None:
        """Take note of how many decisions each process has dropped in all."""
        with writing(self._engine) as connection:
            known = _lost_by(connection, lost)
            rows = [
                {"process": process, "decisions": max(count, known.get(process, 0))}
                for process, count in lost.items()
            ]
            upsert(connection, _lost, rows, replace=("decisions",))

    def lost_by(self, processes: Iterable[str]) -> dict[str, int]:
        """How many decisions each of the processes has dropped, as the database has it."""
        with reading(self._engine) as connection:
            return _lost_by(connection, processes)

    def expire(self, before: datetime, max_rows: int) -> int:
        """Delete what is older than `before`, and the oldest beyond `max_rows`: some of it, so
        that nobody waits for long. Returns how many; call it again until that is 0.

        Outcomes whose decision has come after all are given to it; others are given up in time.
        """
        self._settle()
        deleted = self._expire_some(first_id(before), max_rows)
        with writing(self._engine) as connection:
            oldest = connection.execute(sa.select(sa.func.min(decisions.c.id))).scalar_one()
            forget_users(connection, moment(oldest) if oldest else before)
        forget_refusals(self._engine, before, now())
        return deleted

    def give_back(self) -> int:
        """Give back some of the space that expire() has freed: see space.py."""
        return give_back(self._engine)

    def _settle(self) -> None:
        tally = Tally()
        with writing(self._engine) as connection:
            found = sa.select(_waiting.c.outcome).where(
                _waiting.c.decision_id.in_(sa.select(decisions.c.id))
            )
            rows = connection.execute(found.limit(_CHUNK)).scalars()
            outcomes = {one.decision_id: one for one in map(_decode, rows)}
            _attach(connection, outcomes, tally)
            _forget_waiting(connection, outcomes)
            connection.execute(sa.delete(_waiting).where(_waiting.c.since < now() - _WAIT))
            tally.write(connection)

    def _expire_some(self, before: str, max_rows: int) -> int:
        with writing(self._engine) as connection:
            # Locked, so that no other server deletes and counts the same ones.
            held = connection.execute(sa.select(_size.c.decisions).with_for_update()).scalar_one()
            excess = min(max(held - max_rows, 0), _CHUNK)
            oldest = sa.select(decisions.c.id).order_by(decisions.c.id)
            old = set(connection.execute(oldest.limit(excess)).scalars())
            aged = oldest.where(decisions.c.id < before).limit(_CHUNK - excess)
            old.update(connection.execute(aged).scalars())
            if not old:
                return 0
            query = sa.delete(decisions).where(decisions.c.id <= max(old))
            deleted = connection.execute(query).rowcount
            _resize(connection, -deleted)
            return deleted


def _make_durable(connection: sa.Connection) -> None:
    """What is committed is deleted from the spool, so it has to be on the database's disk."""
    if connection.dialect.name == "postgresql":
        wanted = sa.func.set_config("synchronous_commit", "on", True)
        current = sa.func.current_setting("synchronous_commit")
        connection.execute(sa.select(wanted).where(current == "off"))


def _add_lost(connection: sa.Connection, process: str, lost: int) -> None:
    rows = [{"process": process, "decisions": lost}] if lost else []
    upsert(connection, _lost, rows, add=("decisions",))


def _lost_by(connection: sa.Connection, processes: Iterable[str]) -> dict[str, int]:
    query = sa.select(_lost).where(_lost.c.process.in_(list(processes)))
    return {row.process: row.decisions for row in connection.execute(query)}


def _commonest(counted: Counter[str]) -> list[str]:
    return [value for value, count in counted.most_common() if count]


def _locked(*columns: sa.Column[Any]) -> sa.Select[Any]:
    # Until the transaction ends, so that no other server gives them an outcome as well; in one
    # order, so that two never wait for each other.
    return sa.select(*columns).order_by(columns[0]).with_for_update()


def _known(
    connection: sa.Connection,
    key: sa.Column[str],
    ids: Iterable[str],
    *more: sa.Column[Any],
    query: Callable[..., sa.Select[Any]] = sa.select,
) -> Iterator[Any]:
    wanted = list(ids)
    for start in range(0, len(wanted), _CHUNK):
        some = wanted[start : start + _CHUNK]
        yield from connection.execute(query(key, *more).where(key.in_(some))).all()


def _insert(connection: sa.Connection, records: Iterable[Record], tally: Tally) -> None:
    rows = []
    for record in records:
        rows.append(dict(zip(FIELDS, map(storable, _builtins(record)), strict=False)))
        tally.count(record)
    if rows:
        connection.execute(sa.insert(decisions), rows)
        _resize(connection, len(rows))


def _builtins(entry: Record | Outcome) -> list[Any]:
    values: list[Any] = msgspec.to_builtins(entry)
    return values[1:]


def _attach(
    connection: sa.Connection, outcomes: Mapping[str, Outcome], tally: Tally
) -> dict[str, Outcome]:
    """Give each outcome to its decision, if that has none. Returns those without a decision."""
    column = decisions.c
    more = (column.key_id, column.end_user, column.in_scope, column.outcome_ending)
    missing = dict(outcomes)
    rows = []
    for row in _known(connection, column.id, sorted(outcomes), *more, query=_locked):
        outcome = missing.pop(row.id)
        if row.outcome_ending is None:
            values = map(storable, _builtins(outcome)[1:])
            rows.append({"decision": row.id} | dict(zip(OUTCOME_COLUMNS, values, strict=True)))
            tally.add_outcome(outcome, row.key_id, row.end_user)
    if rows:
        update = sa.update(decisions).where(column.id == sa.bindparam("decision"))
        connection.execute(
            update.values({name: sa.bindparam(name) for name in OUTCOME_COLUMNS}), rows
        )
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
