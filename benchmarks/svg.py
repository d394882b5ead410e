"""Bar charts as SVG files, which need no library and change little from run to run."""

from collections.abc import Iterator, Mapping
from html import escape

from benchmarks.findings import Chart

_COLOURS = ("#3b6ea5", "#d98032", "#5a9a5a", "#8d6bb0", "#b5534f", "#777777")
_WIDTH, _NAMES, _FIGURES = 760, 230, 60
"""Of the picture, of the names to the left of the bars, and of the figures to their right."""
_BAR, _GAP, _HEAD = 15, 5, 46


def draw(chart: Chart) -> str:
    """The chart as SVG: one bar a line, its parts side by side."""
    parts = list(
        dict.fromkeys(
            part for bars in chart.groups.values() for bar in bars.values() for part in bar
        )
    )
    longest = max(
        (sum(bar.values()) for bars in chart.groups.values() for bar in bars.values()), default=1
    )
    scale = (_WIDTH - _NAMES - _FIGURES) / (longest or 1)
    lines, y = [], _HEAD
    for group, bars in chart.groups.items():
        lines.append(_text(8, y + 12, group, weight="bold"))
        y += _BAR + _GAP
        for name, bar in bars.items():
            lines += _bar(name, bar, y, scale, parts)
            y += _BAR + _GAP
        y += _GAP
    head = [_text(8, 18, f"{chart.title} ({chart.unit})", weight="bold"), *_legend(parts)]
    size = f'width="{_WIDTH}" height="{y}" viewBox="0 0 {_WIDTH} {y}"'
    ground = f'<rect width="{_WIDTH}" height="{y}" fill="#ffffff"/>'
    style = 'font-family="sans-serif" font-size="12"'
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>'
    return "\n".join([opening, ground, *head, *lines, "</svg>", ""])


def _bar(
    name: str, bar: Mapping[str, float], y: int, scale: float, parts: list[str]
) -> Iterator[str]:
    yield _text(_NAMES - 8, y + 12, name, anchor="end")
    x = float(_NAMES)
    for part, value in bar.items():
        width, colour = value * scale, _COLOURS[parts.index(part) % len(_COLOURS)]
        at = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}"'
        yield f'<rect {at} fill="{colour}"><title>{escape(part)}: {value:.3g}</title></rect>'
        x += width
    yield _text(x + 6, y + 12, f"{sum(bar.values()):.3g}")


def _legend(parts: list[str]) -> Iterator[str]:
    if len(parts) < 2:
        return
    x = 8.0
    for number, part in enumerate(parts):
        colour = _COLOURS[number % len(_COLOURS)]
        yield f'<rect x="{x:.0f}" y="27" width="10" height="10" fill="{colour}"/>'
        yield _text(x + 14, 36, part)
        x += 34 + 7 * len(part)


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    where = f'x="{x:.1f}" y="{y}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text {where} fill="#222222">{escape(text)}</text>'
