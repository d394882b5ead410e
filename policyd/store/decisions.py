"""The table of decisions, and how a row of it is read."""

import logging
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import msgspec
import sqlalchemy as sa

from policyd.command.log_throttle import Throttle
from policyd.decision_log.record import Outcome, Record
from policyd.store import many_rows
from policyd.store.database import Id, find, metadata, storable

_log = logging.getLogger(__name__)
_throttle = Throttle(60.0)

OUTCOME_AT = Record.__struct_fields__.index("outcome")
"""The place of the outcome among Record's fields."""
FIELDS = Record.__struct_fields__[:OUTCOME_AT] + Record.__struct_fields__[OUTCOME_AT + 1 :]
"""The columns of a decision, by the names and in the order of Record's other fields."""
OUTCOME_COLUMNS = tuple("outcome_" + name for name in Outcome.__struct_fields__[1:])
"""The columns of its outcome, by the names and in the order of Outcome's fields."""


def _text(name: str, length: int, before: int = 0) -> sa.Column[str]:
    """A text of up to `length` characters; of up to `before`, in older forms."""
    # SQLite does not bound texts, and keeps the length that a column was made with.
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
SPARSE = ("flags", "end_user", "trace_id", "request_id", "outcome_openai_id")
"""The columns with a partial index."""


_YES_OR_NO = ("in_scope", "sample")
_PLAIN = (*(name for name in FIELDS if name not in _YES_OR_NO), *_YES_OR_NO)
"""The columns of a decision as rows are inserted."""
_COMPLETE = (*_PLAIN, *OUTCOME_COLUMNS)
_NO_OUTCOME = (None,) * len(OUTCOME_COLUMNS)


def _places(kind: type[msgspec.Struct], names: Sequence[str]) -> Any:
    # After the tag, which a record begins with.
    return itemgetter(*(1 + kind.__struct_fields__.index(name) for name in names))


_plain = _places(Record, _PLAIN[: -len(_YES_OR_NO)])
_yes_or_no = _places(Record, _YES_OR_NO)
_outcome = _places(Outcome, Outcome.__struct_fields__[1:])


def add_records(
    connection: sa.Connection, records: Sequence[Record], outcomes: Mapping[str, Outcome]
) -> None:
    """Insert decisions, each with its outcome, if there is one for its ID."""
    plain, complete = [], []
    values_of = _values_of([*records, *outcomes.values()])
    for record in records:
        values = values_of(record)
        in_scope, sample = _yes_or_no(values)
        row = (*_plain(values), int(in_scope), int(sample))
        if outcome := outcomes.get(record.id):
            complete.append(row + _outcome(values_of(outcome)))
        else:
            plain.append(row)
    if connection.dialect.name == "postgresql":
        # All in one statement, in the order of IDs, as another shipper may insert some of them.
        complete += (row + _NO_OUTCOME for row in plain)
        complete.sort(key=itemgetter(0))
        plain = []
    many_rows.insert(connection, decisions, _PLAIN, plain)
    many_rows.insert(connection, decisions, _COMPLETE, complete)


def outcome_values(outcomes: Mapping[str, Outcome]) -> dict[str, tuple[Any, ...]]:
    """The values of OUTCOME_COLUMNS, for each ID."""
    values_of = _values_of(list(outcomes.values()))
    return {key: _outcome(values_of(one)) for key, one in outcomes.items()}


def _values_of(entries: Sequence[Record | Outcome]) -> Callable[[Record | Outcome], list[Any]]:
    """A function that gives the tag and the fields of an entry, as every database takes them."""
    # One look at all of them, as hardly any has a text with a NUL.
    has_nul = b"\\u0000" in msgspec.json.encode(entries)
    return _storable if has_nul else msgspec.to_builtins


def _storable(entry: Record | Outcome) -> list[Any]:
    return [storable(value) for value in msgspec.to_builtins(entry)]


def read_record(row: Any) -> Record:
    """The decision that a row of the table holds."""
    values = row._mapping
    outcome = None
    if row.outcome_ending is not None:
        outcome = ["O", row.id, *(values[name] for name in OUTCOME_COLUMNS)]
    found = [values[name] for name in FIELDS]
    return msgspec.convert(["D", *found[:OUTCOME_AT], outcome, *found[OUTCOME_AT:]], Record)


def take_known(connection: sa.Connection, records: dict[str, Record]) -> int:
    """Take out the decisions that the log has already. Returns how many of these are of another API
    key there.

    The position excludes what is handed over again, and two replicas that log one request log it
    with one key. So an ID of another key's decision is a gateway's mistake, or worse: the log keeps
    what it has, and the new one counts as lost.
    """
    others = []
    for known in find(connection, decisions.c.id, records, decisions.c.key_id):
        if storable(records.pop(known.id).key_id) != known.key_id:
            others.append(known.id)
    if others and _throttle.is_due():
        _log.error(
            "%d decisions are not logged, and count as lost, as the log has decisions of other "
            "API keys with their IDs: %s",
            *(len(others), ", ".join(others[:3])),
        )
    return len(others)
