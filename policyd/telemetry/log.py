"""The log of a process, on stderr: text for readers, or JSON for collectors of logs.

Every module logs by logging.getLogger(). What a line is about is passed in `extra`, under the one
name that each thing has everywhere (decision_id, trace_id, api_key_id, operation, verdict, status,
seconds, path, …): see docs/observability.md. The text shows the sentence alone, the JSON both.
"""

import logging
import re

from policyd.command.process import JSON, TEXT
from policyd.telemetry.access import AccessLines, Ended
from policyd.telemetry.redaction import redacted

FORMATS = (TEXT, JSON)
_LINE_BREAK = re.compile(r"\r?\n")
_CONTROL = re.compile(r"\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]")
"""Characters that steer a terminal, or end a line for some readers."""
_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Text(logging.Formatter):
    """Formats records as text. What follows the first line, such as a traceback, is indented: so
    nothing that a line quotes can pass for another line."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        if isinstance(record.msg, AccessLines):
            return "\n".join(self._access(record, one) for one in record.msg.lines)
        return _LINE_BREAK.sub("\n    ", _CONTROL.sub(_escaped, redacted(super().format(record))))

    def _access(self, record: logging.LogRecord, ended: Ended) -> str:
        """A line of the access log, which is clean already."""
        record.created, record.msecs = ended.at, ended.at % 1 * 1000
        return f"{self.formatTime(record)} {record.levelname} {record.name}: {ended.line.text}"


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def start_logging(level: str, form: str = TEXT) -> None:
    """Log to stderr in one of FORMATS."""
    handler = logging.StreamHandler()
    handler.set_name(form)
    handler.setFormatter(_formatter(form))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for noisy in ("alembic", "grpc", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)  # They report every start.


def _formatter(form: str) -> logging.Formatter:
    if form != JSON:
        return _Text(_LINE)
    # A server that logs text starts without structlog.
    from policyd.telemetry.json_log import json_formatter

    return json_formatter()
