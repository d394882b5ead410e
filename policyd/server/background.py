"""The background worker: what policyd does beside deciding, in a process of its own.

It ships the decision log to the store, retires old decisions, and serves the console. It ends when
its standard input closes, after it has shipped what is left. A supervisor or a server runs it as
`python -m policyd.server.background`.
"""

import asyncio
import gc
import logging
import os
import sys
from contextlib import AsyncExitStack
from datetime import timedelta

from policyd.command.open_files import raise_limit
from policyd.command.parent import Parent
from policyd.command.process import run
from policyd.command.threads import StoreThreads
from policyd.decision_log.shipper import PAUSE, Shipper, pause_after
from policyd.decision_log.spool import SpoolReader, known_database
from policyd.errors import StoreUnavailable
from policyd.server.retirement import Retirement
from policyd.settings import ServerSettings, load_settings
from policyd.store import Store
from policyd.store.destination import StoreDestination
from policyd.telemetry.log import start_logging

_log = logging.getLogger(__name__)

_RETIRE_PAUSE = 0.2
"""Seconds between two steps of retirement, while there is more to do."""
_LONGEST_PAUSE = 5.0
"""Seconds between two tries while the store is away."""
_RETIRE = 60.0
"""Seconds between two looks for decisions that are old enough to delete."""
_FINISH = 0.4
"""The share of the grace period that shipping the last entries may take, and ..."""
_LEAST_FINISH = 2.0
"""... the seconds that it may take at least."""
_COLLECT = 50_000
"""Objects after which the garbage collector looks for reference cycles: a chunk of the log makes
thousands of objects that are in none."""
_NICE = 5
"""How far its priority is lowered: deciding comes first."""


async def _work() -> None:
    async with (
        Parent(load_settings, ends_by_itself=False) as parent,
        AsyncExitStack() as running,
    ):
        settings = parent.settings
        store = Store(settings.database_url, settings.database_timeout)
        running.callback(store.close)
        # The reader is never closed: a thread that hangs in the database may come back to it, and
        # would find other files under its descriptors.
        spool = SpoolReader(settings.spool)
        also = []
        if settings.metrics is not None:
            # Imported late, so that a policyd without --metrics starts sooner.
            from policyd.server.background_metrics import BackgroundMetrics

            metrics = BackgroundMetrics(spool)
            running.callback(metrics.end)
            also.append(metrics.keep())
            destination = StoreDestination(store, metrics.shipped)
        else:
            destination = StoreDestination(store)
        work = _BackgroundWorker(store, destination, spool, settings)
        if settings.console is not None:
            # Imported late, so that a policyd without a console starts sooner.
            from policyd.console import ConsoleServer

            await running.enter_async_context(ConsoleServer(settings, store))
        parent.ready()
        await parent.work_until_ended(work.ship(), work.retire(), *also)
        await work.finish()


class _BackgroundWorker:
    """Ships and retires the log, each in a thread. Belongs to one event loop."""

    def __init__(
        self,
        store: Store,
        destination: StoreDestination,
        spool: SpoolReader,
        settings: ServerSettings,
    ) -> None:
        self._store = store
        self._is_found = False
        """Whether the database was found, and is the one that the spool is for."""
        self._shipper = Shipper(destination, spool)
        self._retirement = Retirement(store, spool)
        self._settings = settings
        self._away = False
        # Without a time limit: each call that they make to the store has a deadline of its own.
        self._shipping = StoreThreads("shipping the log", None)
        self._retiring = StoreThreads("retiring the log", None)

    async def ship(self) -> None:
        """Ship what the workers write, until cancelled."""
        pause = PAUSE
        while True:
            shipped = await self._try()
            pause = min(pause * 2, _LONGEST_PAUSE) if shipped is None else pause_after(shipped)
            await asyncio.sleep(pause)

    async def retire(self) -> None:
        """Retire old decisions, and give back the space, until cancelled."""
        keep = timedelta(days=self._settings.log_retention)
        retired, told = 0, ""
        while True:
            some = pages = 0
            pause = _RETIRE
            try:
                await self._expect(self._retiring)
                some = await self._retiring.run(
                    self._retirement.retire, keep, self._settings.log_max_rows
                )
                reason = await self._retiring.run(self._retirement.standstill)
                if reason and not told:
                    _log.error("retention of the log stands still: %s", reason)
                elif told and not reason:
                    _log.info("retention of the log goes on")
                told = reason
                if not some:
                    pages = await self._retiring.run(self._retirement.give_back)
            except StoreUnavailable as error:
                _log.debug("old decisions stay for now: %s", error)
                pause = _LONGEST_PAUSE
            retired += some
            if retired and not some:
                _log.info("%d old decisions were deleted from the log", retired)
                retired = 0
            await asyncio.sleep(_RETIRE_PAUSE if some or pages else pause)

    async def _expect(self, threads: StoreThreads) -> None:
        """Make sure that nothing is shipped to, or retired in, another database than the spool's.

        Raises StoreUnavailable while that database has not been found.
        """
        if not self._is_found:
            await threads.run(self._find)
            self._is_found = True

    def _find(self) -> None:
        # Read each time: a worker marks a spool without entries as that of the database it finds,
        # and can do so only while no process ships from it.
        identity = known_database(self._settings.spool)
        if identity is None:
            raise StoreUnavailable("the database has not answered since policyd was started")
        self._store.expect(identity)
        self._store.identity()

    async def finish(self) -> None:
        """Ship what is left, if the store takes it in time. Otherwise the next start ships it.

        A call to the store that is under way finishes first.
        """
        try:
            async with asyncio.timeout(max(self._settings.grace * _FINISH, _LEAST_FINISH)):
                shipped = await self._try()
        except TimeoutError:
            shipped = None
        if shipped is None:
            _log.warning(
                "entries that the database does not have yet stay in %s", self._settings.spool
            )

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
    start_logging(*sys.argv[1:])
    os.nice(_NICE)
    gc.set_threshold(_COLLECT)
    raise_limit()
    run(_work())
