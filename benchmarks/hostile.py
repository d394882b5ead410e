"""What a client without a key can do to others, in this version and in an earlier one.

Four loads, all bounded and on the loopback, each on servers of its own that have just started:
one request with a Content-Type of 250 kB; 1,200 connections that say nothing, to servers that may
open 1,024 files; 24 compressed bodies that grow a hundredfold; and 10,000 requests with keys that
do not exist. Meanwhile another client, the victim, sends requests as usual.
"""

import asyncio
import gzip
import json
import random
import resource
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import aiohttp
import grpc

from benchmarks import traffic
from benchmarks.checkout import Checkout, Servers, servers
from benchmarks.rounds import Plan, table
from benchmarks.victims import (
    ABOUT,
    PATIENCE,
    Ask,
    channel,
    is_answered,
    longest_wait,
    post,
    unknown_key,
    victims,
)
from policyd.v1.policy_pb2 import EvaluateRequest, Header, RawBody
from policyd.v1.policy_pb2_grpc import PolicyServiceStub

_CONNECTING = 1.0
"""Seconds within which all silent connections have to be open."""
_SETTLED = 3.0
"""Seconds without a change after which the log counts as complete."""
_VICTIM_PATIENCE = 10.0
"""Seconds that a victim waits for an answer while there are silent connections."""
_VICTIM_EVERY = 0.4
_FILES = 1024

Cells = dict[str, str]
"""Measured values by name."""


class Size(NamedTuple):
    """How much of each load there is."""

    content_type: int
    connections: int
    victims: int
    bodies: int
    body: int
    requests: int


FULL = Size(250_000, 1200, 50, 24, 60_000_000, 10_000)
QUICK = Size(20_000, 100, 5, 3, 5_000_000, 300)


async def run(folder: Path, plan: Plan, before: Checkout | None = None) -> str:
    """Measure, and give the result as Markdown. `folder` is for the databases."""
    size = FULL if plan.rounds > 2 else QUICK
    versions = [*([before] if before else []), Checkout.this()]
    found: dict[str, Cells] = {version.name: {} for version in versions}
    with _many_files():
        for load in (_long_content_type, _silent_connections, _growing_bodies, _unknown_keys):
            for version in versions:
                place = folder / version.name / load.__name__.strip("_")
                found[version.name] |= await load(version, place, size)
                sys.stderr.write(f"  {load.__name__.strip('_')}, {version.name}\n")
    names = list(found)
    rows = [(what, *(found[name][what] for name in names)) for what in found[names[-1]]]
    return table("What a client without a key can do", ["load, and what it does", *names], rows)


@contextmanager
def _many_files() -> Iterator[None]:
    """Let this process open as many files as it may: it holds the other ends of the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# One long header


async def _long_content_type(version: Checkout, place: Path, size: Size) -> Cells:
    kind = "application/json; " + "charset" * (size.content_type // len("charset"))
    cells = {}
    for name in ("gateway", "policyd --http", "policyd gRPC"):
        with servers(version, place / name.replace(" ", "-")) as running:
            async with (
                aiohttp.ClientSession() as attacker,
                aiohttp.ClientSession() as session,
                channel(running) as attacking,
                channel(running) as asking,
            ):
                attack = _attacks(attacker, attacking, running, kind)[name]
                wait, _ = await longest_wait(victims(session, asking, running)[name], attack)
        what = f"Content-Type of {size.content_type // 1000} kB to {name}: victim's longest wait, s"
        cells[what] = _seconds(wait)
    return cells


def _attacks(
    session: aiohttp.ClientSession, calls: grpc.aio.Channel, running: Servers, kind: str
) -> dict[str, Ask]:
    body = traffic.body()
    stub = PolicyServiceStub(calls)
    headers = [("x-usagepanda-api-key", unknown_key()), ("Content-Type", kind)]
    request = EvaluateRequest(
        headers=[Header(name=name, value=value) for name, value in headers],
        method="POST",
        path=traffic.PATH,
        raw_body=RawBody(content=body),
    )
    return {
        "gateway": lambda: post(session, running.url + traffic.PATH, headers, body),
        "policyd --http": lambda: post(
            session, f"{running.http}/v1/check", [*headers, *ABOUT], body
        ),
        "policyd gRPC": lambda: stub.Evaluate(request, timeout=PATIENCE),
    }


# Silent connections


async def _silent_connections(version: Checkout, place: Path, size: Size) -> Cells:
    cells = {}
    for name in ("gateway", "policyd --http", "policyd gRPC"):
        with servers(version, place / name.replace(" ", "-"), files=_FILES) as running:
            targets = {"gateway": running.url, "policyd --http": running.http}
            host, _, port = targets.get(name, running.grpc).rpartition("/")[2].rpartition(":")
            with _held((host, int(port)), size.connections):
                answered = await _answered(running, name, size.victims)
        what = f"{size.connections} silent connections to {name}: victims answered"
        cells[what] = f"{answered} of {size.victims}"
    return cells


@contextmanager
def _held(target: tuple[str, int], number: int) -> Iterator[None]:
    """Open that many connections, and send nothing on them."""
    connections: list[socket.socket] = []
    try:
        for _ in range(number):
            # Without waiting: a full server may leave some of them hanging.
            connections.append(socket.socket())
            connections[-1].setblocking(False)
            connections[-1].connect_ex(target)
        time.sleep(_CONNECTING)
        yield
    finally:
        for one in connections:
            one.close()


async def _answered(running: Servers, name: str, number: int) -> int:
    """The number of victims that get an answer, one after the other, each on a new connection."""
    asking = []
    for _ in range(number):
        asking.append(asyncio.create_task(is_answered(running, name, _VICTIM_PATIENCE)))
        await asyncio.sleep(_VICTIM_EVERY)
    return sum(await asyncio.gather(*asking))


# Growing bodies


async def _growing_bodies(version: Checkout, place: Path, size: Size) -> Cells:
    packed = await asyncio.to_thread(_growing_body, size.body)
    headers = [
        ("x-usagepanda-api-key", unknown_key()),
        ("Content-Type", "application/json"),
        ("Content-Encoding", "gzip"),
    ]
    with servers(version, place) as running:
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(connector=connector) as attacker,
            aiohttp.ClientSession() as session,
            channel(running) as asking,
        ):
            victim = victims(session, asking, running)["gateway"]

            async def attack() -> None:
                url = running.url + traffic.PATH
                posts = (post(attacker, url, headers, packed) for _ in range(size.bodies))
                await asyncio.gather(*posts, return_exceptions=True)

            wait, taken = await longest_wait(victim, attack)
            peak = running.peak_memory()
    what = f"{size.bodies} gzip bodies of {len(packed) // 1000} kB, growing to "
    what += f"{size.body // 1_000_000} MB"
    return {
        f"{what}: gateway's and policyd's peak memory, MB": f"{peak / 1e6:.0f}",
        f"{what}: victim's longest wait, s": _seconds(wait),
        f"{what}: until all are answered, s": _seconds(taken),
    }


def _growing_body(size: int) -> bytes:
    """A chat of `size` bytes that compresses to about a hundredth, and takes long to look through:
    it names a user twice, and every other character is escaped."""
    chance = random.Random(3)  # keeps no secret
    piece = "\n" * 494
    text = "".join(piece + f"{chance.getrandbits(48):012x}" for _ in range(size // 1000))
    messages = [{"role": "user", "user": 1, "content": text}]
    chat = {"model": "gpt-4o-mini", "user": "", "messages": messages}
    return gzip.compress(json.dumps(chat).encode(), 6)


# Keys that do not exist


async def _unknown_keys(version: Checkout, place: Path, size: Size) -> Cells:
    with servers(version, place) as running:
        await _until_settled(running)
        rows, stored = running.rows(), running.stored()
        began = time.perf_counter()
        answered = await _ask_as_strangers(running, size.requests)
        taken = time.perf_counter() - began
        await _until_settled(running)
        rows, stored = running.rows() - rows, running.stored() - stored
    what = f"{size.requests:,} requests with unknown keys"
    return {
        f"{what}: answered": f"{answered:,}",
        f"{what}: until then, s": _seconds(taken),
        f"{what}: rows written": f"{rows:,}",
        f"{what}: database and spool grow by, kB": f"{stored / 1000:,.0f}",
    }


async def _ask_as_strangers(running: Servers, number: int) -> int:
    """How many requests are answered in time, each with a key and a user of its own."""
    strangers = iter(range(number))
    answered = 0

    async def ask_on(session: aiohttp.ClientSession) -> None:
        nonlocal answered
        for stranger in strangers:
            headers = traffic.headers(unknown_key())
            body = traffic.body(user=f"stranger-{stranger}")
            await post(session, running.url + traffic.PATH, headers, body)
            answered += 1

    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE), aiohttp.ClientSession() as session:
            await asyncio.gather(*(ask_on(session) for _ in range(16)))
    return answered


async def _until_settled(running: Servers) -> None:
    """Wait until the database gets no more of the log."""
    give_up = time.perf_counter() + PATIENCE
    seen, since = (-1, -1), time.perf_counter()
    while (now := time.perf_counter()) < give_up and now - since < _SETTLED:
        await asyncio.sleep(0.2)
        found = await asyncio.to_thread(running.rows), running.waiting()
        if found != seen:
            seen, since = found, time.perf_counter()


def _seconds(taken: float) -> str:
    return f"over {PATIENCE:.0f}" if taken >= PATIENCE else f"{taken:.2f}"
