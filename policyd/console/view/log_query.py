"""The log's filters in a URL: any value is read without an exception, and written back as it is."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from policyd.console.view import labels
from policyd.decision_log.record import MAX_TEXT, MAX_TIME, Verdict
from policyd.engine.endpoints import ENDPOINTS
from policyd.store import LogFilter

NAMES = (
    "find",
    "key",
    "decision",
    "policy",
    "flag",
    "operation",
    "model",
    "status",
    "answer",
    "user",
    "containing",
    "nouser",
    "attributed",
    "ip",
    "trace",
    "slower",
    "last",
    "since",
    "until",
)
"""The filters, in the order of the form."""
LABELS = {
    "find": "ID",
    "key": "API key",
    "decision": "Decision",
    "policy": "Violated policy",
    "flag": "Flag",
    "operation": "Operation",
    "model": "Model",
    "status": "Status",
    "answer": "Answer",
    "user": "User",
    "containing": "User contains",
    "nouser": "No user",
    "attributed": "Attributed",
    "ip": "IP address",
    "trace": "Trace ID",
    "slower": "Took at least",
    "last": "Time",
    "since": "From",
    "until": "Until",
}
DECISIONS = {verdict.name.lower(): label for verdict, label in labels.VERDICTS.items()}
ANSWERS = {"success": "Success", "error": "Error"}
YES_OR_NO = {"yes": "Yes", "no": "No"}
LAST = {
    "15m": ("Last 15 minutes", timedelta(minutes=15)),
    "1h": ("Last hour", timedelta(hours=1)),
    "24h": ("Last 24 hours", timedelta(days=1)),
    "7d": ("Last 7 days", timedelta(days=7)),
    "30d": ("Last 30 days", timedelta(days=30)),
}
OPERATIONS = tuple(endpoint.operation for endpoint in ENDPOINTS.values())
KEY_ID = re.compile(r"key_[0-9a-f]{1,27}")
_TRACE = re.compile(r"[0-9A-Za-z_-]{1,99}")
_STATUS = re.compile("[1-5][0-9]{2}")
_NUMBER = re.compile("[0-9]{1,13}")
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class LogQuery:
    """The filters of one request for the log."""

    given: dict[str, str]
    """The given filters of NAMES, as they were typed."""
    after: str
    """The ID of the last decision on the previous page."""
    now: datetime
    wanted: LogFilter = field(default_factory=LogFilter)
    problems: dict[str, str] = field(default_factory=dict)
    """What is wrong with a filter, by its name."""

    @property
    def filters(self) -> dict[str, str]:
        """The given filters without the ID of a request."""
        return {name: value for name, value in self.given.items() if name != "find"}

    @property
    def has_time(self) -> bool:
        """Whether the filters bound the time."""
        return not {"last", "since", "until"}.isdisjoint(self.given)

    @property
    def is_live(self) -> bool:
        """Whether new decisions may still appear on the page."""
        until = self.wanted.until
        return not self.after and not self.problems and (until is None or until > self.now)

    def url(self, path: str = "/logs", **more: str) -> str:
        """The URL of `path` with these filters."""
        query = urlencode({**self.given, **more}, errors="replace")
        return f"{path}?{query}" if query else path

    def without(self, *names: str, **more: str) -> str:
        """The URL of the log without the filters `names`, and with `more`."""
        kept = {name: value for name, value in self.given.items() if name not in names}
        query = urlencode(kept | more, errors="replace")
        return f"/logs?{query}" if query else "/logs"


def read(parameters: Mapping[str, str], now: datetime) -> LogQuery:
    """The filters in a URL's parameters. Invalid ones are in LogQuery.problems."""
    given = {name: value for name in NAMES if (value := parameters.get(name, "").strip())}
    if "since" in given or "until" in given:
        given.pop("last", None)  # Typed moments replace a preset.
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
    if last := wanted.pop("last", None):
        wanted["since"] = now - last
    since, until = wanted.get("since"), wanted.get("until")
    if since and until and since >= until:
        problems["until"] = "Give a later time than in From."
    # With an invalid filter nothing is shown, as all decisions would look like a result.
    found = LogFilter() if problems else LogFilter(**wanted)
    return LogQuery(given, after, now, found, problems)


def chips(query: LogQuery, keys: Mapping[str, str]) -> list[tuple[str, str | datetime, str]]:
    """The given filters in words: the label, the value, and the URL of the log without it."""
    moments = {"since": query.wanted.since, "until": query.wanted.until}
    return [
        (LABELS[name], moments.get(name) or _word(name, value, keys), query.without(name))
        for name, value in query.given.items()
    ]


def _word(name: str, value: str, keys: Mapping[str, str]) -> str:
    words: dict[str, Mapping[str, str]] = {
        "key": keys,
        "decision": DECISIONS,
        "policy": labels.POLICIES,
        "flag": labels.FLAGS,
        "operation": {one: labels.label(one) for one in OPERATIONS},
        "answer": ANSWERS,
        "attributed": YES_OR_NO,
        "last": {one: label for one, (label, _) in LAST.items()},
        "nouser": {"1": "Yes"},
    }
    if name == "slower" and _NUMBER.fullmatch(value):
        return labels.duration(int(value))
    return words.get(name, {}).get(value, value)


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


def _yes_or_no(value: str) -> bool:
    if value not in YES_OR_NO:
        raise ValueError("Choose yes or no.")
    return value == "yes"


def _is_error(value: str) -> bool:
    if value not in ANSWERS:
        raise ValueError(f"Choose one of {', '.join(ANSWERS)}.")
    return value == "error"


def _without_user(value: str) -> bool:
    if value != "1":
        raise ValueError("Tick this box, or leave it empty.")
    return True


def _text(value: str) -> str:
    if len(value) > MAX_TEXT:
        raise ValueError(f"The log keeps at most {MAX_TEXT} characters of this.")
    return value


def _status(value: str) -> int:
    if not _STATUS.fullmatch(value):
        raise ValueError("A status is a number from 100 to 599.")
    return int(value)


def _slower(value: str) -> int:
    if not _NUMBER.fullmatch(value) or int(value) > 2 * MAX_TIME:
        raise ValueError("Give a number of microseconds.")
    return int(value)


def _last(value: str) -> timedelta:
    if value not in LAST:
        raise ValueError(f"Choose one of {', '.join(LAST)}.")
    return LAST[value][1]


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
    "model": ("model", _text),
    "status": ("http_status", _status),
    "answer": ("failed", _is_error),
    "user": ("end_user", _user),
    "containing": ("user_contains", _user),
    "nouser": ("without_user", _without_user),
    "attributed": ("attributed", _yes_or_no),
    "ip": ("source_ip", _text),
    "slower": ("slower_us", _slower),
    "last": ("last", _last),
    "trace": ("trace_id", _trace),
    "since": ("since", moment),
    "until": ("until", moment),
}
