"""What policyd does beside deciding, in a process of its own: `python -m policyd.back_office`.

It ships the decision log to the store, retires what is old, and serves the console. It ends when
its standard input closes, after it has shipped what is left.
"""

import asyncio
import logging
import os
import sys
from contextlib import AsyncExitStack
from datetime import timedelta

from policyd import child
from policyd.configuration import run, start_logging
from policyd.errors import StoreUnavailable
from policyd.files import raise_limit
from policyd.settings import ServerSettings, load_settings
from policyd.shipper import Shipper
from policyd.spool import SpoolReader
from policyd.store import Store

_log = logging.getLogger(__name__)

_PAUSE = 0.2
"""Seconds between two looks at the spool."""
_LONGEST_PAUSE = 5.0
"""Seconds between two tries while the store is away."""
_RETIRE = 60.0
"""Seconds between two looks at what is old."""
_NICE = 5
"""Deciding comes first."""


async def _work() -> None:
    async with (
        child.Parent(load_settings, ends_by_itself=False) as parent,
        AsyncExitStack() as running,
    ):
        settings = parent.settings
        store = Store(settings.database_url)
        running.callback(store.close)
        spool = SpoolReader(settings.spool)
        running.callback(spool.close)
        office = _Office(Shipper(store, spool), settings)
        if settings.console is not None:
            # Only who has a console waits for all that it is made of.
            from policyd.console import ConsoleServer

            await running.enter_async_context(ConsoleServer(settings, store))
        parent.ready()
        await parent.gone_during(office.ship(), office.retire())
        await office.finish()


class _Office:
    def __init__(self, shipper: Shipper, settings: ServerSettings) -> None:
        self._shipper = shipper
        self._settings = settings
        self._away = False

    async def ship(self) -> None:
        pause = _PAUSE
        while True:
            shipped = await self._try()
            pause = _PAUSE if shipped is not None else min(pause * 2, _LONGEST_PAUSE)
            await asyncio.sleep(pause)

    async def retire(self) -> None:
        keep = timedelta(days=self._settings.log_retention)
        retired = 0
        while True:
            some = 0
            try:
                some = await asyncio.to_thread(
                    self._shipper.retire, keep, self._settings.log_max_rows
                )
            except StoreUnavailable as error:
                _log.debug("old decisions stay for now: %s", error)
            retired += some
            if retired and not some:
                _log.info("%d decisions of the log were old enough to go", retired)
                retired = 0
            await asyncio.sleep(_PAUSE if some else _RETIRE)

    async def finish(self) -> None:
        """Ship what is left, if the store is there; else the next start does."""
        if await self._try() is None:
            _log.warning("what the database has not got yet stays in %s", self._settings.spool)

    async def _try(self) -> int | None:
        """Ship. Returns how many entries, None while the store is away."""
        try:
            shipped = await asyncio.to_thread(self._shipper.ship)
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
