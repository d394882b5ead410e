"""Counts and timings that are kept in memory give what prometheus-client itself would have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from policyd.telemetry.bounds import OTHER
from policyd.telemetry.catalogue import SECONDS
from policyd.telemetry.tally import Counts, Timing


def histogram(registry: CollectorRegistry) -> Histogram:
    return Histogram("time_seconds", "A time.", buckets=SECONDS, registry=registry)


@given(st.lists(st.lists(st.sampled_from([0.0, *SECONDS, 1e-6, 0.003, 7.0, 100.0]))))
def test_timings(flushes: list[list[float]]) -> None:
    """However often it is flushed, a Timing counts as observe() does, bounds included."""
    expected, found = CollectorRegistry(), CollectorRegistry()
    observed, child = histogram(expected), histogram(found)
    timing = Timing(child._upper_bounds[:-1], child._buckets, child._sum)
    for seconds in flushes:
        for one in seconds:
            observed.observe(one)
            timing.add(one)
        timing.flush()
    assert samples(found) == samples(expected)


def samples(registry: CollectorRegistry) -> list[tuple[str, str, float]]:
    [metric] = registry.collect()
    # _created is when it was made.
    return [
        (one.name, one.labels.get("le", ""), round(one.value, 9))
        for one in metric.samples
        if not one.name.endswith("_created")
    ]


def test_counts() -> None:
    """Nothing counts before a flush, and each amount once."""
    registry = CollectorRegistry()
    counts = Counts(Counter("seen_total", "Seen.", ("name",), registry=registry).labels, 10)
    counts.of("a").pending += 2
    counts.of("a").pending += 1
    assert registry.get_sample_value("seen_total", {"name": "a"}) == 0
    counts.flush()
    counts.flush()
    assert registry.get_sample_value("seen_total", {"name": "a"}) == 3


def test_counts_are_bounded() -> None:
    """A bounded number of 10,000 combinations of labels have series of their own, and the rest
    share one."""
    registry = CollectorRegistry()
    counts = Counts(Counter("seen_total", "Seen.", ("x", "y"), registry=registry).labels, 20)
    for number in range(10_000):
        counts.of(str(number), "y").pending += 1
    counts.flush()
    page = generate_latest(registry).decode()
    assert page.count("seen_total{") == 21
    rest = registry.get_sample_value("seen_total", {"x": OTHER, "y": OTHER})
    assert rest == 10_000 - 20


def test_a_call_is_timed_that_fails() -> None:
    """A timed function gives its result or its error, and either way its time counts."""
    registry = CollectorRegistry()
    child = histogram(registry)
    timing = Timing(child._upper_bounds[:-1], child._buckets, child._sum)
    read = timing.timed(int)
    assert read("3") == 3
    with pytest.raises(ValueError, match="three"):
        read("three")
    timing.flush()
    assert registry.get_sample_value("time_seconds_count") == 2
