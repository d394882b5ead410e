"""The findings of a part of the benchmark: tables, figures and charts, and what was absent."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Self

from benchmarks.rounds import Comparison, Take, ratios, spread, table

_LEAST_TOLERANCE = 0.15
"""The least share by which a ratio may differ from the committed one."""
_SPREADS = 2.0
"""How many times the spread of its own rounds a ratio may differ."""


class Figure(NamedTuple):
    """A figure, with the range of the middle half of its rounds."""

    value: float
    low: float
    high: float
    unit: str = "ratio"
    """`ratio`, or what it is measured in; only ratios are compared between runs."""
    better: str = "lower"
    """Whether a `lower` or a `higher` value is the better one."""

    @property
    def tolerance(self) -> float:
        """The share by which another run may differ, by the noise of this one."""
        noise = (self.high - self.low) / self.value if self.value else 0.0
        return round(max(_LEAST_TOLERANCE, _SPREADS * noise), 3)


class Chart(NamedTuple):
    """A bar chart: groups of bars side by side, each of one or more parts on top of each other."""

    name: str
    title: str
    unit: str
    groups: Mapping[str, Mapping[str, Mapping[str, float]]]
    """The value of each part, by bar, by group."""


@dataclass
class Findings:
    """The findings of a part."""

    tables: list[str] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    charts: list[Chart] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    """What could not be measured, and why."""

    def add(
        self,
        name: str,
        values: Iterable[float],
        unit: str = "ratio",
        better: str = "lower",
    ) -> None:
        """Note a figure by its values in all rounds."""
        low, middle, high = (float(f"{value:.4g}") for value in spread(values))
        self.figures[name] = Figure(middle, low, high, unit, better)

    def beside(
        self, one: Comparison, name: str, take: Take, cases: tuple[str, str], better: str = "lower"
    ) -> None:
        """Note how one case compares with another, if both were measured."""
        turns = [one.turns.get(case) for case in cases]
        if turns[0] and turns[1]:
            self.add(
                f"{name}, at {one.concurrency}", ratios(turns[0], turns[1], take), "ratio", better
            )

    def failures(self, found: Iterable[Comparison]) -> None:
        """Name the cases that failed."""
        for one in found:
            for case, why in one.failed.items():
                self.absent.append(f"{case}, {one.concurrency} at once: {why.splitlines()[0]}")

    @classmethod
    def of(cls, name: str, found: "Findings | str | Mapping[str, Any]") -> Self:
        """What the part `name` has returned: a text, figures by name, or findings as they are."""
        if isinstance(found, cls):
            return found
        if isinstance(found, str):
            return cls(tables=[found])
        assert isinstance(found, Mapping)
        made = cls(tables=[table(name.capitalize(), ("figure", "value"), found.items())])
        for key, value in found.items():
            if isinstance(value, int | float):
                unit = "ratio" if "beside" in key else "as named"
                made.figures[f"{name}: {key}"] = Figure(value, value, value, unit)
        return made

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {
            "figures": {name: figure._asdict() for name, figure in self.figures.items()},
            "charts": [chart._asdict() for chart in self.charts],
        }

    @classmethod
    def load(cls, dumped: Mapping[str, Any]) -> Self:
        """The findings that dump() made."""
        return cls(
            list(dumped["tables"]),
            {name: Figure(**figure) for name, figure in dumped["figures"].items()},
            [Chart(**chart) for chart in dumped["charts"]],
            list(dumped["absent"]),
        )


def cpu_chart(name: str, title: str, found: Iterable[Comparison]) -> Chart:
    """The CPU time of each case, part by part, at each level of load."""
    groups = {
        f"{one.concurrency} at once": {
            case: {part: 1e4 * _middle(turn.cpu[part] for turn in turns) for part in turns[0].cpu}
            for case, turns in one.turns.items()
        }
        for one in found
    }
    return Chart(name, title, "CPU seconds per 10,000 calls", groups)


def rate_chart(name: str, title: str, found: Iterable[Comparison]) -> Chart:
    """The calls a second of each case, at each level of load."""
    groups = {
        f"{one.concurrency} at once": {
            case: {"calls/s": _middle(turn.rate for turn in turns)}
            for case, turns in one.turns.items()
        }
        for one in found
    }
    return Chart(name, title, "calls a second", groups)


def _middle(values: Iterable[float]) -> float:
    return spread(values)[1]
