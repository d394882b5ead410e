"""The client in Python, for machines without h2load."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import grpc

if TYPE_CHECKING:
    from benchmarks.load import Target

Ask = Callable[[], Awaitable[None]]


class Failed(Exception):
    """A call got another answer than it should."""


async def send(target: "Target", concurrency: int, calls: int) -> list[float]:
    """Send so many calls, and return how many seconds each took. Raises Failed."""
    took: list[float] = []
    left = iter(range(calls))

    async def keep_asking(ask: Ask) -> None:
        for _ in left:
            began = time.perf_counter()
            await ask()
            took.append(time.perf_counter() - began)

    clients = _over_grpc if target.is_grpc else _over_http
    await clients(target, concurrency, keep_asking)
    return took


async def _over_http(
    target: "Target", concurrency: int, keep_asking: Callable[[Ask], Awaitable[None]]
) -> None:
    async def ask() -> None:
        sending = session.post(target.url, data=target.body, headers=dict(target.headers))
        async with sending as answer:
            text = await answer.read()
            if answer.status != target.status:
                raise Failed(f"answered {answer.status}: {text[:300]!r}")

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(keep_asking(ask) for _ in range(concurrency)))


async def _over_grpc(
    target: "Target", concurrency: int, keep_asking: Callable[[Ask], Awaitable[None]]
) -> None:
    async def ask() -> None:
        try:
            await call(target.body[5:])  # Without the frame, which gRPC puts around it.
        except grpc.RpcError as error:
            raise Failed(str(error)) from None

    place = urlsplit(target.url)
    async with grpc.aio.insecure_channel(place.netloc) as channel:
        call: Any = channel.unary_unary(place.path)
        await asyncio.gather(*(keep_asking(ask) for _ in range(concurrency)))
