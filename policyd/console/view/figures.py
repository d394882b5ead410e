"""The dashboard's figures: each with its trend against the period before, a sparkline, and a link
to exactly the rows that it counts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlencode

from policyd.console.view import charts, labels
from policyd.console.view.periods import Period
from policyd.store import Counts, Latencies

_MOST = 9.99
"""The largest growth that is shown as a number."""


@dataclass(frozen=True, slots=True)
class Trend:
    """How a figure has changed since the period before."""

    text: str
    direction: str
    """up, down or same."""
    mood: str = ""
    """good or bad, where the direction means either."""
    before: str = ""
    """The value before."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure."""

    name: str
    label: str
    value: str
    url: str
    """Lists what the figure counts; "" where there is nothing to list."""
    trend: Trend | None
    spark: charts.Spark
    note: str = ""
    note_url: str = ""


@dataclass(frozen=True, slots=True)
class Links:
    """Links to the log's rows of one period, and of one key where one is chosen."""

    since: datetime
    until: datetime
    key_id: str = ""

    def logs(self, **more: str) -> str:
        """The log with these filters, in this period."""
        key = {"key": self.key_id} if self.key_id else {}
        times = {"since": _minute(self.since), "until": _minute(self.until)}
        return "/logs?" + urlencode(key | more | times, errors="replace")


def _minute(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M")


@dataclass(frozen=True, slots=True)
class Measured:
    """What was counted in a period and in the one before."""

    period: Period
    total: Counts
    full: Counts
    """The counts of the period's full hours, and ..."""
    before: Counts | None
    """... of as many hours of the period before; None where those were not all counted."""
    buckets: Sequence[tuple[datetime, Counts]]
    latencies: Latencies
    latencies_before: Latencies
    latencies_by_step: Mapping[datetime, Latencies]


def figures(found: Measured, links: Links) -> Iterator[Figure]:
    """All figures of the log, in the order in which they are shown."""
    total = found.total
    yield _count(found, "requests", "Requests", lambda one: one.requests, links.logs())
    yield _count(found, "denied", "Blocked", lambda one: one.denied, links.logs(decision="denied"))
    yield _count(
        found,
        "would-deny",
        "Would be blocked",
        lambda one: one.would_deny,
        links.logs(decision="would_deny"),
    )
    yield _share(
        found,
        "attributed",
        "Attributed",
        lambda one: (one.attributed, one.unattributed),
        links.logs(attributed="yes"),
        note=f"{labels.number(total.unattributed)} without a user",
        note_url=links.logs(attributed="no"),
    )
    yield _share(
        found,
        "success",
        "Success rate",
        _success,
        links.logs(answer="success"),
        note="of the requests let through",
    )
    yield _count(
        found, "errors", "Errors", lambda one: one.errors, links.logs(answer="error"), up="bad"
    )
    yield _count(
        found, "cost", "Cost", lambda one: one.cost_nano, links.logs(), written=labels.money
    )
    yield _count(
        found,
        "tokens",
        "Tokens",
        lambda one: one.input_tokens + one.output_tokens,
        links.logs(),
        written=labels.short,
        note=f"{labels.short(total.input_tokens)} in, {labels.short(total.output_tokens)} out",
    )
    for share in (0.5, 0.95, 0.99):
        yield _percentile(found, share, links)


def _success(counts: Counts) -> tuple[int, int]:
    """How many of the requests that were let through ended well, and how many did not. Both are 0
    where no outcome was reported."""
    if not (counts.timed or counts.errors):
        return 0, 0
    return max(counts.requests - counts.denied - counts.errors, 0), counts.errors


def _count(
    found: Measured,
    name: str,
    label: str,
    read: Callable[[Counts], int],
    url: str,
    *,
    up: str = "",
    written: Callable[[int], str] = labels.number,
    note: str = "",
) -> Figure:
    value = read(found.total)
    trend = None
    if found.before is not None:
        trend = change(read(found.full), read(found.before), up=up, written=written)
    spark = charts.spark([read(counts) for _, counts in found.buckets])
    return Figure(name, label, written(value), url if value else "", trend, spark, note)


def _share(
    found: Measured,
    name: str,
    label: str,
    read: Callable[[Counts], tuple[int, int]],
    url: str,
    *,
    note: str,
    note_url: str = "",
) -> Figure:
    part, rest = read(found.total)
    spark = charts.spark([_part(*read(counts)) for _, counts in found.buckets], top=1)
    trend = _points(read(found.full), read(found.before)) if found.before is not None else None
    shown = labels.share(part, rest)
    return Figure(
        name, label, shown, url if part else "", trend, spark, note, note_url if rest else ""
    )


def _part(part: int, rest: int) -> float | None:
    return part / (part + rest) if part + rest else None


def _percentile(found: Measured, share: float, links: Links) -> Figure:
    percent = round(100 * share)
    value = found.latencies.percentile(share)
    before = found.latencies_before.percentile(share)
    trend = None
    if value is not None and before is not None:
        trend = change(value, before, up="bad", written=labels.duration)
    steps = (found.latencies_by_step.get(at, Latencies()) for at, _ in found.buckets)
    spark = charts.spark([one.percentile(share) for one in steps])
    url = note = ""
    if value is not None:
        longer = found.latencies.longer(value)
        note = f"{labels.number(longer)} took longer"
        url = links.logs(slower=str(value)) if longer else ""
    label, shown = f"Latency p{percent}", labels.duration(value)
    return Figure(f"p{percent}", label, shown, url, trend, spark, note)


def change(
    now: int, before: int, *, up: str = "", written: Callable[[int], str] = labels.number
) -> Trend | None:
    """The growth of a count in per cent. `up` says whether growth is good or bad, "" if neither."""
    if not before:
        return Trend("new", "up", up, written(0)) if now else None
    growth = (now - before) / before
    text = f"over {_MOST:.0%}" if growth > _MOST else f"{abs(growth):.0%}"
    if text == "0%":
        return Trend("0%", "same", "", written(before))
    down = {"good": "bad", "bad": "good"}.get(up, "")
    direction, mood = ("up", up) if growth > 0 else ("down", down)
    return Trend(text, direction, mood, written(before))


def _points(now: tuple[int, int], before: tuple[int, int]) -> Trend | None:
    """The change of a share, of which more is better, in percentage points."""
    share, earlier = _part(*now), _part(*before)
    if share is None or earlier is None:
        return None
    points = 100 * (share - earlier)
    text, was = f"{abs(points):.1f} points", labels.share(*before)
    if abs(points) < 0.05:
        return Trend("0 points", "same", "", was)
    return Trend(text, "up", "good", was) if points > 0 else Trend(text, "down", "bad", was)
