"""Every key's settings in memory, at one revision: deciding waits for no database."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress

from policyd.errors import RevisionNotReached
from policyd.model import KeyChanges, KeySettings
from policyd.store.database import TIMEOUT
from policyd.store.threads import StoreThreads

_log = logging.getLogger(__name__)


class KeyTable:
    """Follows the store. `changes_since(revision)` asks it, and may block: it runs in a thread that
    is for nothing else, for `timeout` seconds.

    Belongs to one event loop.
    """

    def __init__(
        self, changes_since: Callable[[int], KeyChanges], timeout: float = TIMEOUT
    ) -> None:
        self._changes_since = changes_since
        self._thread = StoreThreads("settings", timeout)
        self._settings: dict[bytes, KeySettings] = {}
        self._wanted = asyncio.Event()
        self._arrived = asyncio.Condition()
        self._fresh_at = time.monotonic()
        self.revision = 0

    def settings(self, digest: bytes) -> KeySettings | None:
        """The settings of the key with this digest. None: no such key is in force."""
        return self._settings.get(digest)

    def staleness(self) -> float:
        """Seconds since the store last answered."""
        return time.monotonic() - self._fresh_at

    async def refresh(self) -> None:
        """Read what changed. Raises StoreUnavailable."""
        asked_at = time.monotonic()
        changes = await self._thread.run(self._changes_since, self.revision)
        if changes.everything:
            self._settings = {}
        for change in changes.changed:
            if change.settings is None:
                self._settings.pop(change.digest, None)
            else:
                self._settings[change.digest] = change.settings
        self._fresh_at = asked_at
        if changes.revision != self.revision:
            self.revision = changes.revision
            async with self._arrived:
                self._arrived.notify_all()

    async def follow(self, interval: float) -> None:
        """Refresh every `interval` seconds, give or take a tenth, until cancelled."""
        lost = False
        while True:
            try:
                await self.refresh()
                if lost:
                    _log.info(
                        "the database answers again; settings are at revision %d", self.revision
                    )
                lost = False
            except Exception as error:  # noqa: BLE001  # Whatever it was, following goes on.
                if not lost:
                    _log.error("settings stay at revision %d: %s", self.revision, error)
                lost = True
            await self._pause(interval * random.uniform(0.9, 1.1))  # noqa: S311  # keeps no secret

    def hint(self) -> None:
        """Something may have changed: look soon."""
        self._wanted.set()

    async def reach(self, revision: int, timeout: float) -> None:
        """Look for `revision`, and wait for it. Raises RevisionNotReached after `timeout` s."""
        self.hint()
        await self.wait_for(revision, timeout)

    async def wait_for(self, revision: int, timeout: float) -> None:
        """Wait until `revision` is in force. Raises RevisionNotReached after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout), self._arrived:
                await self._arrived.wait_for(lambda: self.revision >= revision)
        except TimeoutError:
            raise RevisionNotReached(
                f"settings are at revision {self.revision}, not yet at {revision}: ask again"
            ) from None

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wanted.wait()
        self._wanted.clear()
