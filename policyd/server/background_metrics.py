"""The metrics of the background worker: what it ships, and what waits to be shipped.

Only a policyd with --metrics loads it, and prometheus-client.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

from policyd.command.threads import StoreThreads
from policyd.decision_log.record import Record, moment
from policyd.decision_log.spool import SpoolReader
from policyd.errors import StoreBusy, StoreUnavailable
from policyd.server.shipped_metrics import ShippedMetrics
from policyd.telemetry import catalogue
from policyd.telemetry.metrics import this_process

_LOOK = 1.0
"""Seconds between two looks at the spool."""
_TIME = 10.0
"""Seconds that a look may take."""


class BackgroundMetrics:
    """Counts what the shipper ships, and looks at its `spool`."""

    def __init__(self, spool: SpoolReader) -> None:
        self._spool = spool
        self._metrics = metrics = this_process()
        self._shipped = ShippedMetrics(metrics)
        self._lag = metrics.gauge(catalogue.SHIPPING_LAG)
        self._bytes = metrics.gauge(catalogue.SPOOL_BYTES)
        self._age = metrics.gauge(catalogue.SPOOL_AGE)
        self._threads = StoreThreads("metrics", _TIME)

    def shipped(self, entries: Sequence[object]) -> None:
        """Count entries that were shipped to the database."""
        self._shipped.shipped(entries)
        times = [moment(one.id).timestamp() for one in entries if isinstance(one, Record)]
        if times:
            self._lag.set(max(time.time() - min(times), 0))

    async def keep(self) -> None:
        """Hand over counts, and look at the spool every second, until cancelled."""
        await asyncio.gather(self._metrics.keep(lambda: None), self._keep_looking())

    def end(self) -> None:
        """Hand over the last counts, and end the gauges."""
        self._metrics.end()

    async def _keep_looking(self) -> None:
        while True:
            with suppress(StoreBusy, StoreUnavailable, OSError):
                size, oldest = await self._threads.run(self._spool.waiting)
                self._bytes.set(size)
                self._age.set(max(time.time() - oldest, 0) if size else 0)
                if not size:
                    self._lag.set(0)
            await asyncio.sleep(_LOOK)
