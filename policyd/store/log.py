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

from policyd.decision_log.record import Outcome, Record, first_id, moment
from policyd.decision_log.refused_key import RefusedKey, RefusedKeyCount
from policyd.errors import DecisionNotFound, StoreUnavailable
from policyd.store import log_size
from policyd.store.clock import database_time, midnight
from policyd.store.database import (
    LONG,
    SHIPPING,
    Id,
    Moment,
    metadata,
    reading,
    storable,
    upsert,
    writing,
)
from policyd.store.days import drop_days, make_days
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
from policyd.store.refused_keys import add_refused_keys, forget_refused_keys
from policyd.store.retention import Standstill, agree, look, note, standstill, take_turn
from policyd.store.space import give_back
from policyd.store.statistics import Tally, forget_users
from policyd.store.steps import Steps, delete_some

_CHUNK = 5000
"""IDs of one query."""
_SETTLED = 500
"""Outcomes that waited and are given to their decisions in one transaction."""
_SEVERAL_DAYS = timedelta(days=2)
"""Retention from which PostgreSQL's log goes by whole days."""
_WAIT = timedelta(days=1)
"""How long an outcome waits for its decision."""


_waiting = sa.Table(
    "waiting_outcomes",
    metadata,
    sa.Column("decision_id", Id, primary_key=True),
    sa.Column("outcome", sa.LargeBinary, nullable=False),
    sa.Column("since", Moment, nullable=False),
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
        self._steps = Steps(engine)

    def append(
        self,
        entries: Sequence[Record | Outcome | RefusedKey | RefusedKeyCount],
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
        entries: Sequence[Record | Outcome | RefusedKey | RefusedKeyCount],
        step: Step | None,
        unreadable: int,
    ) -> None:
        records = {entry.id: entry for entry in entries if isinstance(entry, Record)}
        outcomes = {entry.decision_id: entry for entry in entries if isinstance(entry, Outcome)}
        refused = [entry for entry in entries if isinstance(entry, RefusedKey | RefusedKeyCount)]
        tally = Tally()
        with writing(self._engine, SHIPPING) as connection:
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
            add_refused_keys(connection, refused)
            # Last: others wait for the rows of the same hours and users until this is committed.
            tally.write(connection)

    def page(
        self, wanted: LogFilter, *, after: str = "", newer_than: str = "", limit: int = 50
    ) -> list[Record]:
        """Up to `limit` decisions, newest first: behind the one with the ID `after`, and before
        the one with the ID `newer_than`."""
        query = page_query(wanted, after, newer_than, limit)
        with reading(self._engine, LONG) as connection:
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
        with reading(self._engine, LONG) as connection:
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
            count = log_size.total(connection)
            lost = connection.execute(sa.select(sa.func.sum(_lost.c.decisions))).scalar_one()
            oldest = connection.execute(sa.select(sa.func.min(decisions.c.id))).scalar_one()
        return LogStatus(count, int(lost or 0), moment(oldest) if oldest else None)

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

    def standstill(self) -> Standstill:
        """Why retention does less than its settings ask for, if it does."""
        with reading(self._engine) as connection:
            return standstill(connection)

    def retire(self, keep: timedelta, max_rows: int) -> int:
        """Delete some of what the log need not keep any longer, as far as that is safe: see
        retention.py. Returns how many; 0: that was all, for now."""
        with reading(self._engine, LONG) as connection:
            cut = look(connection, log_size.total(connection), keep, max_rows)
        with writing(self._engine) as connection:
            note(connection, cut, max_rows)
        make_days(self._engine, cut.now)
        before = cut.before
        if self._has_days and keep >= _SEVERAL_DAYS:
            # Whole days are dropped, so none is deleted row by row in the hours before.
            before = midnight(before)
        return self._expire(before, cut.max_rows, cut.now)

    def agree(self, older_than: timedelta | None, max_rows: int | None) -> datetime:
        """The operator has told: what is older, or beyond so many rows, may go, however much it
        is. Returns the moment before which decisions are older, by the database's clock."""
        with writing(self._engine) as connection:
            before = database_time(connection) - (older_than or timedelta())
            agree(connection, before if older_than is not None else None, max_rows)
        return before

    def expire(self, before: datetime, max_rows: int) -> int:
        """Delete what is older than `before`, and the oldest beyond `max_rows`: some of it, in
        steps that hold up no other writer. Returns how many; call it again until that is 0.

        Outcomes whose decision has come after all are given to it; others are given up in time.
        """
        with reading(self._engine) as connection:
            at = database_time(connection)
        return self._expire(before, max_rows, at)

    def _expire(self, before: datetime, max_rows: int, at: datetime) -> int:
        self._settle(at)
        deleted = drop_days(self._engine, first_id(before), log_size.add)
        deleted += self._steps.run(lambda c, limit: _delete_oldest(c, first_id(before), 0, limit))
        with reading(self._engine) as connection:
            excess = log_size.total(connection) - max_rows
        if excess > 0:
            deleted += self._steps.run(lambda c, limit: _delete_oldest(c, "", max_rows, limit))
        with reading(self._engine) as connection:
            oldest = connection.execute(sa.select(sa.func.min(decisions.c.id))).scalar_one()
        forget_users(self._steps, moment(oldest) if oldest else before)
        forget_refused_keys(self._engine, self._steps, before, at)
        return deleted

    @property
    def _has_days(self) -> bool:
        return self._engine.dialect.name == "postgresql"

    def give_back(self) -> int:
        """Give back some of the space that expire() has freed: see space.py."""
        return give_back(self._engine)

    def _settle(self, at: datetime) -> None:
        tally = Tally()
        with reading(self._engine) as connection:
            if connection.execute(sa.select(_waiting.c.since).limit(1)).first() is None:
                return
        with writing(self._engine) as connection:
            found = sa.select(_waiting.c.outcome).where(
                _waiting.c.decision_id.in_(sa.select(decisions.c.id))
            )
            rows = connection.execute(found.limit(_SETTLED)).scalars()
            outcomes = {one.decision_id: one for one in map(_decode, rows)}
            _attach(connection, outcomes, tally)
            _forget_waiting(connection, outcomes)
            tally.write(connection)
        late = _waiting.c.since < at - _WAIT
        self._steps.run(lambda c, limit: delete_some(c, _waiting, late, limit))


def _delete_oldest(connection: sa.Connection, before: str, max_rows: int, limit: int) -> int:
    """Delete the oldest decisions: those whose ID is less than `before`, or if that is empty,
    those beyond `max_rows`."""
    query = sa.select(decisions.c.id).order_by(decisions.c.id)
    if before:
        query = query.where(decisions.c.id < before)
    else:
        take_turn(connection)
        limit = min(limit, max(log_size.total(connection) - max_rows, 0))
    ids = list(connection.execute(query.limit(limit)).scalars())
    if not ids:
        return 0
    deleted = connection.execute(sa.delete(decisions).where(decisions.c.id <= ids[-1])).rowcount
    log_size.add(connection, -deleted)
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
        log_size.add(connection, len(rows))


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
    if not outcomes:
        return
    at = database_time(connection)
    rows = [
        {"decision_id": key, "outcome": msgspec.json.encode(outcome), "since": at}
        for key, outcome in outcomes.items()
    ]
    upsert(connection, _waiting, rows)


def _forget_waiting(connection: sa.Connection, outcomes: Iterable[str]) -> None:
    ids = list(outcomes)
    if ids:
        connection.execute(sa.delete(_waiting).where(_waiting.c.decision_id.in_(ids)))


def _decode(outcome: bytes) -> Outcome:
    return msgspec.json.decode(outcome, type=Outcome)
