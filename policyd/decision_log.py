"""The decision log as a worker writes it: what it takes survives the worker, or is refused."""

import logging
import time
from collections.abc import Sequence

import msgspec

from policyd.errors import LogFull
from policyd.record import Outcome, Record
from policyd.refusal import Refusal, RefusalCount
from policyd.refusal_tally import RefusalTally
from policyd.spool import SpoolWriter

_log = logging.getLogger(__name__)
_encode_lines = msgspec.json.Encoder().encode_lines
_REMIND = 10.0
"""Seconds between two lines that say that the log is full."""
_REFUSALS_SHARE = 0.25
"""How full the spool may be for counts of refused keys: the rest is for decisions."""

Entry = Record | Outcome | Refusal
"""What is given to the log."""


class DecisionLog:
    """Appends to the spool of `process`. Where that is full, it refuses, or counts decisions that
    it drops.

    Outcomes are refused either way: no client waits for them, and whoever reports them tries again.
    Refused keys are only counted, and written by flush().
    """

    def __init__(self, spool: SpoolWriter, process: str, *, drop_when_full: bool) -> None:
        self._spool = spool
        self._drop_when_full = drop_when_full
        self._said_at = float("-inf")
        self._refusals = RefusalTally(process)

    def append(self, entries: Sequence[Entry]) -> None:
        """Make the entries durable, all or none: call it before the answer. Raises LogFull.

        Those of refused keys need not be durable yet.
        """
        kept: list[Record | Outcome] = []
        for entry in entries:
            if isinstance(entry, Refusal):
                self._refusals.add(entry)
            else:
                kept.append(entry)
        if kept:
            self._append(kept)

    def flush(self) -> None:
        """Write what was counted of refused keys, and of decisions that were dropped while the
        disk was full: call it every few seconds, and at the end."""
        self._spool.tell_losses()
        self._refusals.flush(self._write_refusals)

    def _append(self, entries: list[Record | Outcome]) -> None:
        try:
            self._spool.write(_encode_lines(entries))
        except LogFull as error:
            self._say(error)
            if not self._drop_when_full or isinstance(entries[0], Outcome):
                raise
            self._spool.drop(len(entries))

    def _write_refusals(self, entries: list[Refusal | RefusalCount]) -> bool:
        try:
            if self._spool.is_fuller_than(_REFUSALS_SHARE):
                return False
            self._spool.write(_encode_lines(entries))
        except (LogFull, OSError):
            return False  # Decisions meet the same, and say so.
        return True

    def _say(self, error: LogFull) -> None:
        if time.monotonic() - self._said_at > _REMIND:
            self._said_at = time.monotonic()
            then = "dropped and counted" if self._drop_when_full else "refused"
            _log.error("decisions are %s: %s", then, error)
