"""Every key's settings in memory, at one revision, so that deciding waits for no database.

A table goes through these states, and only ever forward:

    unknown    nothing is known yet, and no request can be decided
    restored   the snapshot's settings are in force, as old as they are (restore())
    followed   the store has told all settings, and from then on what changes (refresh())

The first refresh reads all keys, later ones only keys with a newer revision. All keys are read anew
where the store no longer has the revision that was read last, with the epoch that it had then: the
database was restored from a backup, or has lost changes. Changes are applied between two decisions,
never within one, as both run on the event loop; so each decision is made from one revision.

A secret that is in force for a while only has its end beside it, and is looked at with each lookup:
no database has to answer for it to end.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress

from policyd.command.deadline import TIMEOUT
from policyd.command.threads import StoreThreads
from policyd.engine.settings import KeyChanges, KeySettings, ServerDefaults
from policyd.errors import RevisionNotReached, SettingsUnknown, WrongDatabase

_log = logging.getLogger(__name__)


_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""A clock that goes on while the machine is suspended, where the system has one: settings from
before a night's sleep are stale, and CLOCK_MONOTONIC does not count that night. (While a hypervisor
pauses a machine, none of its clocks goes on. The next look at the database brings news.)"""


def _seconds() -> float:
    return time.clock_gettime(_CLOCK)


class KeyTable:
    """Follows the store. `changes_since(revision, epoch)` queries it and may block, so it runs in a
    thread of its own, for up to `timeout` seconds. Secrets end by `clock`: seconds since 1970.
    Belongs to one event loop.
    """

    def __init__(
        self,
        changes_since: Callable[[int, str], KeyChanges],
        timeout: float = TIMEOUT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._changes_since = changes_since
        self._thread = StoreThreads("settings", timeout)
        self._clock = clock
        self._settings: dict[bytes, KeySettings] = {}
        self._wanted = asyncio.Event()
        self._arrived = asyncio.Condition()
        self._fresh_at = _seconds()
        self._read_to = 0
        """The revision up to which the store was read. 0: all keys have yet to be read."""
        self._known = asyncio.Event()
        self.is_followed = False
        """Whether the settings are the store's, and not a snapshot's."""
        self.defaults: ServerDefaults | None = None
        """The server's defaults, as administrators applied them. None: they did not."""
        self.revision = 0
        self.epoch = ""
        """Distinguishes this revision from another of the same number: see store/epochs.py."""
        self.is_wrong_database = False
        """Whether the last look found a database of another installation."""
        self.is_answered = False
        """Whether the last look at the database succeeded."""

    @property
    def is_known(self) -> bool:
        """Whether there are settings to decide by. That there is no key is one of them, too."""
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
        found = self._settings.get(digest)
        if found is not None and found.until is not None and found.until <= self._clock():
            return None
        return found

    def __len__(self) -> int:
        """How many secrets of keys are known, also of those that have ended by themselves."""
        return len(self._settings)

    def copy(self) -> dict[bytes, KeySettings]:
        """The settings by digest, also of those that have ended."""
        return self._settings.copy()

    def restore(
        self,
        settings: dict[bytes, KeySettings],
        revision: int,
        age: float,
        defaults: ServerDefaults | None = None,
    ) -> None:
        """Begin with settings from `age` seconds ago. The store is still read from the start."""
        self._settings = settings
        self.defaults = defaults
        self._fresh_at = _seconds() - age
        self.revision = revision
        self._known.set()

    def staleness(self) -> float:
        """Seconds since the store last answered."""
        return _seconds() - self._fresh_at

    async def refresh(self) -> None:
        """Read the changes. Raises StoreUnavailable."""
        asked_at = _seconds()
        changes = await self._thread.run(self._changes_since, self._read_to, self.epoch)
        if changes.everything or not self._read_to:
            if self._read_to:
                _log.warning(
                    "the database was put back from a backup, or has lost changes: all settings "
                    "are read anew, at revision %d after %d",
                    *(changes.revision, self.revision),
                )
            self._settings = {}
        for change in changes.changed:
            if change.settings is None:
                self._settings.pop(change.digest, None)
            else:
                self._settings[change.digest] = change.settings
        self._fresh_at = asked_at
        self.is_answered = True
        self._read_to = changes.revision
        self.is_followed = True
        self._known.set()
        if (changes.revision, changes.epoch) != (self.revision, self.epoch):
            if changes.defaults != self.defaults:
                self.defaults = changes.defaults
            self.revision, self.epoch = changes.revision, changes.epoch
            async with self._arrived:
                self._arrived.notify_all()

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
