"""The access log: one line for each request, by the logger `access`, where an operator asks for it.

Requests of strangers, whose API key is not in force, are counted, and one line now and then reports
how many there were: they must not fill a disk. What a client sent is cut, and no part of it can
pass for another field or another line.

A line costs a request little, because the lines of _TOGETHER seconds are formatted and written at
once. A process that is killed loses those.
"""

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from policyd.command.log_throttle import Throttle
from policyd.telemetry.redaction import redacted

NAME = "access"
MAX_TEXT = 256
"""Characters of a text that a client sent."""
_SECONDS = 10.0
"""Seconds between two lines about strangers, at least."""
_TOGETHER = 0.1
"""Seconds for which lines are kept, to be written together ..."""
_MOST = 128
"""... and how many of them, at most."""
_PLAIN = re.compile(r"[!#-\[\]-~]+")
"""What stands in a line as it is: ASCII without blanks, quotation marks and backslashes."""

_log = logging.getLogger(NAME)


class AccessLine(msgspec.Struct, omit_defaults=True):
    """One request that has ended: a line has those of these fields that are not empty. Texts are
    plain()."""

    method: str
    path: str
    """Without its query."""
    status: int
    by: str = ""
    adapter: str = ""
    operation: str = ""
    verdict: str = ""
    flags: str = ""
    decision_id: str = ""
    trace_id: str = ""
    api_key_id: str = ""
    seconds: float = 0.0
    ask_seconds: float = 0.0
    upstream_seconds: float = 0.0
    request_bytes: int = 0
    bytes: int = 0
    ending: str = ""

    @property
    def text(self) -> str:
        """The line as words."""
        words = [f"{name}={value}" for name in _NAMED if (value := getattr(self, name))]
        return " ".join((self.method, self.path, str(self.status), *words))


_NAMED = AccessLine.__struct_fields__[3:]


class Ended(NamedTuple):
    """A line, and when its request ended, in seconds since 1970."""

    at: float
    line: AccessLine


class AccessLines:
    """The message of a log record that stands for some lines."""

    __slots__ = ("lines",)

    def __init__(self, lines: Sequence[Ended]) -> None:
        self.lines = lines

    def __str__(self) -> str:
        return "\n".join(one.line.text for one in self.lines)


def plain(text: str) -> str:
    """What a client may have sent, cut, as one word of one line, and without secrets."""
    # Before cutting and quoting, after which part of a secret could not be recognised.
    cut = redacted(text[: 2 * MAX_TEXT])[:MAX_TEXT]
    if _PLAIN.fullmatch(cut):
        return cut
    return quote(cut, safe="!#$%&'()*+,/:;<=>?@[]^`{|}", errors="replace")


class AccessLog:
    """Writes the lines of one process: together in its event loop, or at once where it has none."""

    def __init__(self) -> None:
        self._strangers: Counter[int] = Counter()
        self._throttle = Throttle(_SECONDS)
        self._lines: list[Ended] = []

    def write(self, line: AccessLine) -> None:
        """Write the line of a request that has just ended."""
        self._lines.append(Ended(time.time(), line))
        waiting = len(self._lines)
        if waiting == 1:
            self._write_soon()
        elif waiting >= _MOST:
            self._write_lines()

    def _write_soon(self) -> None:
        try:
            asyncio.get_running_loop().call_later(_TOGETHER, self._write_lines)
        except RuntimeError:
            self._write_lines()

    def _write_lines(self) -> None:
        lines, self._lines = self._lines, []
        if lines and _log.isEnabledFor(logging.INFO):
            message = AccessLines(lines)
            _log.handle(logging.LogRecord(NAME, logging.INFO, "", 0, message, (), None))

    def count_stranger(self, status: int) -> None:
        """Count a request whose API key is not in force, or not known to be."""
        self._strangers[status] += 1
        if self._throttle.is_due():
            self._report_strangers()

    def flush(self) -> None:
        """Write the lines and the counts that wait."""
        self._write_lines()
        self._report_strangers()

    def _report_strangers(self) -> None:
        counts, self._strangers = self._strangers, Counter()
        if counts:
            _log.info(
                "requests without an API key in force: %d (%s)",
                counts.total(),
                ", ".join(f"{count} with {status}" for status, count in sorted(counts.items())),
                extra={"requests": counts.total()},
            )
