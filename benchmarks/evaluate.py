"""Evaluate, compared with methods of the same server that decide nothing, and with batches."""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from benchmarks import traffic
from benchmarks.evaluate_server import SERVICE
from benchmarks.processes import POLICYD_IS_READY, create_key, policyd, started
from benchmarks.rounds import CONCURRENCIES, Case, Plan, Turns, ratios, table, take_turns
from policyd.v1.policy_pb2 import (
    DECISION_ALLOW,
    DECISION_DENY,
    BatchEvaluateItem,
    BatchEvaluateRequest,
    Decision,
    EvaluateRequest,
    EvaluateResponse,
)
from policyd.v1.policy_pb2_grpc import PolicyServiceStub

Ask = Callable[[], Awaitable[object]]
EMPTY, SAME, ALLOWED, DENIED = "empty", "same messages", "Evaluate, allowed", "Evaluate, denied"
BATCHES = (10, 100)
_BATCH_CONCURRENCY = 16


async def run(folder: Path, plan: Plan) -> str:
    """Measure, and give the result as Markdown. `folder` is for the database."""
    database_url = f"sqlite:///{folder}/evaluate.db"
    key = create_key(database_url)
    command = policyd(database_url, "python", "-m", "benchmarks.evaluate_server")
    with started(*command, ready=POLICYD_IS_READY) as server:
        async with grpc.aio.insecure_channel(server.places[0]) as channel:
            programs = {"server": server.pid}
            cases = [Case(name, ask, programs) for name, ask in _asks(channel, key).items()]
            found = {number: await take_turns(cases, number, plan) for number in CONCURRENCIES}
            batches = [Case(name, ask, programs) for name, ask in _batch_asks(channel, key).items()]
            in_batches = await take_turns(batches, _BATCH_CONCURRENCY, plan)
    return f"{_table(found)}\n\n{_batch_table(in_batches)}"


def _asks(channel: grpc.aio.Channel, key: str) -> dict[str, Ask]:
    empty, request = Empty(), traffic.asked(key)
    call_empty: Any = channel.unary_unary(
        f"/{SERVICE}/Empty", Empty.SerializeToString, Empty.FromString
    )
    call_same: Any = channel.unary_unary(
        f"/{SERVICE}/Same", EvaluateRequest.SerializeToString, EvaluateResponse.FromString
    )
    return {
        EMPTY: lambda: call_empty(empty),
        SAME: lambda: call_same(request),
        ALLOWED: _evaluate(channel, request, DECISION_ALLOW),
        DENIED: _evaluate(channel, traffic.asked(key, user=None), DECISION_DENY),
    }


def _evaluate(
    channel: grpc.aio.Channel, request: EvaluateRequest, expected: Decision.ValueType
) -> Ask:
    stub = PolicyServiceStub(channel)

    async def ask() -> None:
        answer = await stub.Evaluate(request)
        if answer.decision != expected:
            raise RuntimeError(f"decided otherwise: {answer}")

    return ask


def _batch_asks(channel: grpc.aio.Channel, key: str) -> dict[str, Ask]:
    stub, request = PolicyServiceStub(channel), traffic.asked(key)
    asks = {"1": _evaluate(channel, request, DECISION_ALLOW)}
    for size in BATCHES:
        items = [BatchEvaluateItem(id=str(number), request=request) for number in range(size)]
        batch = BatchEvaluateRequest(items=items)
        asks[str(size)] = partial(stub.BatchEvaluate, batch)
    return asks


def _table(found: dict[int, Turns]) -> str:
    columns = (
        *("calls at once", "method", "calls/s", f"beside {EMPTY}", f"beside {SAME}"),
        *("p50 ms", "p99 ms", "server CPU s per 10,000"),
    )
    rows = [
        (
            *(concurrency, name, f"{median(turn.rate for turn in measured):.0f}"),
            *(ratios(measured, turns[EMPTY]), ratios(measured, turns[SAME])),
            f"{1e3 * median(turn.p50 for turn in measured):.2f}",
            f"{1e3 * median(turn.p99 for turn in measured):.2f}",
            f"{1e4 * median(turn.cpu['server'] for turn in measured):.2f}",
        )
        for concurrency, turns in found.items()
        for name, measured in turns.items()
    ]
    return table("Evaluate beside methods that decide nothing", columns, rows)


def _batch_table(turns: Turns) -> str:
    columns = ("decisions in a call", "decisions/s", "p50 ms of a call", "server CPU µs each")
    rows = [
        (
            *(size, f"{int(size) * median(turn.rate for turn in measured):.0f}"),
            f"{1e3 * median(turn.p50 for turn in measured):.2f}",
            f"{1e6 * median(turn.cpu['server'] for turn in measured) / int(size):.1f}",
        )
        for size, measured in turns.items()
    ]
    return table(f"BatchEvaluate, {_BATCH_CONCURRENCY} calls at once", columns, rows)
