"""The decision log as files: CSV and JSON Lines, with one set of columns.

Spreadsheets evaluate texts that look like a formula. So in CSV a `'` is put before each text that
begins like one, and within a text after each semicolon, tab or line break that one could follow.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from typing import Any

from policyd.decision_log import results
from policyd.decision_log.record import Outcome, Record, given
from policyd.decision_log.results import LoggedResult

_SIGNS = "=+@\uff1d\uff0b\uff0d\uff20-"
"""The characters that a formula can begin with, full-width forms included."""
_FORMULA = (*_SIGNS, "\t", "\r", "\n")
_WITHIN = re.compile(rf'([;\t\r\n][\s"]*+)([{_SIGNS}]?+)')
"""Places within a text where a formula can begin: in many languages spreadsheets end cells at
semicolons, and then ignore quotes inside a cell. It also matches where no formula follows, so
that a search never reads the same gap again and takes linear time."""


def _word(value: IntEnum | None) -> str | None:
    return None if value is None else value.name.lower()


def _ms(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / 1000


def _usd(nano: int | None) -> float | None:
    return None if nano is None else nano / 1e9


def _time(record: Record) -> str:
    return record.time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _result(result: LoggedResult) -> dict[str, Any]:
    return {
        "policy": result.policy,
        "mode": _word(result.mode),
        "value": result.value,
        "source": _word(result.source),
        "override_ignored": _word(result.ignored),
        "message": result.message,
    }


_DECISION: dict[str, Callable[[Record], Any]] = {
    "id": lambda record: record.id,
    "time": _time,
    # Older versions of policyd logged refused keys as well. No policy denied those requests.
    "verdict": lambda one: "key_refused" if one.is_key_refused else _word(one.verdict),
    "denial_status": lambda record: record.status or None,
    "api_key_id": lambda record: record.key_id,
    "operation": lambda record: record.operation,
    "model": lambda record: record.model,
    "user": lambda record: record.end_user,
    "user_state": lambda record: _word(record.user_state),
    "identifier": lambda record: record.identifier,
    "mode": lambda record: _word(record.mode),
    "source": lambda record: _word(record.source),
    "override_ignored": lambda record: _word(record.ignored),
    "in_scope": lambda record: record.in_scope,
    "flags": lambda record: record.flags.split(",") if record.flags else [],
    "explanation": lambda record: record.summary,
    "revision": lambda record: record.revision,
    "method": lambda record: record.method,
    "path": lambda record: record.path,
    "source_ip": lambda record: record.source_ip,
    "user_agent": lambda record: record.user_agent,
    "organization": lambda record: record.organization,
    "trace_id": lambda record: record.trace_id,
    "request_id": lambda record: record.request_id,
    "sample": lambda record: record.sample,
}
_OUTCOME: dict[str, Callable[[Outcome], Any]] = {
    "ending": lambda outcome: _word(outcome.ending),
    "upstream_status": lambda outcome: outcome.status or None,
    "openai_id": lambda outcome: outcome.openai_id,
    "answer_model": lambda outcome: outcome.model,
    "answer_organization": lambda outcome: outcome.organization,
    "first_byte_ms": lambda outcome: _ms(outcome.first_byte_us),
    "duration_ms": lambda outcome: _ms(outcome.duration_us),
    "input_tokens": lambda outcome: outcome.input_tokens,
    "output_tokens": lambda outcome: outcome.output_tokens,
    "cached_tokens": lambda outcome: outcome.cached_tokens,
    "cache_write_tokens": lambda outcome: outcome.cache_write_tokens,
    "cost_usd": lambda outcome: _usd(outcome.cost_nano),
}
# At the end, so that programs which know a column by its number find it where it was.
_POLICIES: dict[str, Callable[[Record], Any]] = {
    "model_state": lambda record: _word(record.model_state),
    "token_limit": lambda record: given(record.token_limit),
    "prompt_characters": lambda record: given(record.prompt_chars),
    "policies": lambda record: [_result(one) for one in results.of(record)],
}
COLUMNS = (*_DECISION, *_OUTCOME, *_POLICIES)
"""The names of the columns, in order."""


def values(record: Record) -> dict[str, Any]:
    """A decision as JSON values, by the names in COLUMNS; None for what is not known."""
    outcome = record.outcome
    found = {name: read(record) for name, read in _DECISION.items()}
    found |= {name: read(outcome) if outcome else None for name, read in _OUTCOME.items()}
    return found | {name: read(record) for name, read in _POLICIES.items()}


def json_line(record: Record) -> str:
    """A decision as one line of JSON, with its line end."""
    return json.dumps(values(record), ensure_ascii=False, separators=(",", ":")) + "\n"


def csv_rows(records: Iterable[Record]) -> Iterator[str]:
    """A line with COLUMNS, then one for each decision (RFC 4180), with their line ends."""
    yield _line(COLUMNS)
    for record in records:
        yield _line(map(_cell, values(record).values()))


def _line(cells: Iterable[str]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        # Without an exponent, as some spreadsheets read that as text.
        return f"{value:.9f}".rstrip("0").rstrip(".")
    text = ",".join(map(item, value)) if isinstance(value, list) else str(value)
    text = _WITHIN.sub(_disarm, text)
    return "'" + text if text.startswith(_FORMULA) or text.lstrip().startswith(_FORMULA) else text


def item(value: Any) -> str:
    """A JSON value in a line for people: a text as it is, any other as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _disarm(gap: re.Match[str]) -> str:
    return f"{gap[1]}'{gap[2]}" if gap[2] else gap[0]
