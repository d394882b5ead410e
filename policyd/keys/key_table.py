"""Every key's settings in memory, at one revision, so that deciding waits for no database.

A table goes through these states, and only ever forward:

    unknown    nothing is known yet, and no request can be decided
    restored   a snapshot's settings are in force, as old as they are (restore())
    followed   its source has given all settings, and from then on gives what changes (apply())

Its source is the store (stored_key_table.py), or for a gateway that decides by itself, policyd.
Changes are applied between two decisions, never within one, as both run on the event loop; so each
decision is made from one revision. They are prepared in a copy first, with pauses in which the loop
runs, as all keys may change at once (settings_by_digest.py).

A secret that is in force for a while only has its end beside it, which each lookup compares with
the clock: it ends even while the source does not answer.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import TypeVar

from policyd.engine.settings import KeyChanges, KeySettings, ServerDefaults
from policyd.errors import RevisionNotReached, SettingsUnknown
from policyd.keys.changed_keys import ChangedKeys
from policyd.keys.settings_by_digest import SettingsByDigest

_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""A clock that goes on while the machine is suspended, where the system has one: settings from
before a night's sleep are stale, and CLOCK_MONOTONIC does not count that night. (While a hypervisor
pauses a machine, none of its clocks runs. The next look at the source brings what has changed.)"""
PIECE = 500
"""Keys that one turn of the event loop takes in: about a millisecond."""
_One = TypeVar("_One")


def seconds() -> float:
    """Now, in seconds of the clock by which the age of settings is measured."""
    return time.clock_gettime(_CLOCK)


def _ignore(_: KeyChanges) -> None:
    pass


class KeyTable:
    """The settings by the digest of the secret. Secrets end by `clock`: seconds since 1970. Belongs
    to one event loop.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._settings = SettingsByDigest()
        self._applying = asyncio.Lock()
        self._arrived = asyncio.Condition()
        self._fresh_at = seconds()
        self._known = asyncio.Event()
        self.is_known = False
        """Whether there are settings to decide by, even if these are that there is no key."""
        self.is_followed = False
        """Whether the settings are the source's, and not a snapshot's."""
        self.defaults: ServerDefaults | None = None
        """The server's defaults, as administrators applied them. None: none were applied."""
        self.revision = 0
        self.epoch = ""
        """Distinguishes this revision from another of the same number: see store/epochs.py."""
        self.on_apply: Callable[[KeyChanges], None] = _ignore
        """Called with changes in the turn of the loop in which they come into force; revision and
        epoch are then still the previous ones."""

    async def until_known(self) -> None:
        """Wait until there are settings to decide by."""
        await self._known.wait()

    def check_known(self) -> None:
        """Raises SettingsUnknown where there are no settings to decide by."""
        if not self.is_known:
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
        """How many secrets of keys are known, including those whose time has ended."""
        return len(self._settings)

    def copy(self) -> SettingsByDigest:
        """The settings by digest, including those of secrets that have ended. Copying costs next
        to nothing."""
        return self._settings.copy()

    def restore(
        self,
        settings: Mapping[bytes, KeySettings],
        revision: int,
        age: float,
        defaults: ServerDefaults | None = None,
        epoch: str = "",
    ) -> None:
        """Begin with settings from `age` seconds ago. The source is still asked for everything."""
        self._settings = _by_digest(settings)
        self.defaults = defaults
        self._fresh_at = seconds() - age
        self.revision, self.epoch = revision, epoch
        self._become_known()

    def staleness(self) -> float:
        """Seconds since the source last gave or confirmed the settings."""
        return seconds() - self._fresh_at

    async def apply(self, changes: KeyChanges, as_of: float) -> None:
        """Put these changes into force, as the source had them at `as_of`, by seconds().

        Other tasks run meanwhile, and decide by the previous settings.
        """
        async with self._applying:
            is_changed = changes.everything or changes.changed
            settings = await self._changed(changes) if is_changed else self._settings
            # No other task runs until the next await, so none sees only a part of this.
            before, self._settings = self._settings, settings
            self.on_apply(changes)
            await self._note(changes, as_of)
            await in_turns(before.let_go(settings))

    async def _changed(self, changes: KeyChanges) -> SettingsByDigest:
        """The settings with these changes, which come into force later."""
        changed = changes.changed
        if not isinstance(changed, ChangedKeys):
            given, changed = changed, ChangedKeys()
            await _in_pieces(given, changed.add)
        if changes.everything:
            changed.in_force.settle()
            return changed.in_force
        settings = self._settings.copy()
        await in_turns(settings.take_over(changed.in_force, changed.gone))
        return await _made_anew(settings) if settings.is_wasteful else settings

    async def _note(self, changes: KeyChanges, as_of: float) -> None:
        self._fresh_at = as_of
        self.is_followed = True
        self._become_known()
        if (changes.revision, changes.epoch) != (self.revision, self.epoch):
            if changes.defaults != self.defaults:
                self.defaults = changes.defaults
            self.revision, self.epoch = changes.revision, changes.epoch
            async with self._arrived:
                self._arrived.notify_all()

    def _become_known(self) -> None:
        self.is_known = True
        self._known.set()

    def confirm(self, as_of: float) -> None:
        """Note that the source had these very settings at `as_of`, by seconds()."""
        self._fresh_at = max(self._fresh_at, as_of)

    def hint(self) -> None:
        """Look at the source soon, as something may have changed. Here there is nothing to do: the
        source sends changes by itself."""

    async def reach(self, revision: int, timeout: float) -> None:
        """Look for `revision`, and wait up to `timeout` seconds for it. Raises
        RevisionNotReached."""
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


def _by_digest(settings: Mapping[bytes, KeySettings]) -> SettingsByDigest:
    return settings if isinstance(settings, SettingsByDigest) else SettingsByDigest(settings)


async def in_turns(work: Iterable[None]) -> None:
    """Do the steps of this work, each in a turn of the loop of its own."""
    for _ in work:
        await asyncio.sleep(0)


async def _in_pieces(work: Iterable[_One], take: Callable[[list[_One]], None]) -> None:
    rest = iter(work)
    while some := list(islice(rest, PIECE)):
        take(some)
        await asyncio.sleep(0)


async def _made_anew(settings: SettingsByDigest) -> SettingsByDigest:
    made = SettingsByDigest()
    await _in_pieces(settings.pairs(), made.update)
    made.settle()
    return made
