"""Keeps the snapshot up to date. Each worker of a server does so; see snapshot.py."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable

from policyd.command.threads import StoreThreads
from policyd.keys.key_table import KeyTable, in_turns
from policyd.keys.snapshot import RENEW, SnapshotFile
from policyd.keys.snapshot_format import Head

_log = logging.getLogger(__name__)

_TURN = 0.5
"""Seconds between two looks at whether the settings have changed."""
_SHARE = 10
"""A pause lasts at least this many times as long as the writing before it took."""


class SnapshotKeeper:
    """Keeps `file` up to date with the settings in `keys`.

    `identity` returns the identity of the database that they are from, and `place` is a digest of
    its address. Belongs to one event loop; what blocks runs in threads.
    """

    def __init__(
        self, file: SnapshotFile, keys: KeyTable, identity: Callable[[], str], place: str
    ) -> None:
        self._file = file
        self._keys = keys
        self._identity = identity
        self._place = place
        self._threads = StoreThreads("the snapshot", None)
        self._kept: tuple[int, str] | None = None
        """The revision and the epoch that the file was last seen to have."""
        self._looked_at = float("-inf")
        self._has_failed = False

    async def keep(self) -> None:
        """Keep the file up to date, until cancelled."""
        while True:
            took = await self._turn() if self._is_due() else 0.0
            await asyncio.sleep(max(_TURN, _SHARE * took))

    def _is_due(self) -> bool:
        return self._keys.is_followed and (
            (self._keys.revision, self._keys.epoch) != self._kept
            or time.monotonic() - self._looked_at > RENEW / 2
        )

    async def _turn(self) -> float:
        """Bring the file up to date. Returns how many seconds that took."""
        began = time.monotonic()
        try:
            await self._bring_up_to_date()
        except OSError as error:
            if not self._has_failed:
                _log.error(
                    "the snapshot of the settings cannot be written (%s), so that a worker that "
                    "starts while the database is away decides by older ones, or not at all",
                    error.strerror,
                )
            self._has_failed = True
        else:
            if self._has_failed:
                _log.info("the snapshot of the settings is written again")
            self._has_failed = False
        return time.monotonic() - began

    async def _bring_up_to_date(self) -> None:
        head = self._head()
        if await self._threads.run(self._file.is_behind, head):
            # These belong together: nothing changes any of them until the next await.
            head = self._head()
            settings, defaults = self._keys.copy(), self._keys.defaults
            await self._threads.run(self._file.keep, head, settings, defaults)
            # This copy may be the last to hold what has been replaced meanwhile.
            await in_turns(settings.let_go(self._keys.copy()))
        self._kept, self._looked_at = (head.revision, head.epoch), time.monotonic()

    def _head(self) -> Head:
        return Head(
            identity=self._identity(),
            place=self._place,
            revision=self._keys.revision,
            epoch=self._keys.epoch,
            followed_at=time.time() - self._keys.staleness(),
        )


def place_of(url: str) -> str:
    """A digest of a database's address: its URL without the user and the password."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    where = scheme.partition("+")[0] + "://" + authority.rpartition("@")[2] + slash + path
    return hashlib.sha256(where.encode()).hexdigest()[:16]
