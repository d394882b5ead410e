"""How a worker gets the settings of API keys, and follows them: from the database, or at first from
the snapshot, where the database does not answer soon."""

import asyncio
import logging
import os
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from policyd.command.database_url import sqlite_file
from policyd.command.threads import StoreThreads
from policyd.decision_log import spool
from policyd.errors import SettingsError, SnapshotUnusable, StoreUnavailable, StoreUnusable
from policyd.keys.snapshot import SnapshotFile
from policyd.keys.snapshot_keeper import SnapshotKeeper, place_of
from policyd.keys.stored_key_table import StoredKeyTable
from policyd.server.opening import OpenedStore
from policyd.settings import ServerSettings

_log = logging.getLogger(__name__)

_PATIENCE = 1.0
"""Seconds that the database has to answer before the worker uses the snapshot."""
_POLL_EMBEDDED = 0.2
_POLL = 1.0
"""Seconds between two looks for changed keys, in SQLite and in PostgreSQL. SQLite gives no hints,
and a look costs little there."""
_REMIND = 30.0
"""Seconds between two log lines that nothing can be decided."""


class Following:
    """Fills `keys` from `store`. With `ends`, starting fails with a database that this version
    cannot use; a worker that is restarted goes on by the snapshot instead. Belongs to one event
    loop.
    """

    def __init__(
        self, keys: StoredKeyTable, store: OpenedStore, settings: ServerSettings, *, ends: bool
    ) -> None:
        self._keys = keys
        self._store = store
        self._settings = settings
        self._ends = ends
        file = sqlite_file(settings.database_url)
        self._is_embedded = file is not None
        self._place = place_of(os.path.realpath(file) if file else settings.database_url)
        self._file = SnapshotFile(settings.snapshot_file)
        # Without a time limit: each call that opening makes has a deadline of its own.
        self._opening = StoreThreads("the start", None)
        self._reading: asyncio.Task[None] | None = None
        self._problem = ""

    @property
    def is_fresh(self) -> bool:
        """Whether there are settings, and the database was followed within --max-staleness."""
        return self._keys.is_known and self._keys.staleness() <= self._settings.max_staleness

    @property
    def unready(self) -> str:
        """Why requests should not be sent here, in words that hold no secret; "": they may be."""
        if not self._keys.is_known:
            return "no settings are known yet: the database is away"
        if self._settings.unready_when_stale:
            return self.stale
        return ""

    @property
    def stale(self) -> str:
        """Why the settings are stale, in words that hold no secret; "": they are not."""
        if self.is_fresh:
            return ""
        # Anyone may probe, without a token: what the database itself says goes to the log alone.
        is_wrong = self._keys.is_wrong_database
        cause = "the database is not the one it was" if is_wrong else "the database is away"
        return f"the settings are stale: {cause}"

    async def begin(self) -> None:
        """Read the settings from the database, or from the snapshot where it does not answer soon.
        If there is no usable snapshot either, no settings are known yet.

        Raises SettingsError or StoreUnusable.
        """
        self._reading = asyncio.create_task(self._open_and_read())
        await asyncio.wait({self._reading}, timeout=_PATIENCE)
        # While the database answers, wait for it, however many keys it sends.
        while not self._reading.done() and (silence := self._keys.silence()) < _PATIENCE:
            await asyncio.wait({self._reading}, timeout=_PATIENCE - silence)
        self._problem = f"it has not answered for {_PATIENCE:.0f} s"
        if self._reading.done():
            try:
                self._reading.result()
                return
            except (StoreUnusable, SettingsError) as error:
                if self._ends:
                    raise
                self._problem = str(error)
            except StoreUnavailable as error:
                self._problem = str(error)
        await self._begin_by_snapshot()

    def work(self) -> list[Coroutine[Any, Any, None]]:
        """What has to run after begin(), until cancelled."""
        work = [self._follow(), self._remind()]
        if self._settings.snapshot_max_age:
            keeper = SnapshotKeeper(
                self._file, self._keys, lambda: self._store.identity, self._place
            )
            work.append(keeper.keep())
        return work

    async def _begin_by_snapshot(self) -> None:
        path, hours = self._settings.snapshot_file, self._settings.snapshot_max_age
        try:
            if not hours:
                raise SnapshotUnusable("--snapshot-max-age 0 forbids it")
            identity = spool.known_database(self._settings.spool)
            head, found, defaults = await StoreThreads("the snapshot", None).run(
                self._file.read, identity, self._place, hours * 3600
            )
        except SnapshotUnusable as why:
            _log.error(
                "no decision can be made until the database answers: %s. There is no snapshot to "
                "decide by, in %s: %s",
                *(self._problem, path, why),
            )
            return
        if self._keys.is_known:
            return  # The database has answered in the meantime.
        age = max(time.time() - head.followed_at, 0.0)
        self._keys.restore(found, head.revision, age, defaults, head.epoch)
        _log.warning(
            "the database is away: %s. Decisions are made by the snapshot in %s: revision %d, of "
            "%d keys, as they were %.0f s ago",
            *(self._problem, path, head.revision, head.keys, age),
        )

    async def _open_and_read(self) -> None:
        await self._opening.run(self._store.open)
        await self._keys.refresh()

    async def _follow(self) -> None:
        assert self._reading is not None
        was_away = not self._keys.is_followed
        await asyncio.wait({self._reading})
        if not self._reading.cancelled() and (error := self._reading.exception()):
            _log.debug("the database could not be read at the start: %r", error)
        await self._open_at_last()
        if was_away and self._keys.is_followed:
            _log.info("the database answers; settings are at revision %d", self._keys.revision)
        interval = _POLL_EMBEDDED if self._is_embedded else _POLL
        await self._keys.follow(self._settings.poll_interval or interval)

    async def _open_at_last(self) -> None:
        """Open the database, however long that takes."""
        told = self._problem
        while not self._store.identity:
            await asyncio.sleep(_POLL)
            try:
                await self._opening.run(self._store.open)
            except Exception as error:  # noqa: BLE001  # Whatever the error, a later try may work.
                if str(error) != told:
                    told = str(error)
                    _log.error("settings stay at revision %d: %s", self._keys.revision, error)

    async def _remind(self) -> None:
        while not self._keys.is_known:
            with suppress(TimeoutError):
                async with asyncio.timeout(_REMIND):
                    await self._keys.until_known()
                    return
            _log.error("no decision can be made yet: the database does not answer")
