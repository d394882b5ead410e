"""Rounds: the cases of a comparison take turns, so that noise affects all of them alike."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from statistics import quantiles
from typing import NamedTuple

from benchmarks.processes import cpu_seconds

CONCURRENCIES = (1, 16, 64)


class Plan(NamedTuple):
    """How long to measure."""

    rounds: int
    seconds: float
    """Seconds for each case in each round."""
    rows: int = 0
    """Rows of the log that is read."""


class Case(NamedTuple):
    """One case of a comparison."""

    name: str
    ask: Callable[[], Awaitable[object]]
    """Makes one call. Raises where the answer is not the one expected."""
    programs: Mapping[str, int]
    """The processes whose CPU time counts, by name."""


class Turn(NamedTuple):
    """The measurements of one case in one round."""

    rate: float
    """Calls a second."""
    p50: float
    p99: float
    """Seconds that half of the calls, and 99 of 100, took at most."""
    cpu: Mapping[str, float]
    """Seconds of CPU that a call took, by program."""


Turns = Mapping[str, list[Turn]]
"""The turns of each case, one for each round."""


async def take_turns(
    cases: Sequence[Case], concurrency: int, plan: Plan, pause: float = 0.0
) -> Turns:
    """Measure the cases. The order turns round every time: ABC, CBA, ABC …

    `pause` are the seconds between two turns.
    """
    for case in cases:
        await _turn(case, concurrency, plan.seconds / 2)  # Warming up.
    turns: dict[str, list[Turn]] = {case.name: [] for case in cases}
    for number in range(plan.rounds):
        for case in cases if number % 2 == 0 else reversed(cases):
            await asyncio.sleep(pause)
            turns[case.name].append(await _turn(case, concurrency, plan.seconds))
    sys.stderr.write(f"  {concurrency} at once: {'; '.join(turns)}\n")
    return turns


async def _turn(case: Case, concurrency: int, seconds: float) -> Turn:
    latencies: list[float] = []
    before = {name: cpu_seconds(pid) for name, pid in case.programs.items()}
    started = time.perf_counter()
    async with asyncio.TaskGroup() as workers:
        for _ in range(concurrency):
            workers.create_task(_keep_asking(case.ask, started + seconds, latencies))
    elapsed = time.perf_counter() - started
    calls = len(latencies)
    cpu = {name: (cpu_seconds(pid) - before[name]) / calls for name, pid in case.programs.items()}
    latencies.sort()
    return Turn(calls / elapsed, latencies[calls // 2], latencies[calls * 99 // 100], cpu)


async def _keep_asking(
    ask: Callable[[], Awaitable[object]], until: float, latencies: list[float]
) -> None:
    now = time.perf_counter()
    while now < until:
        await ask()
        done = time.perf_counter()
        latencies.append(done - now)
        now = done


def with_spread(values: Iterable[float], digits: int = 2) -> str:
    """The median, and the range of the middle half."""
    found = list(values)
    if len(found) < 2:
        return f"{found[0]:.{digits}f}"
    low, middle, high = quantiles(found, n=4, method="inclusive")
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def ratios(turns: list[Turn], beside: list[Turn]) -> str:
    """How the rates compare, round by round."""
    if turns is beside:
        return "1"
    return with_spread(a.rate / b.rate for a, b in zip(turns, beside, strict=True))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        [f"### {title}", "", *("| " + " | ".join(map(str, line)) + " |" for line in lines)]
    )
