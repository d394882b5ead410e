"""Log lines as JSON: one object per line, in ASCII, so that nothing in it ends the line.

The standard library's records come in, and structlog's ProcessorFormatter renders them.
"""

import logging
import os
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
import structlog
from structlog.stdlib import ProcessorFormatter

from policyd.telemetry.access import AccessLines, Ended
from policyd.telemetry.redaction import redacted

_MAX_EVENT = 8 * 1024
"""Characters of the sentence; a longer one is cut."""
_MAX_TEXT = 1024
"""Characters of any other text."""
_MAX_TRACEBACK = 32 * 1024
"""Characters of a traceback. Its end is kept, which says what went wrong."""
_CUT = "…"
_OTHER_HANDLERS = ("message", "asctime")
"""What another handler's formatter leaves on a record."""
_added = structlog.stdlib.ExtraAdder()
_encoder = msgspec.json.Encoder()


class _Json(ProcessorFormatter):
    """Formats records as JSON. Lines of the access log, which are many, skip what others need, as
    their fields are plain, short and free of secrets already."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        if isinstance(record.msg, AccessLines):
            return "\n".join(_access(record, one) for one in record.msg.lines)
        return super().format(record)


def _access(record: logging.LogRecord, ended: Ended) -> str:
    """A line of the access log. Its fields are clean, and need no escaping of their own."""
    head = (
        f'{{"time":"{_time(ended.at)}","level":"{record.levelname.lower()}",'
        f'"logger":"{record.name}","event":"request","process":{os.getpid()},'
    )
    return head + _encoder.encode(ended.line).decode()[1:]


def json_formatter() -> logging.Formatter:
    """The formatter that makes a JSON object of each record."""
    return _Json(
        processors=[
            _describe,
            _added,
            structlog.processors.ExceptionRenderer(),
            _bound,
            ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(),
        ]
    )


def _describe(_: Any, __: str, event: Any) -> Any:
    """Put the members that every line has before the others."""
    record: logging.LogRecord = event["_record"]
    head = {
        "time": _time(record.created),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": event["event"],
        "process": os.getpid(),
    }
    return head | {name: value for name, value in event.items() if name != "event"}


def _time(at: float) -> str:
    return f"{_second(int(at))}.{int(at % 1 * 1000):03d}Z"


# Formatting a time takes longer than the rest of a line of the access log.
@lru_cache(maxsize=4)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _bound(_: Any, __: str, event: Any) -> Any:
    """Take out secrets before cutting long texts, after which part of a secret could not be
    recognised; and rename `exception` to `traceback`."""
    for name in _OTHER_HANDLERS:
        event.pop(name, None)
    if traceback := event.pop("exception", None):
        clean = redacted(traceback)
        kept = clean[-_MAX_TRACEBACK:]
        event["traceback"] = kept if len(kept) == len(clean) else _CUT + kept
    for name, value in event.items():
        if isinstance(value, str) and name != "traceback":
            most = _MAX_EVENT if name == "event" else _MAX_TEXT
            clean = redacted(value)
            event[name] = clean if len(clean) <= most else clean[:most] + _CUT
    return event
