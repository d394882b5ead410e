"""The decision log on a terminal: one line for each decision, with control characters escaped."""

from policyd.decision_log.export import values
from policyd.decision_log.record import Record

_COLUMNS = (
    ("TIME", 23),
    ("DECISION", 11),
    ("KEY", 20),
    ("OPERATION", 16),
    ("USER", 16),
    ("MODEL", 18),
)
HEADING = "  ".join(name.ljust(width) for name, width in _COLUMNS) + "  ID"
"""Names the columns of line()."""


def line(record: Record) -> str:
    """A decision in one line."""
    shown = values(record)
    if record.has_unnamed_user:
        shown["user"] = "(not named)"
    names = ("time", "verdict", "api_key_id", "operation", "user", "model")
    cells = (
        printable(str(shown[name] or "-"))[:width].ljust(width)
        for name, (_, width) in zip(names, _COLUMNS, strict=True)
    )
    return "  ".join(cells) + "  " + record.id + ("  (sample)" if record.sample else "")


def printable(text: str) -> str:
    """The text with control characters escaped: clients wrote it, and may try to steer the
    terminal or reverse the line."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
