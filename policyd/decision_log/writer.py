"""The decision log as a worker writes it: an entry is safe before its answer leaves, or the answer
does not leave.

Appending is synchronous and takes some microseconds: the kernel has the entry, so it survives the
worker, kill -9 included. Whether it also survives the machine is a setting: see spool/syncing.py.
Where an entry cannot be written, two settings say what happens: --log-full for a spool at its limit
or a full disk, --log-error for every other cause. "deny" raises, and the request gets no decision;
"drop" answers, and the loss is counted.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from policyd.command.log_throttle import Throttle
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
"""Seconds between two log lines about decisions that cannot be logged."""
_REFUSED_KEYS_SHARE = 0.25
"""Counts of refused keys may fill this share of the spool: the rest is for decisions."""
_INTERVAL = 1.0
"""Seconds between two syncs, where no answer waits for one."""
_PATIENCE = 10.0
"""Seconds that a disk may take to sync."""
_LAST = 2.0
"""Seconds that the last sync may take, when policyd ends."""

Entry = Record | Outcome | RefusedKey
"""An entry of the log, as services hand it over."""


class DecisionLog:
    """Appends entries of `process` to the `spool`.

    Where that is full it raises LogFull, or with `drop_when_full` counts the decision as lost.
    `drop_on_error` says the same for other failures. An outcome that cannot be written always
    raises: no client waits for it, and the gateway that reports it tries again. Requests with a
    refused key are only counted, and written by flush().
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
        """Why the last sync that no answer waited for failed; None where it did not."""
        self._problem: LogFull | None = None
        """Why the last entry was not written, or not synced for its answer, if so."""

    def append(self, entries: Sequence[Entry]) -> Awaitable[None] | None:
        """Write the entries, all or none. Call it before the answer leaves. Raises LogFull.

        Where an awaitable is returned, the entries are durable only once it was awaited, which
        raises LogFull too. Requests with a refused key are counted, and need not be durable yet.
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
            return None  # The disk does not have it, and --log-error allows that.
        return self._synced(can_drop=not isinstance(kept[0], Outcome))

    @property
    def lost(self) -> int:
        """Decisions that were answered and are not logged."""
        return self._spool.lost

    @property
    def problem(self) -> LogFull | None:
        """Why no decision can be logged; None where it can, as far as this is known."""
        return self._failure or self._problem

    @property
    def denies(self) -> bool:
        """Whether requests get no decision, as none can be logged."""
        return self.problem is not None and not self._drops(self.problem)

    async def check(self) -> None:
        """Find out again whether decisions can be logged, where that is in doubt.

        Call it every second: a worker that takes itself out of service for this gets no requests
        by which it would notice that the cause has ended.
        """
        if self._problem is None and not self._spool.is_doubtful():
            return
        try:
            self._spool.try_out()
        except LogFull as error:
            self._problem = error
        else:
            self._problem = await self._try_to_sync(_PATIENCE) if self._sync == "always" else None

    def flush(self) -> None:
        """Write the counts of refused keys, and of decisions that were lost while the disk was
        full. Call it every few seconds, and at the end."""
        self._spool.tell_losses()
        self._refused_keys.flush(self._write_refused_keys)

    async def keep_synced(self) -> None:
        """Sync the spool every second, where no answer waits for that, until cancelled."""
        synced = 0
        while self._sync != "never":
            await asyncio.sleep(_INTERVAL)
            is_due = self._sync == "interval" and self._spool.written > synced
            if is_due or self._failure is not None:
                written = self._spool.written
                self._failure = await self._try_to_sync(_PATIENCE)
                if self._failure is None:
                    synced = written

    async def close(self) -> None:
        """Sync the spool a last time, for up to _LAST seconds, and close it."""
        failure = None if self._sync == "never" else await self._try_to_sync(_LAST)
        self._thread.close()
        if failure is None:
            self._spool.close()
        else:  # The thread may hang in one of the files. They are closed with the process.
            _log.error("%s", failure)

    def _append(self, entries: list[Record | Outcome]) -> bool:
        """Write the entries. Returns False where they are counted as lost. Raises LogFull."""
        try:
            if self._failure is not None and (
                not self._drop_on_error or isinstance(entries[0], Outcome)
            ):
                # The same error is raised each time, and its traceback must not grow.
                raise self._failure.with_traceback(None)
            self._spool.write(_encode_lines(entries))
        except LogFull as error:
            self._problem = error
            drops = self._drops(error)
            self._say(error, "dropped and counted" if drops else "refused")
            if not drops or isinstance(entries[0], Outcome):
                raise
            self._spool.drop(len(entries))
            return False
        return True

    async def _synced(self, *, can_drop: bool) -> None:
        if error := await self._try_to_sync(_PATIENCE):
            self._problem = error
            drops = self._drops(error)
            self._say(error, "answered before the disk has them" if drops else "refused")
            if not drops or not can_drop:
                raise error
            # The kernel has the entries, so the log gets them unless the power fails.

    async def _try_to_sync(self, patience: float) -> LogFull | None:
        """Sync for up to `patience` seconds. Returns why that failed, if it did."""
        asked = self._thread.request()
        # The sync is not cancelled after that, as others wait for it too.
        done, _ = await asyncio.wait((asked,), timeout=patience)
        if not done:
            # From now on entries fail at once, without waiting, until the disk syncs again.
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
            return False  # Decisions fail in the same way, and the log says so for them.
        return True

    def _drops(self, error: LogFull) -> bool:
        is_error = isinstance(error, LogUnwritable)
        return self._drop_on_error if is_error else self._drop_when_full

    def _say(self, error: LogFull, then: str) -> None:
        if self._throttle.is_due():
            _log.error("decisions are %s: %s", then, error)
