"""A table of settings that follows the store.

The first refresh reads all keys, later ones only keys with a newer revision. All keys are read
again where the store no longer has the revision that was read last, with its epoch: the database
was restored from a backup, or has lost changes.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from policyd.command.deadline import TIMEOUT
from policyd.command.threads import StoreThreads
from policyd.engine.settings import KeyChanges
from policyd.errors import WrongDatabase
from policyd.keys import key_table
from policyd.keys.key_table import KeyTable

_log = logging.getLogger(__name__)


class StoredKeyTable(KeyTable):
    """Follows the store. `changes_since(revision, epoch)` queries it and may block, so it runs in a
    thread of its own, for up to `timeout` seconds.
    """

    def __init__(
        self,
        changes_since: Callable[[int, str], KeyChanges],
        timeout: float = TIMEOUT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(clock)
        self._changes_since = changes_since
        self._thread = StoreThreads("settings", timeout)
        self._wanted = asyncio.Event()
        self._read_to = (0, "")
        """The revision, and its epoch, up to which the store was read and is in force. Revision 0:
        all keys have yet to be read."""
        self.is_wrong_database = False
        """Whether the last look found a database of another installation."""
        self.is_answered = False
        """Whether the last look at the database succeeded."""

    def silence(self) -> float:
        """Seconds since the last look at the store began, or last had an answer of the database's.
        Infinity where there was none yet."""
        return self._thread.silence()

    async def refresh(self) -> None:
        """Read the changes. Raises StoreUnavailable."""
        asked_at = key_table.seconds()
        revision, epoch = self._read_to
        changes = await self._thread.run(self._changes_since, revision, epoch)
        if changes.everything and revision:
            _log.warning(
                "the database was put back from a backup, or has lost changes: all settings are "
                "read anew, at revision %d after %d",
                *(changes.revision, self.revision),
            )
        if not revision:
            changes = replace(changes, everything=True)
        self.is_answered = True
        await self.apply(changes, asked_at)
        self._read_to = changes.revision, changes.epoch

    async def follow(self, interval: float) -> None:
        """Refresh every `interval` seconds, give or take a tenth, until cancelled."""
        lost = ""
        while True:
            try:
                await self.refresh()
                if lost:
                    _log.info(
                        "the database answers again; settings are at revision %d", self.revision
                    )
                lost = ""
                self.is_wrong_database = False
            except Exception as error:  # noqa: BLE001  # Whatever the error, following goes on.
                self.is_answered = False
                self.is_wrong_database = isinstance(error, WrongDatabase)
                # One line for each cause: a database that is away may come back as a wrong one.
                if lost != type(error).__name__:
                    _log.error("settings stay at revision %d: %s", self.revision, error)
                lost = type(error).__name__
            await self._pause(interval * random.uniform(0.9, 1.1))  # noqa: S311  # keeps no secret

    def hint(self) -> None:
        """Look at the store soon, as something may have changed."""
        self._wanted.set()

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wanted.wait()
        self._wanted.clear()
