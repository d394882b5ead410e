"""The decision log as a worker writes it: what it takes survives the worker, or is refused.

Whether it survives the machine's end too is a setting: see spool/syncing.py.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from policyd.command.throttle import Throttle
from policyd.decision_log.record import Outcome, Record
from policyd.decision_log.refused_key import RefusedKey, RefusedKeyCount
from policyd.decision_log.refused_tally import RefusedKeyTally
from policyd.decision_log.spool import SpoolWriter, Sync
from policyd.decision_log.spool.problems import unwritable
from policyd.decision_log.spool.syncing import SyncThread
from policyd.errors import LogFull, LogUnwritable

_log = logging.getLogger(__name__)
_encode_lines = msgspec.json.Encoder().encode_lines
_REMIND = 10.0
"""Seconds between two lines that say that decisions cannot be logged."""
_REFUSED_KEYS_SHARE = 0.25
"""How full the spool may be for counts of refused keys: the rest is for decisions."""
_INTERVAL = 1.0
"""Seconds between two syncs, where no answer waits for one."""
_PATIENCE = 10.0
"""Seconds that a disk may take to sync."""
_LAST = 2.0
"""Seconds that it may take for the last time, when policyd ends."""

Entry = Record | Outcome | RefusedKey
"""What is given to the log."""


class DecisionLog:
    """Appends to the spool of `process`.

    Where that is full, or cannot be written for another reason, it refuses, or counts decisions
    that it drops: each case has its own setting. Outcomes are refused either way: no client waits
    for them, and the gateway that reports them tries again. Refused keys are only counted, and
    written by flush().
    """

    def __init__(
        self,
        spool: SpoolWriter,
        process: str,
        *,
        drop_when_full: bool,
        clock: Callable[[], float] = time.time,
        drop_on_error: bool = False,
        sync: Sync = "never",
    ) -> None:
        self._spool = spool
        self._drop_when_full = drop_when_full
        self._drop_on_error = drop_on_error
        self._throttle = Throttle(_REMIND)
        self._refused_keys = RefusedKeyTally(process, clock)
        self._sync = sync
        self._thread = SyncThread(spool.sync)
        self._failure: LogFull | None = None
        """Why the last sync that no answer waited for did not come to an end."""

    def append(self, entries: Sequence[Entry]) -> Awaitable[None] | None:
        """Make the entries durable, all or none, before the answer. Raises LogFull.

        Where something is returned, they are durable once that was awaited, which raises LogFull
        too. Those of refused keys need not be durable yet.
        """
        kept: list[Record | Outcome] = []
        for entry in entries:
            if isinstance(entry, RefusedKey):
                self._refused_keys.add(entry)
            else:
                kept.append(entry)
        if not kept or not self._append(kept) or self._sync != "always":
            return None
        if self._failure is not None:
            return None  # It is dropped, as far as the disk goes: keep_synced() tries again.
        return self._synced(can_drop=not isinstance(kept[0], Outcome))

    def flush(self) -> None:
        """Write what was counted of refused keys, and of decisions that were dropped while the
        disk was full: call it every few seconds, and at the end."""
        self._spool.tell_losses()
        self._refused_keys.flush(self._write_refused_keys)

    async def keep_synced(self) -> None:
        """Have the disk take what was written, every second, if it is not to be asked at once."""
        synced = 0
        while self._sync != "never":
            await asyncio.sleep(_INTERVAL)
            is_due = self._sync == "interval" and self._spool.written > synced
            if is_due or self._failure is not None:
                written = self._spool.written
                self._failure = await self._try_to_sync()
                if self._failure is None:
                    synced = written

    async def close(self) -> None:
        """Have the disk take the rest, within its time, and close the spool."""
        failure = None if self._sync == "never" else await self._try_to_sync(_LAST)
        self._thread.close()
        if failure is None:
            self._spool.close()
        else:  # The thread may hang in one of the files: they end with the process.
            _log.error("%s", failure)

    def _append(self, entries: list[Record | Outcome]) -> bool:
        """Whether they are written. If not, they are counted as lost. Raises LogFull."""
        try:
            if self._failure is not None and (
                not self._drop_on_error or isinstance(entries[0], Outcome)
            ):
                # One error for all, whose frames must not gather.
                raise self._failure.with_traceback(None)
            self._spool.write(_encode_lines(entries))
        except LogFull as error:
            drops = self._drops(error)
            self._say(error, drops=drops)
            if not drops or isinstance(entries[0], Outcome):
                raise
            self._spool.drop(len(entries))
            return False
        return True

    async def _synced(self, *, can_drop: bool) -> None:
        if error := await self._try_to_sync():
            drops = self._drops(error)
            self._say(error, drops=drops)
            if not drops or not can_drop:
                raise error
            # They are written, and the log has them, unless the power fails.

    async def _try_to_sync(self, patience: float = _PATIENCE) -> LogFull | None:
        """Why the disk did not take what was written within `patience` s, if it did not."""
        asked = self._thread.request()
        # Not cancelled after that: others wait for it too.
        done, _ = await asyncio.wait((asked,), timeout=patience)
        if not done:
            # Others need not wait so long: they are refused until the disk syncs again.
            self._failure = LogUnwritable(
                f"the decision log cannot be synced: the disk takes more than {patience:.0f} s. "
                "See to the disk that --spool names, or serve with --log-error drop"
            )
            return self._failure
        error = asked.result()
        if error is None:
            return None
        self._spool.leave_segment()
        return unwritable("be synced", error)

    def _write_refused_keys(self, entries: list[RefusedKey | RefusedKeyCount]) -> bool:
        try:
            if self._spool.is_fuller_than(_REFUSED_KEYS_SHARE):
                return False
            self._spool.write(_encode_lines(entries))
        except LogFull:
            return False  # Decisions meet the same, and say so.
        return True

    def _drops(self, error: LogFull) -> bool:
        is_error = isinstance(error, LogUnwritable)
        return self._drop_on_error if is_error else self._drop_when_full

    def _say(self, error: LogFull, *, drops: bool) -> None:
        if self._throttle.is_due():
            then = "dropped and counted" if drops else "refused"
            _log.error("decisions are %s: %s", then, error)
