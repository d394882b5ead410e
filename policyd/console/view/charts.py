"""Charts of stacked bars, as numbers that the template draws as SVG."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from policyd.console.view import labels
from policyd.store import Counts

HEIGHT = 100
"""Units of a chart's height; each bucket is one unit wide."""
_LABELS = 6
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Series:
    """One kind of bar."""

    style: str
    """The CSS class that colours it."""
    label: str
    read: Callable[[Any], int]
    """Gives the series' value in Counts or RefusedKeyCounts."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle, in units of the chart."""

    style: str
    x: float
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Column:
    """A bucket: its bars and their values."""

    label: str
    values: tuple[str, ...]
    x: float
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """All that the template needs."""

    title: str
    series: Sequence[tuple[str, str]]
    """Style and label of each series."""
    columns: Sequence[Column]
    top: str
    """The label at the top of the scale."""
    labels: Sequence[tuple[float, str]]
    """The labels of the time axis, each with its place in per cent from the left."""
    is_empty: bool


@dataclass(frozen=True, slots=True)
class Spark:
    """A small line without axes, as the paths of a picture of _WIDTH by _SPARK_HEIGHT units."""

    line: str
    area: str

    @property
    def is_empty(self) -> bool:
        """Whether there is no value at all."""
        return not self.line


_WIDTH = 100
_SPARK_HEIGHT = 24
_Buckets = Sequence[tuple[datetime, Counts]]


def spark(values: Sequence[float | None], top: float = 0) -> Spark:
    """The line through these values, on a scale from 0 to `top`, by default the largest value. A
    value that is None is a gap."""
    known = [value for value in values if value is not None]
    if not any(known):
        return Spark("", "")
    top = top or max(known)
    step = _WIDTH / max(len(values) - 1, 1)
    lines, areas = [], []
    for points in _runs(values):
        places = [
            (round(number * step, 2), round(_SPARK_HEIGHT * (1 - value / top), 2))
            for number, value in points
        ]
        if len(places) == 1:  # A line of one point would not be seen.
            places = [(max(places[0][0] - 1, 0), places[0][1]), (places[0][0] + 1, places[0][1])]
        line = "L".join(f"{x:g} {y:g}" for x, y in places)
        lines.append(f"M{line}")
        areas.append(f"M{places[0][0]:g} {_SPARK_HEIGHT}L{line}V{_SPARK_HEIGHT}Z")
    return Spark("".join(lines), "".join(areas))


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """The values that are known, with their indexes, in runs without a gap."""
    runs: list[list[tuple[int, float]]] = [[]]
    for number, value in enumerate(values):
        if value is not None:
            runs[-1].append((number, value))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def stacked(
    title: str, series: Sequence[Series], buckets: Sequence[tuple[datetime, Any]], step: timedelta
) -> Chart:
    """A chart of stacked bars, the first series at the bottom."""
    heights = [[one.read(counts) for one in series] for _, counts in buckets]
    top = _nice(max(map(sum, heights), default=0))
    columns = []
    for x, ((start, _), values) in enumerate(zip(buckets, heights, strict=True)):
        bars, y = [], float(HEIGHT)
        for one, value in zip(series, values, strict=True):
            height = value / top * HEIGHT
            y -= height
            if value:
                bars.append(Bar(one.style, x + 0.1, round(y, 3), round(height, 3)))
        shown = tuple(map(labels.number, values))
        columns.append(Column(_label(start, step), shown, x, tuple(bars)))
    names = [(one.style, one.label) for one in series]
    is_empty = not any(map(any, heights))
    return Chart(title, names, columns, labels.number(top), _labels(buckets, step), is_empty)


def shares(title: str, buckets: _Buckets, step: timedelta) -> Chart:
    """A chart of the share of attributed requests, in per cent."""
    columns = []
    for x, (start, counts) in enumerate(buckets):
        whole = counts.attributed + counts.unattributed
        height = counts.attributed / whole * HEIGHT if whole else 0
        bar = Bar("attributed", x + 0.1, round(HEIGHT - height, 3), round(height, 3))
        rest = Bar("unattributed", x + 0.1, 0, round(HEIGHT - height, 3))
        shown = (labels.share(counts.attributed, counts.unattributed),)
        bars = tuple(one for one in (bar, rest) if whole and one.height)
        columns.append(Column(_label(start, step), shown, x, bars))
    is_empty = not any(column.bars for column in columns)
    names = [("attributed", "Attributed"), ("unattributed", "Not attributed")]
    return Chart(title, names, columns, "100%", _labels(buckets, step), is_empty)


def _nice(value: int) -> int:
    """The top of a scale that has room for `value`: one digit, or 10, and zeros."""
    if value <= 1:
        return 1
    power = int(10 ** math.floor(math.log10(value)))
    return next(step * power for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * power >= value)


def _label(start: datetime, step: timedelta) -> str:
    return (
        f"{start:%b} {start.day}"
        if step >= timedelta(days=1)
        else f"{start:%b} {start.day}, {start:%H:%M}"
    )


def _labels(buckets: Sequence[tuple[datetime, Any]], step: timedelta) -> list[tuple[float, str]]:
    every = max(1, math.ceil(len(buckets) / _LABELS))
    is_one_day = len(buckets) * step <= _DAY
    if step < _DAY and not is_one_day:
        a_day = _DAY // step
        every = math.ceil(every / a_day) * a_day
    texts = [
        f"{start:%H:%M}" if is_one_day else f"{start:%b} {start.day}"
        for start, _ in buckets[::every]
    ]
    places = [round(100 * number * every / len(buckets), 2) for number in range(len(texts))]
    # A label that begins close to the right edge would not fit into the picture.
    return [(place, one) for place, one in zip(places, texts, strict=True) if place < 87]
