"""The metrics of the background worker: what it ships, and what waits to be shipped.

Only a policyd with --metrics loads it, and prometheus-client.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

from policyd.command.threads import StoreThreads
from policyd.decision_log.pricing import priced_as
from policyd.decision_log.record import Outcome, Record, moment
from policyd.decision_log.spool import SpoolReader
from policyd.errors import StoreBusy, StoreUnavailable
from policyd.telemetry import bounds, catalogue
from policyd.telemetry.bounds import Names
from policyd.telemetry.metrics import this_process

_NANO = 1e-9
_LOOK = 1.0
"""Seconds between two looks at the spool."""
_TIME = 10.0
"""Seconds that the disk has for one."""


class BackgroundMetrics:
    """Counts what the shipper ships, and looks at its `spool`."""

    def __init__(self, spool: SpoolReader) -> None:
        self._spool = spool
        self._metrics = metrics = this_process()
        self._models = Names(bounds.MODELS)
        self._tokens = metrics.counts(catalogue.TOKENS)
        self._cost = metrics.counts(catalogue.COST)
        self._shipped = metrics.count(catalogue.SHIPPED)
        self._lag = metrics.gauge(catalogue.SHIPPING_LAG)
        self._bytes = metrics.gauge(catalogue.SPOOL_BYTES)
        self._age = metrics.gauge(catalogue.SPOOL_AGE)
        self._threads = StoreThreads("metrics", _TIME)

    def shipped(self, entries: Sequence[object]) -> None:
        """Count entries that the database has been given."""
        self._shipped.pending += len(entries)
        times = [moment(one.id).timestamp() for one in entries if isinstance(one, Record)]
        if times:
            self._lag.set(max(time.time() - min(times), 0))
        for one in entries:
            if isinstance(one, Outcome) and one.input_tokens is not None:
                self._count(one)

    def _count(self, outcome: Outcome) -> None:
        model = self._models.bounded(priced_as(outcome.model))
        for kind in catalogue.TOKEN_KINDS:
            if amount := getattr(outcome, f"{kind}_tokens"):
                self._tokens.of(model, kind).pending += amount
        if outcome.cost_nano:
            self._cost.of(model).pending += outcome.cost_nano * _NANO

    async def keep(self) -> None:
        """Hand over counts, and look at the spool every second, until cancelled."""
        await asyncio.gather(self._metrics.keep(lambda: None), self._keep_looking())

    def end(self) -> None:
        """Hand over the last counts; the gauges end."""
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
