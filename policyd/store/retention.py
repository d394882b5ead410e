"""How much of the log may be deleted: neither a wrong clock nor a mistyped setting ever empties it.

Age is measured by the database's clock, but never from later than the newest decision; decisions
from the future do not count as the newest. What becomes old as time passes is agreed: it may always
be deleted, however much it is. When a clock leaps or a setting is made smaller, more than that
would go. It may go only if it is no more than half of the log. Otherwise retention stands still at
what was agreed, the log says so, and the operator has to agree: policyd logs retire.
"""

import sys
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from policyd.decision_log.record import first_id, moment
from policyd.store.clock import database_time
from policyd.store.database import Moment, metadata
from policyd.store.decisions import decisions

_AHEAD = timedelta(minutes=5)
"""How far ahead of the database's clock a decision's time may be and still count."""
_LEAP = timedelta(hours=1)
"""If the database's clock advances by more than this between two looks, it leapt, or there was an
outage."""
_FEW = 10
"""This many decisions may always be deleted."""

_state = sa.Table(
    "log_retention",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("agreed_before", Moment),
    sa.Column("agreed_rows", sa.BigInteger),
    sa.Column("seen_at", Moment),
    sa.Column("waiting", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.String(500), nullable=False),
)


@dataclass(frozen=True, slots=True)
class Standstill:
    """Why retention deletes less than its settings ask for."""

    reason: str
    """The cause, and the command to run. Empty: it deletes all that the settings ask for."""
    waiting: int
    """How many decisions the settings ask to delete, at least."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What may be deleted now: decisions before a moment, and the oldest beyond a number."""

    before: datetime
    max_rows: int
    agreed: datetime
    """Decisions before this moment may be deleted at the next look, too, however many they are."""
    standstill: Standstill
    now: datetime
    """This moment by the database's clock."""


@dataclass(frozen=True, slots=True)
class _Log:
    """The log's size and ends, and the database's time."""

    now: datetime
    held: int
    oldest: datetime | None
    newest: datetime | None

    def may_go(self, rows: int) -> bool:
        return rows <= max(_FEW, self.held // 2)


def standstill(connection: sa.Connection) -> Standstill:
    """The standstill, if any, that retention found at its last look."""
    row = connection.execute(sa.select(_state.c.reason, _state.c.waiting)).one()
    return Standstill(row.reason, row.waiting)


def take_turn(connection: sa.Connection, *, wait: bool = True) -> bool:
    """Let no other server delete from the log until the transaction ends: it would count the same
    decisions. Without `wait`, returns False where another server has the turn.
    """
    turn = sa.select(_state.c.id).with_for_update(skip_locked=not wait)
    return connection.execute(turn).first() is not None


def agree(connection: sa.Connection, before: datetime | None, max_rows: int | None) -> None:
    """Note that the operator agrees: decisions from before `before`, and the oldest beyond
    `max_rows`, may go."""
    changes: dict[str, object] = {"reason": "", "waiting": 0}
    if before is not None:
        changes["agreed_before"] = before
    if max_rows is not None:
        changes["agreed_rows"] = max_rows
    connection.execute(sa.update(_state).values(changes))


def look(connection: sa.Connection, held: int, keep: timedelta, max_rows: int) -> Cut:
    """What may go now of a log with `held` rows. It only reads: note() writes the result."""
    state = connection.execute(sa.select(_state)).one()
    log = _look_at_log(connection, held)
    agreed = _agreed(state, log, keep)
    wanted = (min(log.now, log.newest) if log.newest else log.now) - keep
    if log.newest is None:
        wanted = min(wanted, agreed)
    stands = _by_age(connection, log, wanted, agreed, keep)
    before = min(wanted, agreed) if stands.reason else wanted
    agreed = max(agreed, before)
    if not _rows_agreed(log, max_rows, state.agreed_rows):
        excess = log.held - max_rows
        stands = Standstill(
            f"--log-max-rows {max_rows} would delete {excess} of the log's {log.held} decisions at "
            f"once: if that is meant, run policyd logs retire --keep-rows {max_rows} --yes",
            excess,
        )
        max_rows = sys.maxsize if state.agreed_rows is None else state.agreed_rows
    return Cut(before, max_rows, agreed, stands, log.now)


def note(connection: sa.Connection, cut: Cut, max_rows: int) -> None:
    """Write down the result of look(), for the next look, `logs status` and the console."""
    changes: dict[str, object] = {
        "seen_at": cut.now,
        "agreed_before": cut.agreed,
        "waiting": cut.standstill.waiting,
        "reason": cut.standstill.reason,
    }
    if cut.max_rows == max_rows:
        changes["agreed_rows"] = max_rows
    connection.execute(sa.update(_state).values(changes))


def _look_at_log(connection: sa.Connection, held: int) -> _Log:
    now = database_time(connection)
    column = decisions.c.id
    oldest = connection.execute(sa.select(sa.func.min(column))).scalar_one()
    believed = sa.select(sa.func.max(column)).where(column < first_id(now + _AHEAD))
    newest = connection.execute(believed).scalar_one()
    return _Log(now, held, *(moment(one) if one else None for one in (oldest, newest)))


def _agreed(state: Any, log: _Log, keep: timedelta) -> datetime:
    """The moment before which decisions have become old as time passed."""
    usual = log.now - keep
    if state.agreed_before is None:
        return min(log.oldest, usual) if log.oldest else usual
    passed = log.now - state.seen_at if state.seen_at else timedelta()
    if not timedelta() < passed <= _LEAP:
        passed = timedelta()
    agreed: datetime = state.agreed_before + passed
    return min(agreed, usual)


def _by_age(
    connection: sa.Connection, log: _Log, wanted: datetime, agreed: datetime, keep: timedelta
) -> Standstill:
    if wanted <= agreed:
        return Standstill("", 0)
    old = sa.select(decisions.c.id).where(decisions.c.id < first_id(wanted))
    # Counting up to just over half of the log is enough.
    some = old.limit(max(_FEW, log.held // 2) + 1).subquery()
    count = connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one()
    if log.may_go(count):
        return Standstill("", 0)
    days = f"{keep / timedelta(days=1):g}"
    return Standstill(
        f"--log-retention {days} would delete more than half of the log's {log.held} decisions at "
        f"once, those before {wanted.isoformat(timespec='seconds')}: check the clocks of policyd "
        "and its database; if it is meant, run "
        f"policyd logs retire --older-than {_span(keep)} --yes",
        count,
    )


def _span(keep: timedelta) -> str:
    """The span in the form that `policyd logs retire` takes."""
    seconds = int(keep.total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _rows_agreed(log: _Log, max_rows: int, agreed: int | None) -> bool:
    return log.may_go(log.held - max_rows) or (agreed is not None and max_rows >= agreed)
