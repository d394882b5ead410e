"""Load at a constant rate, whatever the answers take: what clients notice that do not wait for
each other.

Each request is due at a moment of the schedule, and its time counts from there: where the server
stalls, all requests that were due meanwhile are late (no coordinated omission). The client is ours,
in Python: it costs CPU, which is named beside the figures, and adds some tenths of a millisecond.
"""

import asyncio
import ctypes
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast
from urllib.parse import urlsplit

from benchmarks.load import Load, LoadFailed, Target

_CONNECTIONS = 64
"""Where all are taken, requests wait, which counts as theirs."""
_PATIENCE = 30.0
_MONOTONIC = 1
_NANOSECONDS = 1_000_000_000


async def send_at(target: Target, rate: float, seconds: float) -> Load:
    """Send so many requests a second. Raises LoadFailed."""
    client = _Client(target, rate, max(1, round(rate * seconds)))
    before = time.process_time()
    try:
        async with asyncio.timeout(seconds + _PATIENCE):
            took = await client.run()
    except (TimeoutError, OSError) as error:
        raise LoadFailed(f"{target.url}: {error!r}") from None
    return Load(len(took), seconds, sorted(took), time.process_time() - before)


class _Client:
    def __init__(self, target: Target, rate: float, calls: int) -> None:
        place = urlsplit(target.url)
        self._host, self._port = str(place.hostname), int(place.port or 80)
        fields = dict(target.headers) | {"host": place.netloc, "content-length": len(target.body)}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.request = f"POST {place.path} HTTP/1.1\r\n{head}\r\n".encode() + target.body
        self.status = str(target.status).encode()
        self._every, self._calls = 1 / rate, calls
        self._due: deque[float] = deque()
        self._idle: deque[_Connection] = deque()
        self._took: list[float] = []
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> list[float]:
        """Send all requests; seconds from the moment that each was due to the end of its answer."""
        loop = asyncio.get_running_loop()
        opened = [
            await loop.create_connection(lambda: _Connection(self), self._host, self._port)
            for _ in range(_CONNECTIONS)
        ]
        self._idle.extend(connection for _, connection in opened)
        began = time.monotonic()
        with _ticks(self._every) as clock:
            sent = 0

            def tick() -> None:
                nonlocal sent
                for _ in range(int.from_bytes(os.read(clock, 8), "little")):
                    if sent < self._calls:
                        sent += 1
                        self._due.append(began + sent * self._every)
                self._send()

            loop.add_reader(clock, tick)
            try:
                await self._done
            finally:
                loop.remove_reader(clock)
                for transport, _ in opened:
                    transport.close()
        return self._took

    def answered(self, connection: "_Connection", due: float) -> None:
        """Note that one request is done."""
        self._took.append(time.monotonic() - due)
        self._idle.append(connection)
        self._send()
        if len(self._took) == self._calls and not self._done.done():
            self._done.set_result(None)

    def failed(self, why: str) -> None:
        """End with an error."""
        if not self._done.done():
            self._done.set_exception(OSError(why))

    def _send(self) -> None:
        while self._due and self._idle:
            self._idle.popleft().send(self._due.popleft())


class _Connection(asyncio.Protocol):
    def __init__(self, client: _Client) -> None:
        self._client = client
        self._due = 0.0
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        # uvloop's is none by its class.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._client.failed("the connection was closed")

    def send(self, due: float) -> None:
        """Send the request that was due at that moment."""
        self._due = due
        self._transport.write(self._client.request)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._got += data
        head, _, rest = self._got.partition(b"\r\n\r\n")
        if len(rest) < _length(head) or not head:
            return
        if head.split(b" ", 2)[1] != self._client.status:
            self._client.failed(f"answered {head[:200]!r}")
        self._got = b""
        self._client.answered(self, self._due)


def _length(head: bytes) -> int:
    """Bytes of the answer's body, all of which have a Content-Length here."""
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    return 1 << 62


class _Timer(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns")]


@contextmanager
def _ticks(every: float) -> Iterator[int]:
    """A file that has the number of ticks since it was read: Linux's timerfd, as the timers of an
    event loop are no better than a millisecond."""
    libc = ctypes.CDLL(None, use_errno=True)
    clock = libc.timerfd_create(_MONOTONIC, os.O_NONBLOCK)
    try:
        span = divmod(round(every * _NANOSECONDS), _NANOSECONDS)
        if libc.timerfd_settime(clock, 0, ctypes.byref(_Timer(*span, *span)), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        yield clock
    finally:
        os.close(clock)
