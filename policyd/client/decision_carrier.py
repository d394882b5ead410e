"""Carries a gateway's spool to policyd.

Each process of a gateway writes files of its own to one folder. The one that has the folder's lock
carries all of them, in a thread, and another takes over when it ends. How far each file is carried
is kept in policyd's database, so no entry is carried twice, whichever process carries.
"""

import asyncio
import logging
from collections.abc import Callable

from policyd.client.policyd_destination import PolicydDestination
from policyd.command.log_throttle import Throttle
from policyd.command.threads import StoreThreads
from policyd.decision_log.shipper import PAUSE, Shipper, pause_after
from policyd.decision_log.spool import SpoolReader
from policyd.errors import StoreUnavailable

_log = logging.getLogger(__name__)

_OTHER_PAUSE = 1.0
"""Seconds between two looks at whether the process that carries has ended."""
_LONGEST_PAUSE = 5.0
"""Seconds between two tries while policyd takes no entries."""
_REMIND = 60.0
"""Seconds, at least, between two log lines about further causes: several policyds may each have
one."""


class Carrier:
    """Ships `spool` to `destination` while this process has the folder's lock, once `is_found` says
    that the database to which the entries belong is known. Belongs to one event loop."""

    def __init__(
        self, spool: SpoolReader, destination: PolicydDestination, is_found: Callable[[], bool]
    ) -> None:
        self._spool = spool
        self._destination = destination
        self._is_found = is_found
        self._shipper = Shipper(destination, spool)
        # Without a bound: each call of the destination has a deadline of its own.
        self._threads = StoreThreads("carrying decisions to policyd", None)
        self._has_lock = False
        self._closing: asyncio.Task[None] | None = None
        """The task that gives the lock to others, where finish() had no time to."""
        self._throttle = Throttle(_REMIND)
        self._told = ""
        """The problem that was logged last; "": policyd takes entries."""

    @property
    def waiting(self) -> int:
        """Bytes that wait in the spool, where this process carries it; else 0."""
        try:
            return self._spool.waiting()[0] if self._has_lock else 0
        except OSError:
            return 0

    async def carry(self) -> None:
        """Carry what is written, until cancelled."""
        pause = PAUSE
        while True:
            shipped = await self._try()
            pause = min(pause * 2, _LONGEST_PAUSE) if shipped is None else pause_after(shipped)
            await asyncio.sleep(pause if self._has_lock or shipped is None else _OTHER_PAUSE)

    async def finish(self, seconds: float) -> None:
        """Carry what is left, for up to `seconds`, and give up the lock. What is still left then is
        carried by another process, or after the next start."""
        if not self._is_found():
            return  # Nothing was decided yet.
        try:
            async with asyncio.timeout(seconds):
                await self._carry_all()
        except TimeoutError:
            _log.warning("decisions that policyd does not have yet stay in the spool")
            # It waits for the call under way, which may take longer than this client may wait.
            self._closing = asyncio.create_task(self._threads.run(self._close))
            return
        await self._threads.run(self._close)

    async def _carry_all(self) -> None:
        """Wait until it is this process's turn and policyd has taken all entries."""
        while True:
            if await self._try() is not None and self._has_lock:
                return
            await asyncio.sleep(PAUSE)

    def _close(self) -> None:
        self._has_lock = False
        self._destination.close()
        self._spool.close()

    async def _try(self) -> int | None:
        """Carry, where it is this process's turn. Returns how many entries were carried; None while
        policyd takes nothing."""
        if not self._is_found():
            return None
        try:
            carried = await self._threads.run(self._ship)
        except StoreUnavailable as error:
            self._tell(str(error))
            return None
        except OSError as error:
            _log.error("the spool cannot be read: %s", error)
            return None
        if self._told:
            _log.info("policyd takes decisions again")
        self._told = ""
        return carried

    def _tell(self, problem: str) -> None:
        """Log why policyd takes no entries: at once, and again where the cause changes."""
        if not self._told or (problem != self._told and self._throttle.is_due()):
            _log.error("decisions stay in the spool: %s", problem)
            self._told = problem

    def _ship(self) -> int:
        self._has_lock = self._spool.lock()
        return self._shipper.ship() if self._has_lock else 0
