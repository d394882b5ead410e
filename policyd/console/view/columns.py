"""The columns of the log, and those that a viewer has chosen, which a cookie keeps."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

COOKIE = "policyd-columns"
AGE = 400 * 24 * 3600
"""Seconds that browsers keep the choice, at most."""


class Column(NamedTuple):
    """One column."""

    label: str
    style: str
    """Its CSS classes: what it holds, and from which width of the screen on it is shown unless it
    was chosen."""
    usual: bool = True


COLUMNS = {
    "decision": Column("Decision", "decision"),
    "operation": Column("Operation", "operation medium"),
    "model": Column("Model", "clip medium"),
    "user": Column("User", "clip"),
    "key": Column("API key", "clip wide"),
    "status": Column("Status", "number status wide"),
    "latency": Column("Latency", "number latency medium"),
    "first_byte": Column("First byte", "number latency", usual=False),
    "tokens": Column("Tokens", "number tokens wide"),
    "cost": Column("Cost", "number cost wide"),
    "ip": Column("IP address", "clip address", usual=False),
    "agent": Column("User agent", "clip text", usual=False),
    "path": Column("Path", "clip text", usual=False),
    "trace": Column("Trace ID", "clip text", usual=False),
    "request": Column("Request ID", "clip text", usual=False),
}
"""All columns except the time, which is always shown."""
USUAL = tuple(name for name, column in COLUMNS.items() if column.usual)


def chosen(cookies: Mapping[str, str]) -> tuple[str, ...]:
    """The columns that a viewer has chosen; the usual ones where there is no choice."""
    return known(cookies.get(COOKIE, "").split(".")) or USUAL


def known(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the names that are columns, in the order of the table."""
    given = set(names)
    return tuple(name for name in COLUMNS if name in given)
