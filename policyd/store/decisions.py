"""The table of decisions, and the queries that read pages of it along its indexes."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from policyd.decision_log.record import Outcome, Record, Verdict, first_id
from policyd.policies import TABLE
from policyd.store.database import Id, metadata

OUTCOME_AT = Record.__struct_fields__.index("outcome")
"""The place of the outcome among Record's fields."""
FIELDS = Record.__struct_fields__[:OUTCOME_AT] + Record.__struct_fields__[OUTCOME_AT + 1 :]
"""The columns of a decision, by the names and in the order of Record's other fields."""
OUTCOME_COLUMNS = tuple("outcome_" + name for name in Outcome.__struct_fields__[1:])
"""The columns of its outcome, by the names and in the order of Outcome's fields."""


def _text(name: str, length: int, before: int = 0) -> sa.Column[str]:
    """A text of up to `length` characters; `before`, in older forms."""
    # SQLite bounds no text, and keeps the length that a column was made with.
    kind = sa.String(length).with_variant(sa.String(before or length), "sqlite")
    return sa.Column(name, kind, nullable=False, default="")


def _long_text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, default="", server_default="")


decisions = sa.Table(
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
    _text("identifier", 128, before=32),
    _text("summary", 500),
    _text("flags", 500, before=100),
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
    sa.Column("outcome_cache_write_tokens", sa.BigInteger),
    sa.Column("token_limit", sa.BigInteger),
    sa.Column("prompt_chars", sa.BigInteger),
    sa.Column("model_state", sa.SmallInteger, nullable=False, server_default="0"),
    _long_text("end_users"),
    _long_text("header_overrides"),
    _long_text("results"),
    sa.Index("ix_decisions_key", "key_id", "id"),
    sa.Index("ix_decisions_key_verdict", "key_id", "verdict", "id"),
    sa.Index("ix_decisions_verdict", "verdict", "id"),
    sa.Index("ix_decisions_operation", "operation", "id"),
    sqlite_with_rowid=False,
)


def _sparse(name: str, column: str) -> None:
    # Most rows have "" in these columns, and no query looks for "".
    filled = decisions.c[column] != sa.literal_column("''")
    sa.Index(
        name, decisions.c[column], decisions.c.id, sqlite_where=filled, postgresql_where=filled
    )


_sparse("ix_decisions_flags", "flags")
_sparse("ix_decisions_end_user", "end_user")
_sparse("ix_decisions_trace", "trace_id")
_sparse("ix_decisions_request", "request_id")
_sparse("ix_decisions_openai", "outcome_openai_id")
_SPARSE = ("flags", "end_user", "trace_id", "request_id", "outcome_openai_id")
"""The columns with a partial index."""
_AT_ONCE = 8
"""Sets of flags that one query looks for."""
_IDS = ("id", "request_id", "trace_id", "outcome_openai_id")
"""The columns by which a request is found."""


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which decisions are wanted. A condition that is empty or None is no condition."""

    key_id: str = ""
    verdict: Verdict | None = None
    flag: str = ""
    operation: str = ""
    end_user: str = ""
    trace_id: str = ""
    since: datetime | None = None
    until: datetime | None = None
    """Exclusive."""
    any_id: str = ""
    """An ID of any kind: the decision's, the caller's for the request, the trace's or OpenAI's."""
    policy: str = ""
    """The name of a policy that the request violates, whether it is enforced or audited."""

    @property
    def flags(self) -> frozenset[str]:
        """The flags that the wanted decisions have."""
        found = {self.flag} if self.flag else set()
        if self.policy:
            policy = TABLE.by_name.get(self.policy)
            # A policy that is not known here may have been, when the log was written.
            found.add(policy.flag if policy else f"policy_{self.policy}")
        return frozenset(found)


def newest(
    connection: sa.Connection, wanted: LogFilter, after: str, newer_than: str, limit: int
) -> list[Record]:
    """The page of Log.page()."""
    every = _flag_sets(connection, wanted)
    if every is None:
        query = page_query(wanted, after, newer_than, limit)
        return [read_record(row) for row in connection.execute(query)]
    rows: list[sa.Row[Any]] = []
    for start in range(0, len(every), _AT_ONCE):
        some = every[start : start + _AT_ONCE]
        rows += connection.execute(page_query(wanted, after, newer_than, limit, some))
    rows.sort(key=lambda row: row.id, reverse=True)
    return [read_record(row) for row in rows[:limit]]


def _flag_sets(connection: sa.Connection, wanted: LogFilter) -> list[str] | None:
    """The sets of flags in the log that hold the wanted ones. None: every set is wanted."""
    if not wanted.flags:
        return None
    found = connection.execute(flag_sets_query()).scalars()
    return [one for one in found if wanted.flags <= set(one.split(","))]


def flag_sets_query() -> sa.Select[Any]:
    """The different sets of flags in the log. It reads one entry of the index for each of them, as
    it looks for the next larger one each time."""
    flags = decisions.c.flags
    least = sa.select(sa.func.min(flags)).where(flags != sa.literal_column("''"))
    sets = least.cte("sets", recursive=True)
    known = sets.c[0]
    following = least.where(flags > known).correlate(sets).scalar_subquery()
    sets = sets.union_all(sa.select(following).where(known.is_not(None)))
    return sa.select(sets.c[0]).where(sets.c[0].is_not(None))


def page_query(
    wanted: LogFilter, after: str, newer_than: str, limit: int, flag_sets: Sequence[str] = ()
) -> sa.Select[Any]:
    """The query of a page: it follows an index from its newest end and stops at `limit`.

    `flag_sets` are those of which any is wanted, where a flag is.
    """
    query = sa.select(decisions).where(*conditions(wanted))
    if after:
        query = query.where(decisions.c.id < after)
    if newer_than:
        query = query.where(decisions.c.id > newer_than)
    if not (flag_sets or wanted.any_id):
        return query.order_by(decisions.c.id.desc()).limit(limit)
    # Rows found along one index are in order of time, but those of several indexes are not. So up
    # to `limit` rows are read along each, and sorted together.
    flags, ids = [_equal("flags", one) for one in flag_sets], _ids(wanted.any_id)
    if flags and ids:
        query = query.where(sa.or_(*(sa.and_(*one) for one in flags)))
    parts = [
        sa.select(query.where(*one).order_by(decisions.c.id.desc()).limit(limit).subquery())
        for one in ids or flags
    ]
    every = (sa.union if ids else sa.union_all)(*parts).subquery()
    return sa.select(every).order_by(every.c.id.desc()).limit(limit)


def usage_query(users: Sequence[str], key_id: str, limit: int) -> sa.CompoundSelect[Any]:
    """End user, model and key of the newest `limit` requests of each of these end users."""
    column = decisions.c
    query = sa.select(column.end_user, column.model, column.key_id).where(
        *conditions(LogFilter(key_id=key_id))
    )
    parts = [
        query.where(*_equal("end_user", user)).order_by(column.id.desc()).limit(limit).subquery()
        for user in users
    ]
    return sa.union_all(*map(sa.select, parts))


def _ids(any_id: str) -> list[list[sa.ColumnElement[bool]]]:
    """Conditions, one for each column that may hold `any_id`."""
    text = any_id.replace("\0", "")
    return [_equal(name, text) for name in _IDS] if any_id else []


def _equal(name: str, value: str) -> list[sa.ColumnElement[bool]]:
    column = decisions.c[name]
    found: list[sa.ColumnElement[bool]] = [column == value]
    if name in _SPARSE:
        # This shows SQLite that the partial index holds all rows that are asked for.
        found.append(column != sa.literal_column("''"))
    return found


def conditions(wanted: LogFilter) -> list[sa.ColumnElement[bool]]:
    """The conditions that the wanted decisions fulfil."""
    column = decisions.c
    found: list[sa.ColumnElement[bool]] = []
    for name in ("key_id", "operation", "end_user", "trace_id"):
        if value := getattr(wanted, name).replace("\0", ""):
            found += _equal(name, value)
    if wanted.verdict is not None:
        # SQLite would prefer the index of key and verdict, which holds most rows of a key, to that
        # of a trace. `+ 0` keeps it from that.
        is_rare = wanted.end_user or wanted.trace_id or wanted.flags or wanted.any_id
        verdict = column.verdict + 0 if is_rare else column.verdict
        found.append(verdict == int(wanted.verdict))
        # Older versions of policyd logged refused keys as denials, though no policy denied them.
        found.append(column.key_id != sa.literal_column("''"))
    if wanted.since is not None:
        found.append(column.id >= first_id(wanted.since))
    if wanted.until is not None:
        found.append(column.id < first_id(wanted.until))
    return found


def read_record(row: Any) -> Record:
    """The decision that a row of the table holds."""
    values = row._mapping
    outcome = None
    if row.outcome_ending is not None:
        outcome = ["O", row.id, *(values[name] for name in OUTCOME_COLUMNS)]
    found = [values[name] for name in FIELDS]
    return msgspec.convert(["D", *found[:OUTCOME_AT], outcome, *found[OUTCOME_AT:]], Record)
