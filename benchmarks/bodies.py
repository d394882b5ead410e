"""Large bodies: what reading them costs, and what other requests notice of them.

Reading is measured in the process that does it, in CPU seconds, beside json.loads and msgspec's
decoding of the same bytes. Neighbours are small requests without a user, which policyd denies: the
gateway answers them itself, beside clients that send bodies of 20 MB as quickly as they can.
"""

import asyncio
import http.client
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import msgspec

from benchmarks import traffic
from benchmarks.body_kinds import bodies
from benchmarks.checkout import POLICYD, Checkout
from benchmarks.deployment import GATEWAY_IS_READY
from benchmarks.processes import (
    POLICYD_IS_READY,
    Program,
    cpu_seconds,
    create_key,
    policyd,
    started,
)
from benchmarks.rounds import Plan, table
from policyd.descriptor.body_readers import BodyReaders
from policyd.descriptor.pieces import Pieces
from policyd.descriptor.reader_process import BodyContext

LARGE = 20_000_000
SENDERS = 4
_GATEWAY = "from gateway.cli import main; main()"
_PAUSE = 0.005
"""Seconds between two small requests of one client."""
_SETTLED = 3.0
"""Seconds after which memory counts as given back."""
Figures = dict[str, float]


# --- reading -----------------------------------------------------------------------------------


async def reading(size: int, times: int) -> dict[str, Figures]:
    """Milliseconds of CPU for a megabyte of each kind of body: of its reader, of the process that
    hands it over, of json.loads and of msgspec's decoding."""
    readers = BodyReaders()
    about = BodyContext("application/json", "", traffic.ENDPOINT, 2**30)
    found = {}
    for kind, body in bodies(size).items():
        pieces = Pieces(body)
        await readers.read(_nothing, pieces, about)  # Warming up.
        (reader,) = readers.processes
        costs: dict[str, list[float]] = {"reader": [], "handing over": []}
        for _ in range(times):
            before, own = cpu_seconds(reader), time.process_time()
            await readers.read(_nothing, pieces, about)
            costs["reader"].append(cpu_seconds(reader) - before)
            costs["handing over"].append(time.process_time() - own)
        costs["json.loads"] = _costs(json.loads, body, times)
        costs["msgspec"] = _costs(msgspec.json.decode, body, times)
        found[kind] = {name: median(taken) / len(body) * 1e9 for name, taken in costs.items()}
    readers.close()
    return found


def _nothing() -> None: ...


def _costs(decode: Callable[[bytes], object], body: bytes, times: int) -> list[float]:
    taken = []
    for _ in range(times):
        began = time.process_time()
        decode(body)
        taken.append(time.process_time() - began)
    return taken


# --- neighbours --------------------------------------------------------------------------------


class Running(NamedTuple):
    """A policyd and a gateway, with an upstream that throws bodies away."""

    key: str
    gateway: Program


@contextmanager
def running(version: Checkout, folder: Path) -> Iterator[Running]:
    """The servers of a version, until the end of the block."""
    folder.mkdir(parents=True)
    url = f"sqlite:///{folder / 'policyd.db'}"
    python = (str(version.python), "-c")
    with ExitStack() as until:
        key = create_key(url, *python, POLICYD, cwd=version.root)
        ask = policyd(url, *python, POLICYD)
        server = until.enter_context(started(*ask, ready=POLICYD_IS_READY, cwd=version.root))
        sink = until.enter_context(_script("sink", ready=r"sink at (\S+)"))
        flags = ("--policyd", server.places[0], "--upstream", sink.places[0])
        command = (*python, _GATEWAY, "serve", "--listen", "127.0.0.1:0", *flags)
        yield Running(
            key, until.enter_context(started(*command, ready=GATEWAY_IS_READY, cwd=version.root))
        )


async def neighbours(version: Checkout, folder: Path, seconds: float) -> Figures:
    """How long small requests wait, in milliseconds, alone and beside senders of large bodies,
    and how much memory the gateway and its readers take, in megabytes."""
    with running(version, folder) as servers:
        url = servers.gateway.places[0]
        before = _memory(servers.gateway.pid)
        alone = await _waits(url, servers.key, seconds)
        with _script("send", url, servers.key, str(LARGE), ready="sending"):
            await asyncio.sleep(1.0)
            beside = await _waits(url, servers.key, seconds)
            peak = _memory(servers.gateway.pid)
        await asyncio.sleep(_SETTLED)
        after = _memory(servers.gateway.pid)
    return {
        "p50 alone": 1000 * _quantile(alone, 0.5),
        "p99 alone": 1000 * _quantile(alone, 0.99),
        "p50 beside": 1000 * _quantile(beside, 0.5),
        "p99 beside": 1000 * _quantile(beside, 0.99),
        "longest beside": 1000 * max(beside),
        "small requests": len(beside),
        "memory before": before,
        "memory during": peak,
        "memory after": after,
    }


async def _waits(url: str, key: str, seconds: float) -> list[float]:
    body, headers = traffic.body(user=None), traffic.headers(key)
    waits = []
    async with aiohttp.ClientSession() as session:
        until = time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            async with session.post(url + traffic.PATH, data=body, headers=headers) as answer:
                await answer.read()
                if answer.status != 422:
                    raise RuntimeError(f"answered {answer.status}")
            waits.append(time.perf_counter() - began)
            await asyncio.sleep(_PAUSE)
    return waits


def _quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(int(part * len(values)), len(values) - 1)]


def _memory(pid: int) -> float:
    """Megabytes of a process and its children that no file backs."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = " ".join(one.read_text() for one in tasks).split()
    return _anonymous(pid) + sum(map(_anonymous, map(int, children)))


def _anonymous(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon:"))


# --- the other ends ----------------------------------------------------------------------------


def _script(*arguments: str, ready: str) -> Any:
    return started(sys.executable, "-m", "benchmarks.bodies", *arguments, ready=ready)


class _Sink(asyncio.Protocol):
    """Throws each request's body away, and answers."""

    _left = 0
    _head = b""

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if not self._left:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._head = b""
            lines = head.lower().split(b"\r\n")
            self._left = next(int(line[15:]) for line in lines if line[:15] == b"content-length:")
        self._left -= len(data)
        if self._left <= 0:
            self._left = 0
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
            )


async def _sink() -> None:
    server = await asyncio.get_running_loop().create_server(_Sink, "127.0.0.1", 0)
    print(f"sink at http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def _send(url: str, key: str, size: int) -> None:
    """Send bodies of `size` bytes from SENDERS clients, one after the other, until killed."""
    body = bodies(size)["source code"]
    senders = [
        threading.Thread(target=_keep_sending, args=(url, key, body)) for _ in range(SENDERS)
    ]
    for sender in senders:
        sender.start()
    print("sending", flush=True)


def _keep_sending(url: str, key: str, body: bytes) -> None:
    place = urlsplit(url).netloc
    with closing(http.client.HTTPConnection(place, timeout=60)) as connection:
        while True:
            connection.request("POST", traffic.PATH, body, dict(traffic.headers(key)))
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                sys.stderr.write(f"answered {answer.status}\n")


# --- the report --------------------------------------------------------------------------------


async def figures(folder: Path, plan: Plan, before: Checkout | None = None) -> dict[str, Any]:
    """All figures: of reading, by size and kind; of neighbours, by version."""
    is_quick = plan.rounds <= 2
    sizes = (1_000_000,) if is_quick else (1_000_000, LARGE)
    versions = [*([before] if before else []), Checkout.this()]
    seconds = 1.0 if is_quick else 20.0
    return {
        "reading": {size: await reading(size, plan.rounds) for size in sizes},
        "neighbours": {
            version.name: await neighbours(version, folder / version.name, seconds)
            for version in versions
        },
    }


async def run(folder: Path, plan: Plan, before: Checkout | None = None) -> str:
    """Measure, and give the result as Markdown. `folder` is for the databases."""
    found = await figures(folder, plan, before)
    parts = []
    for size, kinds in found["reading"].items():
        columns = ["body", "reader", "handing over", "json.loads", "msgspec", "beside json.loads"]
        rows = [
            (kind, *(f"{one:.2f}" for one in costs.values()), f"{_beside(costs):.2f}")
            for kind, costs in kinds.items()
        ]
        title = f"Reading bodies of {size // 1_000_000} MB: ms of CPU a MB"
        parts.append(table(title, columns, rows))
    versions = found["neighbours"]
    rows = [
        (what, *(f"{one[what]:.1f}" for one in versions.values()))
        for what in next(iter(versions.values()))
    ]
    title = f"Small requests beside {SENDERS} clients that send bodies of 20 MB: ms, MB"
    parts.append(table(title, ["", *versions], rows))
    return "\n\n".join(parts)


def _beside(costs: Figures) -> float:
    return costs["reader"] / costs["json.loads"]


if __name__ == "__main__":
    if sys.argv[1] == "sink":
        asyncio.run(_sink())
    else:
        _send(sys.argv[2], sys.argv[3], int(sys.argv[4]))
