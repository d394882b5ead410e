"""Servers that are replaced or drained under load: nothing is lost, and everything has an end.

Every program is a real process. `pytest --log-level=info -rP` shows the counts.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from policyd.store import Store
from policyd.v1.policy_pb2 import DECISION_ALLOW, EvaluateRequest
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.load import DECIDED, PATIENCE, WAITS, Load, MakeStack, Stack, ask, under_load, until
from tests.processes import Policyd, Program
from tests.stack import Gateway
from tests.test_faults import is_running

log = logging.getLogger(__name__)

TIMES = int(os.environ.get("POLICYD_TEST_ROLLINGS", "3"))
REPLACED = "all workers are replaced"
NOT_SERVING = HealthCheckResponse.NOT_SERVING
Start = Callable[..., Any]


def told(program: Program, words: str) -> int:
    """How many lines of its log have these words."""
    return sum(words in line for line in program.errors)


def children(program: Program, module: str = "worker") -> set[int]:
    """The processes that it has started and that run `module`."""
    path = Path(f"/proc/{program.pid}/task/{program.pid}/children")
    found = {int(word) for word in path.read_text().split()}
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in found if is_running(pid)}
    return {pid for pid, line in lines.items() if f".{module}".encode() in line}


async def roll(program: Program) -> None:
    """Have its workers replaced."""
    done = told(program, REPLACED)
    program.send(signal.SIGHUP)
    await until(lambda: told(program, REPLACED) > done)


def restart_gateway(stack: Stack, *flags: str) -> None:
    """Put a gateway with other flags in the place of the stack's."""
    given = ("--policy-timeout", WAITS, *flags)
    stack.gateway = stack.start(Gateway, stack.policyd.grpc, stack.upstream.url, *given)


# Rolling


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("which", ["policyd", "gateway"])
@pytest.mark.timeout(120 + 30 * TIMES)
async def test_rolling(make_stack: MakeStack, which: str, workers: int) -> None:
    """All workers are replaced, again and again, and every request gets its decision."""
    flags = ("--workers", str(workers))
    stack = make_stack(*(flags if which == "policyd" else ()))
    restart_gateway(stack, *(flags if which == "gateway" else ()))
    program = stack.policyd if which == "policyd" else stack.gateway
    async with under_load(stack) as load:
        for _ in range(TIMES):
            before = children(program)
            await roll(program)
            after = children(program)
            assert len(after) == workers
            assert not after & before
            await load.more(40, *DECIDED)
    log.info("%d times: %s of %d requests", TIMES, load.statuses(), load.sent)
    log.info("%s", "".join(stack.gateway.errors))
    assert set(load.statuses()) == DECIDED
    assert await asyncio.to_thread(program.stop) == 0
    assert not told(program, "Traceback")
    assert not told(program, "killed")


@pytest.mark.parametrize("workers", [1, 2])
async def test_new_connections_while_policyd_rolls(
    start: Start, tmp_path: Path, workers: int
) -> None:
    """A client that connects anew for each call, and tries nothing twice, is always answered: over
    gRPC as over HTTP."""
    flags = ("--workers", str(workers), "--http", "127.0.0.1:0")
    policyd = start(Policyd, tmp_path, *flags)
    key = policyd.create_key("enforce")
    async with new_connections(policyd, key) as counted:
        for _ in range(TIMES):
            await roll(policyd)
            done = counted.total()
            await until(lambda begun=done: counted.total() > begun + 20)
    log.info("%s", counted)
    assert set(counted) == {"grpc OK", "http 200"}


@asynccontextmanager
async def new_connections(policyd: Policyd, key: str) -> AsyncIterator[Counter[str]]:
    """Calls, each on a connection of its own; gives what became of them."""
    counted: Counter[str] = Counter()
    stopping = asyncio.Event()
    question = EvaluateRequest(key=key, has_user=True)

    async def call() -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        async with grpc.aio.insecure_channel(policyd.grpc, options=options) as channel:
            try:
                await PolicyServiceStub(channel).Evaluate(question, timeout=PATIENCE)
                counted["grpc OK"] += 1
            except grpc.aio.AioRpcError as error:
                counted[f"grpc {error.code().name}: {error.details()}"] += 1

    async def post() -> None:
        headers = {"Content-Type": "application/json", "Connection": "close"}
        body = json.dumps({"key": key, "hasUser": True})
        async with aiohttp.ClientSession() as http:
            try:
                url = f"http://{policyd.http}/v1/evaluate"
                async with http.post(url, data=body, headers=headers) as answer:
                    await answer.read()
                    counted[f"http {answer.status}"] += 1
            except aiohttp.ClientError as error:
                counted[f"http {error}"] += 1

    async def again_and_again(one: Callable[[], Any]) -> None:
        while not stopping.is_set():
            await one()
            await asyncio.sleep(0.005)

    async with asyncio.TaskGroup() as clients:
        for one in (call, post, call, post):
            clients.create_task(again_and_again(one))
        yield counted
        stopping.set()
