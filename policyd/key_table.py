"""Every key's settings in memory, at one revision: deciding waits for no database."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress

from policyd.errors import RevisionNotReached, SettingsUnknown
from policyd.model import KeyChanges, KeySettings

_log = logging.getLogger(__name__)


class KeyTable:
    """Follows the store. `changes_since(revision)` asks it, and may block: it runs in a thread.

    Belongs to one event loop.
    """

    def __init__(self, changes_since: Callable[[int], KeyChanges]) -> None:
        self._changes_since = changes_since
        self._settings: dict[bytes, KeySettings] = {}
        self._wanted = asyncio.Event()
        self._arrived = asyncio.Condition()
        self._fresh_at = time.monotonic()
        self._read_to = 0
        """Up to which revision the store was read. 0: all of it is to be read."""
        self._known = asyncio.Event()
        self.is_followed = False
        """Whether the store itself has told the settings, and no snapshot."""
        self.revision = 0

    @property
    def is_known(self) -> bool:
        """Whether there are settings to decide by, if only that there is no key."""
        return self._known.is_set()

    async def until_known(self) -> None:
        """Wait until there are settings to decide by."""
        await self._known.wait()

    def check_known(self) -> None:
        """Raises SettingsUnknown where there are no settings to decide by."""
        if not self._known.is_set():
            raise SettingsUnknown(
                "no API key's settings are known yet, as the database has not answered since "
                "policyd started, and there is no snapshot of them to use: ask again"
            )

    def settings(self, digest: bytes) -> KeySettings | None:
        """The settings of the key with this digest. None: no such key is in force."""
        return self._settings.get(digest)

    def copy(self) -> tuple[int, dict[bytes, KeySettings]]:
        """The revision, and the settings of every key that is in force at it."""
        return self.revision, self._settings.copy()

    def restore(self, settings: dict[bytes, KeySettings], revision: int, age: float) -> None:
        """Begin with what was known `age` seconds ago. All of it is read anew from the store."""
        self._settings = settings
        self._fresh_at = time.monotonic() - age
        self.revision = revision
        self._known.set()

    def staleness(self) -> float:
        """Seconds since the store last answered."""
        return time.monotonic() - self._fresh_at

    async def refresh(self) -> None:
        """Read what changed. Raises StoreUnavailable."""
        asked_at = time.monotonic()
        changes = await asyncio.to_thread(self._changes_since, self._read_to)
        if changes.everything or not self._read_to:
            self._settings = {}
        for change in changes.changed:
            if change.settings is None:
                self._settings.pop(change.digest, None)
            else:
                self._settings[change.digest] = change.settings
        self._fresh_at = asked_at
        self._read_to = changes.revision
        self.is_followed = True
        self._known.set()
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
