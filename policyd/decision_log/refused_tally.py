"""Counts requests with a refused key, in memory that does not grow with their number.

In each stretch of about a minute, MAX_SOURCES sources are counted one by one and all others
together. Some requests are kept as samples: SAMPLES of each source, MAX_SAMPLES in all.
"""

import time
from collections.abc import Callable

from policyd.decision_log.refused_key import (
    OTHERS,
    RefusedKey,
    RefusedKeyCount,
    RefusedKeyReason,
    source_of,
)

MAX_SOURCES = 64
"""Sources of a stretch that are counted one by one."""
SAMPLES = 3
"""Samples of each source in a stretch."""
MAX_SAMPLES = 20
"""Samples of all sources in a stretch."""


class _Source:
    """The counts of one source."""

    __slots__ = ("counts", "samples", "written")

    def __init__(self) -> None:
        self.counts = dict.fromkeys(RefusedKeyReason, 0)
        self.written = dict(self.counts)
        self.samples = 0


class RefusedKeyTally:
    """The counts of one process. Belongs to one thread."""

    def __init__(self, process: str, clock: Callable[[], float] = time.time) -> None:
        self._process = process
        self._clock = clock
        self._stretch = 0
        self._minute = self._now()
        self._sources: dict[str, _Source] = {}
        self._samples: list[RefusedKey] = []
        self._sampled = 0

    def add(self, request: RefusedKey) -> None:
        """Count one request."""
        source = self._source(source_of(request.source_ip))
        source.counts[request.reason] += 1
        if source.samples < SAMPLES and self._sampled < MAX_SAMPLES:
            source.samples += 1
            self._sampled += 1
            self._samples.append(request)

    def flush(self, write: Callable[[list[RefusedKey | RefusedKeyCount]], bool]) -> None:
        """Hand what is new to `write`, which returns whether it was written: call it every few
        seconds. Counts that were not written are tried again at the next call, samples are not.
        """
        changed = {name: one for name, one in self._sources.items() if one.counts != one.written}
        entries: list[RefusedKey | RefusedKeyCount] = [
            self._entry(name, source) for name, source in changed.items()
        ]
        entries += self._samples
        self._samples = []
        if entries and write(entries):
            for source in changed.values():
                source.written = dict(source.counts)
        if self._now() != self._minute:
            self._begin()

    def _source(self, name: str) -> _Source:
        source = self._sources.get(name)
        if source is None:
            if len(self._sources) >= MAX_SOURCES:
                name = OTHERS
            source = self._sources.setdefault(name, _Source())
        return source

    def _entry(self, name: str, source: _Source) -> RefusedKeyCount:
        counts = source.counts
        return RefusedKeyCount(
            self._process,
            self._stretch,
            self._minute,
            name,
            counts[RefusedKeyReason.MISSING],
            counts[RefusedKeyReason.UNKNOWN],
            counts[RefusedKeyReason.CONFLICTING],
        )

    def _begin(self) -> None:
        """Begin a new stretch. Counts of the last one that were not written are added to it."""
        before = self._sources.values()
        left = {
            reason: sum(one.counts[reason] - one.written[reason] for one in before)
            for reason in RefusedKeyReason
        }
        self._sources = {}
        if any(left.values()):
            self._source(OTHERS).counts = left
        self._stretch += 1
        self._minute = self._now()
        self._sampled = 0

    def _now(self) -> int:
        return int(self._clock() // 60)
