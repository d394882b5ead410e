"""The log's filters in a URL: any value is read without an error, and written back unchanged."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from policyd.console.view import labels
from policyd.decision_log.record import MAX_TEXT, Verdict
from policyd.engine.endpoints import ENDPOINTS
from policyd.store import LogFilter

NAMES = (
    "find",
    "key",
    "decision",
    "policy",
    "flag",
    "operation",
    "user",
    "trace",
    "since",
    "until",
)
"""The filters, in the order of the form."""
DECISIONS = {verdict.name.lower(): label for verdict, label in labels.VERDICTS.items()}
OPERATIONS = tuple(endpoint.operation for endpoint in ENDPOINTS.values())
KEY_ID = re.compile(r"key_[0-9a-f]{1,27}")
_TRACE = re.compile(r"[0-9A-Za-z_-]{1,99}")
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class LogQuery:
    """The filters of one request for the log."""

    given: dict[str, str]
    """The given filters of NAMES, as they were typed."""
    after: str
    """The ID of the last decision on the previous page."""
    wanted: LogFilter = field(default_factory=LogFilter)
    problems: dict[str, str] = field(default_factory=dict)
    """What is wrong with a filter, by its name."""

    @property
    def filters(self) -> dict[str, str]:
        """The given filters without the ID of a request."""
        return {name: value for name, value in self.given.items() if name != "find"}

    @property
    def is_live(self) -> bool:
        """Whether new decisions may still appear on the page."""
        return not self.after and "until" not in self.given and not self.problems

    def url(self, path: str = "/logs", **more: str) -> str:
        """The URL of `path` with these filters."""
        query = urlencode({**self.given, **more}, errors="replace")
        return f"{path}?{query}" if query else path


def read(parameters: Mapping[str, str]) -> LogQuery:
    """The filters in a URL's parameters. It raises nothing: see LogQuery.problems."""
    given = {name: value for name in NAMES if (value := parameters.get(name, "").strip())}
    problems: dict[str, str] = {}
    wanted: dict[str, Any] = {}
    for name, value in given.items():
        field_name, parse = _PARSERS[name]
        try:
            wanted[field_name] = parse(value)
        except ValueError as error:
            problems[name] = str(error)
    after = parameters.get("after", "")
    if after and not _ID.fullmatch(after):
        problems["after"] = "This link to a page of the log is incomplete."
    since, until = wanted.get("since"), wanted.get("until")
    if since and until and since >= until:
        problems["until"] = "Give a later time than in From."
    # With an invalid filter nothing is shown, as all decisions would look like a result.
    return LogQuery(given, after, LogFilter() if problems else LogFilter(**wanted), problems)


def _find(value: str) -> str:
    # It may have been copied from a terminal or a mail, with a line break in it.
    text = "".join(value.split())
    if len(text) > MAX_TEXT:
        raise ValueError(f"The log keeps at most {MAX_TEXT} characters of an ID.")
    return text


def _key(value: str) -> str:
    if not KEY_ID.fullmatch(value):
        raise ValueError("Choose one of the API keys; an ID looks like key_0123456789abcdef.")
    return value


def _decision(value: str) -> Verdict:
    if value not in DECISIONS:
        raise ValueError(f"Choose one of {', '.join(DECISIONS)}.")
    return Verdict[value.upper()]


def _policy(value: str) -> str:
    if value not in labels.POLICIES:
        raise ValueError(f"Choose one of {', '.join(labels.POLICIES)}.")
    return value


def _flag(value: str) -> str:
    if value not in labels.FLAGS:
        raise ValueError(f"Choose one of {', '.join(labels.FLAGS)}.")
    return value


def _operation(value: str) -> str:
    if value not in OPERATIONS:
        raise ValueError(f"Choose one of {', '.join(OPERATIONS)}.")
    return value


def _user(value: str) -> str:
    if len(value) > MAX_TEXT:
        raise ValueError(f"The log keeps at most {MAX_TEXT} characters of a user.")
    return value


def _trace(value: str) -> str:
    if not _TRACE.fullmatch(value):
        raise ValueError("A trace ID has fewer than 100 letters, digits, - and _.")
    return value


def moment(value: str) -> datetime:
    """A point in time, in UTC unless it names another zone. Raises ValueError."""
    try:
        at = datetime.fromisoformat(value)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("Give a time in UTC such as 2026-11-25T09:30.") from None


_PARSERS: dict[str, tuple[str, Any]] = {
    "find": ("any_id", _find),
    "key": ("key_id", _key),
    "decision": ("verdict", _decision),
    "policy": ("policy", _policy),
    "flag": ("flag", _flag),
    "operation": ("operation", _operation),
    "user": ("end_user", _user),
    "trace": ("trace_id", _trace),
    "since": ("since", moment),
    "until": ("until", moment),
}
