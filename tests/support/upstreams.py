"""Upstreams that behave badly, for tests: raw servers that count their requests."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@dataclass
class Line:
    """One connection of an upstream."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int
    """Its number, from 1."""
    upstream: "Raw"

    async def request(self) -> bytes:
        """One request, its head and its body; empty at the end. It counts as soon as it begins."""
        data = await self.reader.read(65536)
        if data:
            self.upstream.begun += 1
        while data and b"\r\n\r\n" not in data:
            data += await self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        while len(body) < (int(length[1]) if length else 0):
            body += await self._more()
        if re.search(rb"transfer-encoding: chunked", head, re.IGNORECASE):
            while not body.endswith(b"0\r\n\r\n"):
                body += await self._more()
        if found := re.search(rb"x-number: (\S+)", head, re.IGNORECASE):
            self.upstream.seen[found[1].decode()] += 1
        return head + b"\r\n\r\n" + body if head else b""

    async def _more(self) -> bytes:
        if not (data := await self.reader.read(65536)):
            raise ConnectionResetError
        return data

    def reset(self) -> None:
        """Cut the connection with a reset."""
        connected = self.writer.get_extra_info("socket")
        connected.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER with no time
        self.writer.transport.abort()


Serve = Callable[[Line], Awaitable[None]]


@dataclass
class Raw:
    """A running upstream."""

    url: str = ""
    lines: list[Line] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    """How often each request has arrived, by its X-Number."""
    begun: int = 0
    """Requests of which a part has arrived."""


@asynccontextmanager
async def serving_raw(serve: Serve, **options: Any) -> AsyncIterator[Raw]:
    """Run an upstream that handles each of its connections by `serve`, and then closes it."""
    raw = Raw()
    tasks: set[asyncio.Task[None]] = set()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        line = Line(reader, writer, len(raw.lines) + 1, raw)
        raw.lines.append(line)
        with suppress(ConnectionError, asyncio.CancelledError):
            await serve(line)
        writer.close()
        tasks.discard(task)

    server = await asyncio.start_server(run, "127.0.0.1", **{"port": 0} | options)
    scheme = "https" if "ssl" in options else "http"
    raw.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield raw
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
