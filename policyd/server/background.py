"""What policyd does beside deciding, in a process of its own.

`python -m policyd.server.background` runs it.

It ships the decision log to the store, retires what is old, and serves the console. It ends when
its standard input closes, after it has shipped what is left.
"""

import asyncio
import logging
import os
import sys
from contextlib import AsyncExitStack
from datetime import timedelta

from policyd.command import child
from policyd.command.open_files import raise_limit
from policyd.command.process import run, start_logging
from policyd.command.threads import StoreThreads
from policyd.decision_log.spool import SpoolReader, known_database
from policyd.errors import StoreUnavailable
from policyd.server.shipper import Shipper
from policyd.settings import ServerSettings, load_settings
from policyd.store import Store

_log = logging.getLogger(__name__)

_PAUSE = 0.2
"""Seconds between two looks at the spool."""
_LONGEST_PAUSE = 5.0
"""Seconds between two tries while the store is away."""
_RETIRE = 60.0
"""Seconds between two looks at what is old."""
_FINISH = 0.4
"""Of the grace period: how long the last entries are shipped, and ..."""
_LEAST_FINISH = 2.0
"""... seconds that they have at least."""
_NICE = 5
"""Deciding comes first."""


async def _work() -> None:
    async with (
        child.Parent(load_settings, ends_by_itself=False) as parent,
        AsyncExitStack() as running,
    ):
        settings = parent.settings
        store = Store(settings.database_url, settings.database_timeout)
        running.callback(store.close)
        # Nothing closes it: a thread that hangs in the database may come back to it, and would
        # find another file under its numbers.
        spool = SpoolReader(settings.spool)
        work = _BackgroundWorker(store, Shipper(store, spool), settings)
        if settings.console is not None:
            # Only who has a console waits for all that it is made of.
            from policyd.console import ConsoleServer

            await running.enter_async_context(ConsoleServer(settings, store))
        parent.ready()
        await parent.gone_during(work.ship(), work.retire())
        await work.finish()


class _BackgroundWorker:
    def __init__(self, store: Store, shipper: Shipper, settings: ServerSettings) -> None:
        self._store = store
        self._is_found = False
        """Whether the database was seen to be the spool's."""
        self._shipper = shipper
        self._settings = settings
        self._away = False
        # Each call that they make to the store has a deadline of its own.
        self._shipping = StoreThreads("shipping the log", None)
        self._retiring = StoreThreads("retiring the log", None)

    async def ship(self) -> None:
        pause = _PAUSE
        while True:
            shipped = await self._try()
            pause = _PAUSE if shipped is not None else min(pause * 2, _LONGEST_PAUSE)
            await asyncio.sleep(pause)

    async def retire(self) -> None:
        keep = timedelta(days=self._settings.log_retention)
        retired, told = 0, ""
        while True:
            some = pages = 0
            pause = _RETIRE
            try:
                await self._expect(self._retiring)
                some = await self._retiring.run(
                    self._shipper.retire, keep, self._settings.log_max_rows
                )
                reason = await self._retiring.run(self._shipper.standstill)
                if reason and not told:
                    _log.error("retention of the log stands still: %s", reason)
                elif told and not reason:
                    _log.info("retention of the log goes on")
                told = reason
                if not some:
                    pages = await self._retiring.run(self._shipper.give_back)
            except StoreUnavailable as error:
                _log.debug("old decisions stay for now: %s", error)
                pause = _LONGEST_PAUSE
            retired += some
            if retired and not some:
                _log.info("%d decisions of the log were old enough to go", retired)
                retired = 0
            await asyncio.sleep(_PAUSE if some or pages else pause)

    async def _expect(self, threads: StoreThreads) -> None:
        """Let nothing be shipped to another database than the spool's, and nothing retired there.

        Raises StoreUnavailable while that one has not been found.
        """
        if not self._is_found:
            await threads.run(self._find)
            self._is_found = True

    def _find(self) -> None:
        # Each time anew: a worker marks a spool without entries for the database that it finds, and
        # must not meet this process as the one that ships from it.
        identity = known_database(self._settings.spool)
        if identity is None:
            raise StoreUnavailable("the database has not answered since policyd was started")
        self._store.expect(identity)
        self._store.identity()

    async def finish(self) -> None:
        """Ship what is left, if the store is there and takes it in time; else the next start does.

        What was begun is finished first.
        """
        try:
            async with asyncio.timeout(max(self._settings.grace * _FINISH, _LEAST_FINISH)):
                shipped = await self._try()
        except TimeoutError:
            shipped = None
        if shipped is None:
            _log.warning("what the database has not got yet stays in %s", self._settings.spool)

    async def _try(self) -> int | None:
        """Ship. Returns how many entries, None while the store is away."""
        try:
            await self._expect(self._shipping)
            shipped = await self._shipping.run(self._shipper.ship)
        except StoreUnavailable as error:
            if not self._away:
                _log.error("decisions stay in the spool: %s", error)
            self._away = True
            return None
        except OSError as error:
            _log.error("the spool cannot be read: %s", error)
            return None
        if self._away:
            _log.info("the database takes the log's decisions again")
        self._away = False
        return shipped


if __name__ == "__main__":
    start_logging(sys.argv[1])
    os.nice(_NICE)
    raise_limit()
    run(_work())
