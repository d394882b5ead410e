"""Rounds: the cases of a comparison take turns, so that noise affects all of them alike."""

import math
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import median, quantiles
from typing import NamedTuple

from benchmarks.load import LoadFailed, Target, calls_in, send
from benchmarks.processes import Tree

CONCURRENCIES = (1, 16, 64)


class Plan(NamedTuple):
    """How long to measure."""

    rounds: int
    seconds: float
    """Seconds for each case in each round."""
    rows: int = 0
    """Rows of the log that is read."""
    concurrencies: tuple[int, ...] = CONCURRENCIES
    """How many calls at once, one figure for each."""
    until: float = math.inf
    """The moment, of time.monotonic(), from which on no new round begins."""

    def part(self, share: float) -> "Plan":
        """This plan, for a measurement that may take this share of the time that is left."""
        now = time.monotonic()
        return self._replace(until=now + share * (self.until - now))


async def _at_once() -> None:
    """What a case without a log waits for: nothing."""


class Case(NamedTuple):
    """One case of a comparison."""

    name: str
    target: Target
    parts: Mapping[str, Tree]
    """The processes whose CPU time counts, by name."""
    beside: Mapping[str, Tree] = {}
    """Processes whose CPU time is measured and does not count, such as the upstream's."""
    settle: Callable[[], Awaitable[None]] = _at_once
    """Waits until what the calls have left behind is done, which belongs to their cost."""


class Turn(NamedTuple):
    """The measurements of one case in one round."""

    rate: float
    """Calls a second."""
    p50: float
    p99: float
    """Seconds that half of the calls, and 99 of 100, took at most."""
    cpu: Mapping[str, float]
    """Seconds of CPU that a call took, by part."""
    beside: Mapping[str, float]
    """The same of what does not count."""
    client: float
    """The same of the client."""
    calls: int

    @property
    def total(self) -> float:
        """Seconds of CPU that a call took in all parts."""
        return sum(self.cpu.values())


Turns = Mapping[str, list[Turn]]
"""The turns of each case, one for each round. A case that failed is not in it."""
Take = Callable[[Turn], float]


class Comparison:
    """Cases at one level of load, and their measurements."""

    def __init__(self, cases: Sequence[Case], concurrency: int) -> None:
        self.concurrency = concurrency
        self.turns: dict[str, list[Turn]] = {case.name: [] for case in cases}
        self.rounds = 0
        self.failed: dict[str, str] = {}
        """Why there is no figure, by case."""
        self._cases = list(cases)
        self._calls: dict[str, int] = {}

    async def measure(self, plan: Plan) -> Turns:
        """Measure the cases. The order turns round every time: ABC, CBA, ABC …"""
        for case in self._cases:
            await self._try(case, self._warm_up(case, plan.seconds))
        for number in range(plan.rounds):
            if number and time.monotonic() > plan.until:
                break
            self.rounds = number + 1
            for case in self._cases if number % 2 == 0 else reversed(self._cases):
                if case.name not in self.failed:
                    await self._try(case, self._turn(case, plan.seconds))
        for name in self.failed:
            del self.turns[name]
        sys.stderr.write(f"  {self.concurrency} at once: {'; '.join(self.turns)}\n")
        return self.turns

    async def _try(self, case: Case, doing: Awaitable[None]) -> None:
        try:
            await doing
        except (LoadFailed, TimeoutError) as error:
            self.failed[case.name] = str(error) or "its log was not shipped in time"
            sys.stderr.write(f"  {case.name} failed: {self.failed[case.name]}\n")

    async def _warm_up(self, case: Case, seconds: float) -> None:
        self._calls[case.name] = await calls_in(case.target, self.concurrency, seconds)
        await case.settle()

    async def _turn(self, case: Case, seconds: float) -> None:
        before = _cpu(case.parts), _cpu(case.beside)
        load = await send(case.target, self.concurrency, self._calls[case.name])
        # The next turn is as long as this one should have been.
        self._calls[case.name] = load.calls_in(seconds, self.concurrency)
        beside = _used(before[1], _cpu(case.beside), load.calls)
        await case.settle()
        cpu = _used(before[0], _cpu(case.parts), load.calls)
        shares = (load.percentile(0.5), load.percentile(0.99))
        turn = Turn(load.rate, *shares, cpu, beside, load.client / load.calls, load.calls)
        self.turns[case.name].append(turn)


Used = Mapping[str, Mapping[int, float]]


def _cpu(parts: Mapping[str, Tree]) -> Used:
    return {name: one.cpu() for name, one in parts.items()}


def _used(before: Used, after: Used, calls: int) -> dict[str, float]:
    return {
        name: sum(cpu - before[name].get(pid, 0.0) for pid, cpu in after[name].items()) / calls
        for name in after
    }


async def compare(cases: Sequence[Case], plan: Plan) -> list[Comparison]:
    """Measure the cases at each level of load."""
    found = [Comparison(cases, number) for number in plan.concurrencies]
    for number, one in enumerate(found):
        await one.measure(plan.part(1 / (len(found) - number)))
    return found


def ratios(turns: Sequence[Turn], beside: Sequence[Turn], take: Take) -> list[float]:
    """How two cases compare, round by round."""
    return [take(a) / take(b) for a, b in zip(turns, beside, strict=True)]


def with_spread(values: Iterable[float], digits: int = 2) -> str:
    """The median, and the range of the middle half."""
    low, middle, high = spread(values)
    if low == high:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def spread(values: Iterable[float]) -> tuple[float, float, float]:
    """The quarter, the median and the three quarters."""
    found = list(values)
    if len(found) < 2:
        return found[0], found[0], found[0]
    low, middle, high = quantiles(found, n=4, method="inclusive")
    return low, middle, high


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        [f"### {title}", "", *("| " + " | ".join(map(str, line)) + " |" for line in lines)]
    )


def comparison_table(title: str, found: Sequence[Comparison], beside: str) -> str:
    """A table of all cases at all levels, each beside the case `beside`."""
    parts = _names(turn.cpu for one in found for turns in one.turns.values() for turn in turns)
    others = _names(turn.beside for one in found for turns in one.turns.values() for turn in turns)
    per = "CPU s per 10,000"
    columns = (
        *("at once", "what", "calls/s", f"beside {beside}", "p50 ms", "p99 ms"),
        *(f"{per}: all" if not number else name for number, name in enumerate(("", *parts))),
        *(f"all beside {beside}", *(f"({name})" for name in others), "(client)"),
    )
    rows = [
        _row(one, name, one.turns.get(beside), parts, others) for one in found for name in one.turns
    ]
    return table(title, columns, rows)


def _names(each: Iterable[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for one in each for name in one))


def _share(of: str, part: str, turn: Turn) -> float:
    shares: Mapping[str, float] = getattr(turn, of)
    return shares.get(part, 0.0)


def _row(
    one: Comparison,
    name: str,
    beside: Sequence[Turn] | None,
    parts: Sequence[str],
    others: Sequence[str],
) -> list[str]:
    turns = one.turns[name]

    def middle(take: Take, times: float = 1.0, digits: int = 2) -> str:
        return f"{times * median(map(take, turns)):.{digits}f}"

    def against(take: Take) -> str:
        return with_spread(ratios(turns, beside, take)) if beside else "-"

    def each(of: str, names: Sequence[str]) -> list[str]:
        takes: list[Take] = [partial(_share, of, part) for part in names]
        return [middle(take, 1e4) for take in takes]

    return [
        *(str(one.concurrency), name, middle(lambda turn: turn.rate, 1, 0)),
        *(against(lambda turn: turn.rate), middle(lambda turn: turn.p50, 1e3)),
        *(middle(lambda turn: turn.p99, 1e3), middle(lambda turn: turn.total, 1e4)),
        *(*each("cpu", parts), against(lambda turn: turn.total), *each("beside", others)),
        middle(lambda turn: turn.client, 1e4),
    ]
