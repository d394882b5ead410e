"""The decision log as a worker writes it: what it takes survives the worker, or is refused."""

import logging
import time
from collections.abc import Sequence

import msgspec

from policyd.errors import LogFull
from policyd.record import Outcome, Record
from policyd.spool import SpoolWriter

_log = logging.getLogger(__name__)
_encode_lines = msgspec.json.Encoder().encode_lines
_REMIND = 10.0
"""Seconds between two lines that say that the log is full."""


class DecisionLog:
    """Appends to the spool. Where that is full, it refuses, or counts decisions that it drops.

    Outcomes are refused either way: no client waits for them, and whoever reports them tries again.
    """

    def __init__(self, spool: SpoolWriter, *, drop_when_full: bool) -> None:
        self._spool = spool
        self._drop_when_full = drop_when_full
        self._said_at = float("-inf")

    def append(self, entries: Sequence[Record | Outcome]) -> None:
        """Make the entries durable, all or none: call it before the answer. Raises LogFull."""
        try:
            self._spool.write(_encode_lines(entries))
        except LogFull as error:
            self._say(error)
            if not self._drop_when_full or isinstance(entries[0], Outcome):
                raise
            self._spool.drop(len(entries))

    def _say(self, error: LogFull) -> None:
        if time.monotonic() - self._said_at > _REMIND:
            self._said_at = time.monotonic()
            then = "dropped and counted" if self._drop_when_full else "refused"
            _log.error("decisions are %s: %s", then, error)
