"""The health that a worker reports on its gRPC listeners. Each change is logged."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

from policyd.keys.key_table import KeyTable
from policyd.server.following import Following
from policyd.server.readiness import Readiness
from policyd.services.grpc_server import GrpcListener

_log = logging.getLogger(__name__)

_LOOK = 1.0
"""Seconds, at most, between two looks at whether the worker is ready and its settings are fresh."""


class Health:
    """Reports the `readiness` of a worker that decides by `keys`, which `following` fills.

    Settings become stale after `max_staleness` seconds. Belongs to one event loop.
    """

    def __init__(
        self,
        keys: KeyTable,
        following: Following,
        readiness: Readiness,
        listeners: Sequence[GrpcListener],
        max_staleness: float,
    ) -> None:
        self._keys = keys
        self._following = following
        self._readiness = readiness
        self._listeners = listeners
        self._max_staleness = max_staleness
        self._is_draining = False

    async def drain(self) -> None:
        """Report NOT_SERVING from now on, as the worker is about to end."""
        self._is_draining = True
        await self.tell()

    async def tell(self) -> None:
        """Report the present state on every listener."""
        for listener in self._listeners:
            is_ready = not self._readiness.unready and not self._is_draining
            await listener.tell(
                ready=is_ready, fresh=self._following.is_fresh, decides=self._readiness.decides
            )

    async def watch(self) -> None:
        """Report every change, until cancelled."""
        told = self._now()
        # The state may have changed while the listeners started.
        await self.tell()
        while True:
            # The first settings are reported at once.
            first = self._keys.until_known() if not self._keys.is_known else asyncio.sleep(60)
            with suppress(TimeoutError):
                await asyncio.wait_for(first, min(_LOOK, self._max_staleness / 4))
            before, told = told, self._now()
            if told == before:
                continue
            await self.tell()
            unready, stale, _ = told
            if unready != before[0]:
                state = f"NOT_SERVING: {unready}" if unready else "SERVING"
                _log.warning("health is now %s", state)
            if stale != before[1]:
                _log.warning("%s", stale or "the settings are fresh again")

    def _now(self) -> tuple[str, str, bool]:
        return self._readiness.unready, self._following.stale, self._readiness.decides
