"""The access log: one line a request, by the logger `access`, where an operator asks for it.

Requests of strangers, whose API key is not in force, are counted, and one line now and then reports
how many there were: they must not fill a disk. What a client sent is cut, and in a line of text
nothing of it can pass for another field or another line.
"""

import logging
import re
from collections import Counter
from collections.abc import Mapping
from urllib.parse import quote

from policyd.command.throttle import Throttle
from policyd.telemetry.redaction import redacted

NAME = "access"
_FIRST = ("method", "path", "status")
MAX_TEXT = 256
"""Characters of a text that a client sent, or that it can make an upstream send."""
_SECONDS = 10.0
"""At most one line about strangers in so many seconds."""
_PLAIN = re.compile(r"[!#-\[\]-~]+")
"""What stands in a line as it is: ASCII without blanks, quotation marks and backslashes."""

Value = str | int | float | None
_log = logging.getLogger(NAME)


class AccessLine:
    """The message of such a line: in JSON its `fields`, in text these words.

    The texts of `fields` are plain, and the first of them are method, path and status.
    """

    __slots__ = ("fields",)

    def __init__(self, fields: Mapping[str, Value]) -> None:
        self.fields = fields

    def __str__(self) -> str:
        words = [f"{name}={value}" for name, value in self.fields.items()]
        return " ".join([str(self.fields[name]) for name in _FIRST] + words[len(_FIRST) :])


def plain(text: str) -> str:
    """What a client may have sent, on one line, and as one word of it."""
    cut = text[:MAX_TEXT]
    return (
        cut
        if _PLAIN.fullmatch(cut)
        else quote(cut, safe="!#$%&'()*+,/:;<=>?@[]^`{|}", errors="replace")
    )


class AccessLog:
    """Writes the lines of one process."""

    def __init__(self) -> None:
        self._strangers: Counter[int] = Counter()
        self._throttle = Throttle(_SECONDS)

    def write(self, method: str, path: str, status: int, fields: Mapping[str, Value]) -> None:
        """One request. Of `fields`, whose texts are our own, those that are empty are left out."""
        if not _log.isEnabledFor(logging.INFO):
            return
        line: dict[str, Value] = {
            "method": plain(method),
            "path": redacted(plain(path)),
            "status": status,
        }
        for name, value in fields.items():
            if value is not None and value != "":
                line[name] = round(value, 6) if isinstance(value, float) else value
        # Made by hand: to look for the line of code that it comes from takes long.
        _log.handle(logging.LogRecord(NAME, logging.INFO, "", 0, AccessLine(line), (), None))

    def count_stranger(self, status: int) -> None:
        """A request whose API key is not in force, or not known to be."""
        self._strangers[status] += 1
        if self._throttle.is_due():
            self.flush()

    def flush(self) -> None:
        """Report the strangers' requests since the last such line."""
        counts, self._strangers = self._strangers, Counter()
        if counts:
            _log.info(
                "%d requests without an API key in force: %s",
                counts.total(),
                ", ".join(f"{count} with {status}" for status, count in sorted(counts.items())),
                extra={"requests": counts.total()},
            )
