"""Victims: clients that send requests as usual while another client attacks the servers."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import aiohttp
import grpc

from benchmarks import traffic
from benchmarks.checkout import Servers
from policyd.v1.policy_pb2 import EvaluateRequest
from policyd.v1.policy_pb2_grpc import PolicyServiceStub

PATIENCE = 60.0
"""Seconds that a victim waits for an answer."""
ABOUT = [("X-Forwarded-Method", "POST"), ("X-Forwarded-Uri", traffic.PATH)]
"""The headers that describe a request to the HTTP check."""
_PAUSE = 0.02
"""Seconds between two requests of the victim."""

Ask = Callable[[], Awaitable[object]]


def victims(
    session: aiohttp.ClientSession, calls: grpc.aio.Channel, running: Servers
) -> dict[str, Ask]:
    """A victim's request to each listener. Each raises where the answer is not the usual one."""
    headers, body = traffic.headers(running.key), traffic.body()
    stub = PolicyServiceStub(calls)
    request = EvaluateRequest(
        key=running.key, has_user=True, user="victim", method="POST", path=traffic.PATH
    )
    return {
        "gateway": lambda: post(session, running.url + traffic.PATH, headers, body, 200),
        "policyd --http": lambda: post(
            session, f"{running.http}/v1/check", [*headers, *ABOUT], body, 200
        ),
        "policyd gRPC": lambda: stub.Evaluate(request, timeout=PATIENCE),
    }


async def is_answered(running: Servers, name: str, patience: float) -> bool:
    """Whether a victim with a new connection gets its answer in time."""
    try:
        async with (
            asyncio.timeout(patience),
            aiohttp.ClientSession() as session,
            channel(running) as calls,
        ):
            await victims(session, calls, running)[name]()
    except (TimeoutError, OSError, aiohttp.ClientError, RuntimeError, grpc.aio.AioRpcError):
        return False
    return True


def unknown_key() -> str:
    """A well-formed key that does not exist."""
    return "up-" + f"{random.getrandbits(192):048x}"  # as long as a real one


def channel(running: Servers) -> grpc.aio.Channel:
    """A channel to policyd's gRPC listener."""
    # Connections of its own: by default all channels to one address share them.
    options = (("grpc.use_local_subchannel_pool", 1),)
    return grpc.aio.insecure_channel(running.grpc, options)


async def post(
    session: aiohttp.ClientSession,
    url: str,
    headers: Sequence[tuple[str, str]],
    body: bytes,
    expected: int | None = None,
) -> None:
    """Raises RuntimeError where the status is not the expected one."""
    limit = aiohttp.ClientTimeout(total=PATIENCE)
    async with session.post(url, data=body, headers=headers, timeout=limit) as response:
        answer = await response.read()
        if expected not in (None, response.status):
            raise RuntimeError(f"answered {response.status}: {answer[:200]!r}")


async def longest_wait(victim: Ask, attack: Ask) -> tuple[float, float]:
    """The victim's longest wait for an answer during the attack, and the attack's own length (s).

    If the victim gets no answer, its wait is as long as the benchmark allows.
    """
    for _ in range(5):
        await victim()  # Warming up.
    waits = [0.0]
    watching = asyncio.create_task(_keep_asking(victim, waits))
    await asyncio.sleep(_PAUSE)
    began = time.perf_counter()
    with suppress(TimeoutError, OSError, aiohttp.ClientError, grpc.aio.AioRpcError):
        async with asyncio.timeout(PATIENCE):
            await attack()
    lasted = time.perf_counter() - began
    # A request that the victim sent meanwhile is still to be answered.
    await asyncio.sleep(10 * _PAUSE)
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    return max(waits), lasted


async def _keep_asking(victim: Ask, waits: list[float]) -> None:
    while True:
        began = time.perf_counter()
        try:
            await victim()
        except asyncio.CancelledError:
            waits.append(time.perf_counter() - began)
            raise
        except (OSError, aiohttp.ClientError, RuntimeError, grpc.aio.AioRpcError):
            waits.append(PATIENCE)
        else:
            waits.append(time.perf_counter() - began)
        await asyncio.sleep(_PAUSE)
