"""A worker's signs of life in the store: they show administrators which workers run and at which
revision each decides, and the store's answers measure the worker's clock. Beside its own, the
worker gives the signs of life of its followers."""

import asyncio
import logging
import socket
import time
from collections.abc import Sequence
from contextlib import suppress

from policyd.command.threads import StoreThreads
from policyd.command.worker_clock import WorkerClock
from policyd.errors import RevisionNotReached, StoreBusy, StoreUnavailable
from policyd.keys.stored_key_table import StoredKeyTable
from policyd.services.followers import Followers
from policyd.services.grpc_server import NOT_SERVING, SERVING, GrpcListener
from policyd.store import Store
from policyd.store.workers import Gateway

_log = logging.getLogger(__name__)

_BEAT = 2.0
"""Seconds between two signs of life. A new revision is reported at once."""
_TOGETHER = 0.2
"""Seconds to wait for more news of followers before they are reported together."""
_LEAVE = 1.0
"""Seconds to tell the store that this worker ends. Otherwise the store notices a little later."""
_CLOCK = "policyd.clock"
"""The name under which gRPC's health service reports the worker's clock. A wrong clock takes no
worker out of service, so the other names do not depend on it."""


class Presence:
    """Gives `store` signs of life of the worker `worker_id`, which decides by `keys`, and of its
    `followers`.

    Each may take `timeout` seconds, and measures `clock`. Belongs to one event loop.
    """

    def __init__(
        self,
        worker_id: str,
        store: Store,
        keys: StoredKeyTable,
        clock: WorkerClock,
        timeout: float,
        followers: Followers,
    ) -> None:
        self._followers = followers
        self._id = worker_id
        self._store = store
        self._keys = keys
        self._clock = clock
        self._threads = StoreThreads("signs of life", timeout)
        self.failing_since: float | None = None
        """When the database first failed to take a sign of life, in seconds since 1970; None: it
        takes them. If it still answers reads, it is read-only, a standby, full or locked."""
        self._has_told = False

    async def keep_telling(self, listeners: Sequence[GrpcListener]) -> None:
        """Give signs of life, and report the clock on the listeners, until cancelled."""
        while True:
            told = await self.tell()
            status = NOT_SERVING if self._clock.is_wrong else SERVING
            for listener in listeners:
                await listener.tell_of(_CLOCK, status)
            await self._until_news(told)

    async def _until_news(self, told: int) -> None:
        """Wait for a revision after `told`, for news of followers, or for the next beat."""
        followers = asyncio.ensure_future(self._followers.news.wait())
        revision = asyncio.ensure_future(self._keys.wait_for(told + 1, _BEAT))
        try:
            await asyncio.wait({followers, revision}, return_when=asyncio.FIRST_COMPLETED)
            if followers.done():
                await asyncio.sleep(_TOGETHER)
        finally:
            for waiting in (followers, revision):
                waiting.cancel()
            with suppress(RevisionNotReached, asyncio.CancelledError):
                await revision

    async def tell(self) -> int:
        """Tell the store that this worker runs, and at which revision. Returns that revision."""
        told = (self._id, socket.gethostname(), self._keys.revision, self._keys.epoch)
        self._followers.news.clear()
        if self._keys.is_followed:
            present, left = self._gateways(), self._followers.left()
            try:
                self._clock.measured(
                    await self._threads.run(self._store.workers.beat, *told, present, left)
                )
                self._followers.forget(left)
                self._succeeded()
            except (StoreUnavailable, StoreBusy) as error:
                self._failed(error)
            except Exception as error:  # noqa: BLE001  # Whatever the error, the next beat may work.
                _log.error("this worker's sign of life cannot be stored: %s", error)
        return told[2]

    def _gateways(self) -> list[Gateway]:
        return [
            Gateway(one.id, one.host, one.in_force.revision, one.in_force.epoch)
            for one in self._followers.present()
            if one.in_force is not None
        ]

    def _succeeded(self) -> None:
        if self._has_told:
            _log.info("the database takes changes again")
        self.failing_since, self._has_told = None, False

    def _failed(self, error: Exception) -> None:
        if self.failing_since is None:
            self.failing_since = time.time()
        # While the database is away, following the settings fails, too, and logs that, but maybe a
        # little later than this: so only the second failure in a row is logged.
        elif self._keys.is_answered and not self._has_told:
            _log.error("the database takes no changes: %s", error)
            self._has_told = True

    async def leave(self) -> None:
        """Tell the store that this worker ends, if it answers soon."""
        if self._keys.is_followed:
            with suppress(StoreUnavailable, StoreBusy):
                left = {self._id} | self._followers.left()
                await StoreThreads("leaving", _LEAVE).run(self._store.workers.leave, *left)
