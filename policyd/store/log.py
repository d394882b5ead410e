"""The decision log in the store: decisions, and the outcomes of their requests.

Its law:

- **An append is one transaction.** Decisions, outcomes, the counts of statistics.py, the number of
  rows, the counts of refused keys and the position in the spool are committed together, or none is.
- **Appending again changes nothing.** A shipper that has crashed, or never heard that a transaction
  was committed, hands the same entries over again. The position shows that, even where the rows
  have been retired since (positions.py). A decision that another replica has logged is recognised
  by its ID.
- **The order of arrival does not matter.** An outcome may come before its decision and waits for it
  (outcomes.py).
- **Writers never wait for each other in a circle.** All take rows in the order of their keys, and
  the rows that many share, the counts of an hour or of a user, come last.
- **Retention cannot empty it by mistake.** retention.py first settles what may be deleted, and
  log_deletion.py then deletes it in short transactions.

IDs of decisions begin with the millisecond, so the order of IDs is the order of time, and every
query of a stretch of time is a range of IDs.
"""

import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from policyd.decision_log.record import Outcome, Record, moment
from policyd.decision_log.refused_key import RefusedKey, RefusedKeyCount
from policyd.errors import DecisionNotFound, StoreUnavailable
from policyd.store import log_size, losses
from policyd.store.clock import database_time, midnight
from policyd.store.counts import Tally
from policyd.store.database import (
    LONG,
    SHIPPING,
    reading,
    writing,
)
from policyd.store.decisions import (
    add_records,
    decisions,
    read_record,
    take_known,
)
from policyd.store.log_deletion import expire
from policyd.store.log_filter import LogFilter
from policyd.store.log_pages import Page, newest, search, usage_query
from policyd.store.outcomes import add_outcomes, forget, waiting_for
from policyd.store.partitions import make_days
from policyd.store.positions import Step, advance
from policyd.store.refused_keys import add_refused_keys
from policyd.store.retention import Standstill, agree, look, note, standstill
from policyd.store.sample import remove_some
from policyd.store.space import give_back
from policyd.store.steps import Steps

_CACHE = 16 * 1024
"""KiB of a database that SQLite may hold in memory, in a connection that ships."""
_SEVERAL_DAYS = timedelta(days=2)
"""The shortest retention for which PostgreSQL's log is deleted by whole days."""


@dataclass(frozen=True, slots=True)
class LogStatus:
    """How much the log holds, and what it lacks."""

    decisions: int
    lost: int
    """Decisions that were answered and never logged, since the database was made."""
    oldest: datetime | None


class Log:
    """The decision log in the database of `engine`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._steps = Steps(engine)
        self._writer = secrets.token_hex(4)
        """Names the rows of counts over all keys that this process writes: see counts.py."""

    def append(
        self,
        entries: Sequence[Record | Outcome | RefusedKey | RefusedKeyCount],
        step: Step | None = None,
        *,
        unreadable: int = 0,
    ) -> None:
        """Add decisions, outcomes, and the counts and samples of refused keys: all, or nothing.

        What is there already stays as it is. `step` says which bytes of the spool the entries are,
        and `unreadable` how many lines of those could not be read: they count as lost. Raises
        PositionMoved.
        """
        try:
            self._append(entries, step, unreadable)
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, IntegrityError):
                raise
            # A caller has sent one request to two replicas, and the other one has logged it at this
            # very moment. At the second try, this one finds it there.
            self._append(entries, step, unreadable)

    def _append(
        self,
        entries: Sequence[Record | Outcome | RefusedKey | RefusedKeyCount],
        step: Step | None,
        unreadable: int,
    ) -> None:
        records, outcomes, refused = _sorted(entries)
        tally = Tally(self._writer)
        with writing(self._engine, SHIPPING) as connection:
            if step is not None:
                _prepare(connection)
                advance(connection, step)
            others = take_known(connection, records)
            if step is not None:
                losses.add(connection, f"spool-{step.spool}", unreadable + others)
            waited = waiting_for(connection, records)
            outcomes |= waited
            _add_decisions(connection, records, outcomes, tally)
            add_outcomes(connection, outcomes, tally)
            forget(connection, waited)
            add_refused_keys(connection, refused)
            # Last: other shippers wait for the rows of the same hours and users until this one
            # commits.
            tally.write(connection)

    def page(
        self, wanted: LogFilter, *, after: str = "", newer_than: str = "", limit: int = 50
    ) -> list[Record]:
        """Up to `limit` decisions, newest first: those older than the one with the ID `after`, and
        newer than the one with the ID `newer_than`."""
        with reading(self._engine, LONG) as connection:
            return newest(connection, wanted, after, newer_than, limit)

    def search(self, wanted: LogFilter, *, after: str = "", limit: int = 50) -> Page:
        """The same as page(), but it may stop early: with a filter that few decisions match, page()
        would look at every row. See log_pages.py."""
        with reading(self._engine, LONG) as connection:
            return search(connection, wanted, after, "", limit)

    def neighbours(self, wanted: LogFilter, decision_id: str) -> tuple[str, str]:
        """The IDs of the next newer and the next older decision; "" where there is none, or where
        a search for it would take long."""
        with reading(self._engine, LONG) as connection:
            newer = search(connection, wanted, "", decision_id, 1, ascending=True).records
            older = search(connection, wanted, decision_id, "", 1).records
        return (newer[0].id if newer else "", older[0].id if older else "")

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
        """How much the log holds, how much was lost, and how far back it goes."""
        with reading(self._engine) as connection:
            count = log_size.total(connection)
            lost = losses.total(connection)
            oldest = connection.execute(sa.select(sa.func.min(decisions.c.id))).scalar_one()
        return LogStatus(count, lost, moment(oldest) if oldest else None)

    def lose(self, lost: Mapping[str, int]) -> None:
        """Note how many decisions each process has lost in all."""
        with writing(self._engine) as connection:
            losses.raise_to(connection, lost)

    def lost_by(self, processes: Iterable[str]) -> dict[str, int]:
        """How many decisions each of the processes has lost, according to the database."""
        with reading(self._engine) as connection:
            return losses.lost_by(connection, processes)

    def standstill(self) -> Standstill:
        """Why retention deletes less than its settings ask for, if it does."""
        with reading(self._engine) as connection:
            return standstill(connection)

    def retire(self, keep: timedelta, max_rows: int) -> int:
        """Delete some of the decisions older than `keep` or in excess of `max_rows`, as far as that
        is safe: see retention.py. Returns how many; 0: none are left, for now."""
        with reading(self._engine, LONG) as connection:
            cut = look(connection, log_size.total(connection), keep, max_rows)
        with writing(self._engine) as connection:
            note(connection, cut, max_rows)
        make_days(self._engine, cut.now)
        before = cut.before
        if self._has_days and keep >= _SEVERAL_DAYS:
            # Whole days are dropped, so no rows of a day are deleted in the hours before.
            before = midnight(before)
        return expire(self._engine, self._steps, before, cut.max_rows, cut.now)

    def agree(self, older_than: timedelta | None, max_rows: int | None) -> datetime:
        """Note that the operator agrees: decisions older than `older_than`, or in excess of
        `max_rows`, may go, however many they are. Returns the moment before which decisions count
        as older, by the database's clock."""
        with writing(self._engine) as connection:
            before = database_time(connection) - (older_than or timedelta())
            agree(connection, before if older_than is not None else None, max_rows)
        return before

    def expire(self, before: datetime, max_rows: int) -> int:
        """Delete some of the decisions older than `before` and of the oldest beyond `max_rows`, in
        steps that hold up no other writer. Returns how many; call it again until that is 0.

        It adds waiting outcomes to decisions that have arrived, and gives others up after a day.
        """
        with reading(self._engine) as connection:
            at = database_time(connection)
        return expire(self._engine, self._steps, before, max_rows, at)

    def remove_sample(self) -> int:
        """Delete some of the requests that `policyd demo` has made up. Returns how many; call it
        again until that is 0."""
        with writing(self._engine, LONG) as connection:
            return remove_some(connection)

    @property
    def _has_days(self) -> bool:
        return self._engine.dialect.name == "postgresql"

    def give_back(self) -> int:
        """Give back some of the space that expire() has freed: see space.py."""
        return give_back(self._engine)


def _prepare(connection: sa.Connection) -> None:
    """Have the commit wait for the database's disk, as the spool deletes what is committed. SQLite
    always waits; it gets memory for the pages of many rows and their indexes, which it would
    otherwise write and read again within the transaction."""
    if connection.dialect.name == "postgresql":
        wanted = sa.func.set_config("synchronous_commit", "on", True)
        current = sa.func.current_setting("synchronous_commit")
        connection.execute(sa.select(wanted).where(current == "off"))
    else:
        connection.exec_driver_sql(f"PRAGMA cache_size = -{_CACHE}")


def _commonest(counted: Counter[str]) -> list[str]:
    return [value for value, count in counted.most_common() if count]


def _sorted(
    entries: Iterable[Record | Outcome | RefusedKey | RefusedKeyCount],
) -> tuple[dict[str, Record], dict[str, Outcome], list[RefusedKey | RefusedKeyCount]]:
    """Decisions and outcomes by their decision's ID, and what is neither."""
    records, outcomes, refused = {}, {}, []
    for entry in entries:
        if isinstance(entry, Record):
            records[entry.id] = entry
        elif isinstance(entry, Outcome):
            outcomes[entry.decision_id] = entry
        else:
            refused.append(entry)
    return records, outcomes, refused


def _add_decisions(
    connection: sa.Connection,
    records: Mapping[str, Record],
    outcomes: dict[str, Outcome],
    tally: Tally,
) -> None:
    """Insert new decisions, and take their outcomes out of `outcomes`: most come with them."""
    given = {key: outcomes.pop(key) for key in records if key in outcomes}
    add_records(connection, [records[key] for key in sorted(records)], given)
    log_size.add(connection, len(records))
    for record in records.values():
        tally.count(record, given.get(record.id))
