"""Counts and timings that are kept in memory, and handed to prometheus-client now and then.

Counting in prometheus-client's files, which survive a process, takes microseconds each time, as
long as a decision does; counting here takes a tenth of that. A process that is killed loses what it
has counted since the last flush, a second or less.

Several threads may add: `+=` of numbers calls nothing, and CPython switches threads only at calls.
"""

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Sequence
from time import perf_counter
from typing import ParamSpec, Protocol, TypeVar

from policyd.telemetry.bounds import OTHER

_Result = TypeVar("_Result")
_Parameters = ParamSpec("_Parameters")


class Value(Protocol):
    """A number that is kept for Prometheus."""

    def inc(self, amount: float = 1) -> None:
        """Add `amount`."""


class Count:
    """One child of a counter. What is added to `pending` counts at the next flush."""

    __slots__ = ("_value", "pending")

    def __init__(self, value: Value) -> None:
        self._value = value
        self.pending: float = 0

    def flush(self) -> None:
        """Hand over what was added."""
        amount, self.pending = self.pending, 0
        if amount:
            self._value.inc(amount)


class Counts:
    """A counter's children, by the values of its labels. `child` makes one.

    There are at most `most`: all others count together, as OTHER in every label.
    """

    def __init__(self, child: Callable[..., Value], most: int) -> None:
        self._child = child
        self._most = most
        self._counts: dict[tuple[str, ...], Count] = {}

    def of(self, *labels: str) -> Count:
        """The child with these values."""
        found = self._counts.get(labels)
        if found is None:
            if len(self._counts) >= self._most:
                labels = (OTHER,) * len(labels)
            found = self._counts.get(labels) or Count(self._child(*labels))
            self._counts[labels] = found
        return found

    def flush(self) -> None:
        """Hand over what was added to all children."""
        for one in tuple(self._counts.values()):
            one.flush()


class Timing:
    """One child of a histogram: how many of the steps that were timed took how long."""

    __slots__ = ("_bounds", "_buckets", "_counts", "_sum", "_total")

    def __init__(self, bounds: Sequence[float], buckets: Iterable[Value], total: Value) -> None:
        """`bounds` in seconds, ascending; there is one bucket more, for what takes longer."""
        self._bounds = tuple(bounds)
        self._buckets = tuple(buckets)
        self._total = total
        self._counts = [0] * len(self._buckets)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Note that something took `seconds`."""
        bucket = bisect_left(self._bounds, seconds)
        self._counts[bucket] += 1
        self._sum += seconds

    def flush(self) -> None:
        """Hand over what was added."""
        seconds, self._sum = self._sum, 0.0
        for number, bucket in enumerate(self._buckets):
            count, self._counts[number] = self._counts[number], 0
            if count:
                bucket.inc(count)
        if seconds:
            self._total.inc(seconds)

    def timed(self, function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
        """`function`, each of whose calls is timed."""

        def timed(*arguments: _Parameters.args, **options: _Parameters.kwargs) -> _Result:
            began = perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.add(perf_counter() - began)

        return timed

    async def until(self, done: Awaitable[_Result], began: float) -> _Result:
        """Wait until `done`, and note the time since `began`, by perf_counter()."""
        try:
            return await done
        finally:
            self.add(perf_counter() - began)
