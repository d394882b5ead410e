"""Evaluate with the decision log, for each --spool-sync, beside a server that does not log."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import grpc

from benchmarks import traffic
from benchmarks.processes import POLICYD_IS_READY, Program, create_key, policyd, started
from benchmarks.rounds import (
    CONCURRENCIES,
    Case,
    Plan,
    Turn,
    Turns,
    ratios,
    table,
    take_turns,
    with_spread,
)
from policyd.decision_log.spool import SYNCS
from policyd.v1.policy_pb2 import DECISION_DENY, EvaluateRequest
from policyd.v1.policy_pb2_grpc import PolicyServiceStub

UNLOGGED = "without the log"
_SETTLE = 1.0
"""Seconds between two turns, in which the log reaches the store."""


async def run(folder: Path, plan: Plan) -> str:
    """Measure, and give the result as Markdown. `folder` is for the databases."""
    async with AsyncExitStack() as running:
        cases = []
        for name, command, flags in _servers():
            place = folder / name.replace(" ", "-")
            place.mkdir()
            url = f"sqlite:///{place}/policyd.db"
            key = create_key(url)
            server = running.enter_context(
                started(*policyd(url, *command), *flags, ready=POLICYD_IS_READY)
            )
            channel = await running.enter_async_context(grpc.aio.insecure_channel(server.places[0]))
            programs = {"server": server.pid, "background worker": _background_worker(server)}
            ask = _asking(channel, traffic.asked(key, user=None))
            cases.append(Case(name, ask, programs))
        found = {n: await take_turns(cases, n, plan, pause=_SETTLE) for n in CONCURRENCIES}
    return _table(found)


def _servers() -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """The name, command and flags of each."""
    for sync in SYNCS:
        yield f"sync {sync}", (), ("--spool-sync", sync)
    yield UNLOGGED, ("python", "-m", "benchmarks.unlogged_server"), ()


def _background_worker(server: Program) -> int:
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text()
    return int(children.split()[0])


def _asking(channel: grpc.aio.Channel, request: EvaluateRequest) -> Callable[[], Awaitable[None]]:
    stub = PolicyServiceStub(channel)

    async def ask() -> None:
        answer = await stub.Evaluate(request)
        if answer.decision != DECISION_DENY:
            raise RuntimeError(f"decided otherwise: {answer}")

    return ask


def _table(found: dict[int, Turns]) -> str:
    columns = (
        *("calls at once", "Evaluate, denied", "calls/s", "ratio of calls/s", "p99 ms"),
        *("ratio of p99", "server CPU µs a call", "background worker CPU µs a call"),
    )
    rows = [
        (
            *(concurrency, name, f"{median(turn.rate for turn in measured):.0f}"),
            ratios(measured, turns[UNLOGGED]),
            f"{1e3 * median(turn.p99 for turn in measured):.2f}",
            _p99_ratios(measured, turns[UNLOGGED]),
            *(f"{1e6 * median(turn.cpu[program] for turn in measured):.0f}" for program in _CPU),
        )
        for concurrency, turns in found.items()
        for name, measured in turns.items()
    ]
    return table("What the decision log costs", columns, rows)


_CPU = ("server", "background worker")


def _p99_ratios(turns: list[Turn], beside: list[Turn]) -> str:
    if turns is beside:
        return "1"
    return with_spread(a.p99 / b.p99 for a, b in zip(turns, beside, strict=True))
