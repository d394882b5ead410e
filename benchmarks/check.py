"""The comparison of a run's ratios with the committed ones."""

from collections.abc import Mapping
from typing import Any

from benchmarks.findings import Figure


def moved(
    found: Mapping[str, Figure], committed: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], int]:
    """A line for each ratio that has moved by more than its tolerance, and how many were compared.

    `committed` is what figures.json has. The tolerance of each ratio is the larger one of the two
    runs, as each has its own noise; beyond it, the ratio has become better or worse.
    """
    compared = [name for name in found if committed.get(name, {}).get("unit") == "ratio"]
    lines = []
    for name in compared:
        now, then = found[name].value, float(committed[name]["value"])
        tolerance = max(found[name].tolerance, float(committed[name]["tolerance"]))
        change = now / then - 1
        if abs(change) > tolerance:
            is_worse = (change > 0) == (found[name].better == "lower")
            way = "worse" if is_worse else "better"
            lines.append(
                f"{way}: {name}: {then:.3g} before, {now:.3g} now "
                f"({change:+.0%}; {tolerance:.0%} are tolerated)"
            )
    return lines, len(compared)
