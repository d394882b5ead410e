"""The metrics of one process, kept where the supervisor finds them: see folder.py.

Counters outlive the process; gauges end with it.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.multiprocess import mark_process_dead

from policyd.telemetry.bounds import CHILDREN
from policyd.telemetry.catalogue import LONG_SECONDS, SECONDS, Metric
from policyd.telemetry.tally import Count, Counts, Timing, Value

_log = logging.getLogger(__name__)

_FLUSH = 0.5
"""Seconds between two flushes."""


class Settable(Protocol):
    """A gauge."""

    def set(self, value: float) -> None:
        """Set its value."""


class Metrics:
    """Counts, times and gauges by the catalogue's metrics. One for a process: this_process()."""

    def __init__(self) -> None:
        self._counts: dict[str, Counts] = {}
        self._timings: dict[str, dict[tuple[str, ...], Timing]] = {}
        self._histograms: dict[str, Histogram] = {}
        self._gauges: dict[str, Gauge] = {}
        self._has_failed = False

    def counts(self, metric: Metric) -> Counts:
        """All children of a counter."""
        found = self._counts.get(metric.name)
        if found is None:
            counter = Counter(metric.name, metric.meaning, metric.labels, registry=None)
            child = counter.labels if metric.labels else lambda: counter
            found = self._counts[metric.name] = Counts(child, CHILDREN)
        return found

    def count(self, metric: Metric, *labels: str) -> Count:
        """One child of a counter, which shows from now on, even as 0."""
        return self.counts(metric).of(*labels)

    def timing(self, metric: Metric, *labels: str) -> Timing:
        """One child of a histogram."""
        children = self._timings.setdefault(metric.name, {})
        if labels not in children:
            children[labels] = self._timing(metric, labels)
        return children[labels]

    def _timing(self, metric: Metric, labels: tuple[str, ...]) -> Timing:
        histogram = self._histograms.get(metric.name)
        if histogram is None:
            bounds = LONG_SECONDS if metric.name.startswith("policyd_gateway_") else SECONDS
            histogram = self._histograms[metric.name] = Histogram(
                metric.name, metric.meaning, metric.labels, buckets=bounds, registry=None
            )
        child = histogram.labels(*labels) if labels else histogram
        # Histogram has no public way to count many at once. Tests compare this with observe().
        buckets: list[Value] = child._buckets
        return Timing(child._upper_bounds[:-1], buckets, child._sum)

    def gauge(self, metric: Metric, *labels: str) -> Settable:
        """A gauge, which shows from now on."""
        found = self._gauges.get(metric.name)
        if found is None:
            assert metric.mode
            assert metric.mode != "read"
            found = self._gauges[metric.name] = Gauge(
                metric.name,
                metric.meaning,
                metric.labels,
                registry=None,
                multiprocess_mode=metric.mode,
            )
        return found.labels(*labels) if labels else found

    def flush(self) -> None:
        """Hand over what was counted and timed."""
        for counts in self._counts.values():
            counts.flush()
        for children in self._timings.values():
            for one in children.values():
                one.flush()

    async def keep(self, look: Callable[[], None]) -> None:
        """Set the gauges by `look`, and flush, every half second, until cancelled."""
        while True:
            try:
                look()
                self.flush()
            except Exception as error:  # noqa: BLE001  # No request may fail for it.
                if not self._has_failed:
                    _log.error("metrics cannot be counted: %r", error)
                self._has_failed = True
            await asyncio.sleep(_FLUSH)

    def end(self) -> None:
        """Flush a last time, and drop this process's gauges, as what they measured has ended."""
        self.flush()
        mark_process_dead(os.getpid())


class Watch:
    """Metrics of this process that set their gauges each time they are handed over, in _look()."""

    def __init__(self) -> None:
        self._metrics = this_process()

    async def keep(self) -> None:
        """Hand over counts and gauges, until cancelled."""
        await self._metrics.keep(self._look)

    def end(self) -> None:
        """Hand over the last counts, and end the gauges."""
        self._look()
        self._metrics.end()

    def _look(self) -> None:
        raise NotImplementedError


@lru_cache(maxsize=1)
def this_process() -> Metrics:
    """The metrics of this process. There is one, as prometheus-client keeps one value for each."""
    return Metrics()
