"""Figures in words and in charts."""

from datetime import UTC, datetime, timedelta

import pytest

from policyd.console.view import charts, labels, periods
from policyd.store import Counts


def test_buckets() -> None:
    """Hours fall into buckets that begin with the period, and empty buckets are there too."""
    since = datetime(2026, 11, 1, tzinfo=UTC)
    period = periods.Period("days", since, since + timedelta(days=7))
    assert period.step == timedelta(hours=3)
    counted = [(since + timedelta(hours=hour), Counts(requests=1)) for hour in (0, 1, 2, 3, 167)]
    buckets = period.buckets([*counted, (since + timedelta(days=9), Counts(requests=1))])
    assert len(buckets) == 56
    assert [counts.requests for _, counts in buckets[:3]] == [3, 1, 0]
    assert periods.total(buckets).requests == 5


def test_bars() -> None:
    """The bars stand on each other and reach as high as their share of the scale."""
    at = datetime(2026, 11, 1, tzinfo=UTC)
    series = (
        charts.Series("a", "A", lambda counts: counts.attributed),
        charts.Series("b", "B", lambda counts: counts.unattributed),
    )
    buckets = [(at, Counts(attributed=5, unattributed=3)), (at + timedelta(hours=1), Counts())]
    chart = charts.stacked("Requests", series, buckets, timedelta(hours=1))
    assert chart.top == "8"
    bottom, top = chart.columns[0].bars
    assert (bottom.y + bottom.height, top.y + top.height) == (100, bottom.y)
    assert (bottom.height, top.height) == (62.5, 37.5)
    assert chart.columns[1].bars == ()
    assert charts.stacked("None", series, buckets[1:], timedelta(hours=1)).is_empty


@pytest.mark.parametrize(
    ("nano", "shown"),
    [
        (None, "\u2014"),
        (0, "$0.00"),
        (1, "<$0.0001"),
        (123_456, "$0.0001"),
        (2_500_000_000, "$2.50"),
    ],
)
def test_money(nano: int | None, shown: str) -> None:
    """Small amounts are not rounded down to nothing."""
    assert labels.money(nano) == shown


def test_shares() -> None:
    """All but one of a million is not all of them."""
    assert labels.share(999_999, 1) == "99.9%"
    assert labels.share(1, 999_999) == "0.1%"
    assert labels.share(3, 0) == "100%"
    assert labels.share(0, 3) == "0%"
    assert labels.share(0, 0) == "\u2014"
