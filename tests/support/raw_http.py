"""HTTP at the level of bytes, for tests.

A client that sends exactly the given bytes, and an upstream that keeps exactly the bytes that it
gets.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import uvicorn

from policyd.demo.upstream import DemoUpstream

CHAT = b'{"model":"m","messages":[{"role":"user","content":"Hello"}]}'
CHAT_WITH_USER = b'{"model":"m","messages":[{"role":"user","content":"Hello"}],"user":"u-1"}'
NO_USER = (
    b'{"error":{"message":"Usage Panda: Config set to block requests without user field",'
    b'"type":"invalid_request","param":null,"code":null}}'
)
Headers = Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Response:
    """A response as it arrived over the wire."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    is_whole: bool
    """Whether it ended as its framing declares."""

    def all(self, name: str) -> list[str]:
        return [value for header, value in self.headers if header.lower() == name.lower()]


def parse(raw: bytes, method: str = "GET") -> Response:
    """Read one response, which ended with its connection."""
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    pairs = [line.partition(": ") for line in lines]
    headers = [(name, value) for name, _, value in pairs]
    names = {name.lower(): value for name, value in headers}
    is_whole = True
    if names.get("transfer-encoding") == "chunked":
        is_whole = body.endswith(b"0\r\n\r\n")
        body = _without_chunks(body)
    elif "content-length" in names and method != "HEAD":
        is_whole = len(body) == int(names["content-length"])
    return Response(int(status.split(" ")[1]), headers, body, is_whole)


def _without_chunks(body: bytes) -> bytes:
    whole = b""
    while match := re.match(rb"([0-9a-fA-F]+)\r\n", body):
        size = int(match[1], 16)
        whole += body[match.end() : match.end() + size]
        body = body[match.end() + size + 2 :]
    return whole


def request(
    method: str, target: str, headers: Headers = (), body: bytes = b"", *, framed: bool = True
) -> bytes:
    """A request with `Connection: close`."""
    lines = [f"{method} {target} HTTP/1.1", "Host: gateway.test", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    if framed and body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def exchange(url: str, data: bytes) -> bytes:
    """Send bytes, and return everything that arrives until the connection is closed."""
    reader, writer = await connect(url)
    writer.write(data)
    try:
        return await reader.read()
    finally:
        writer.close()


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A bare connection."""
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def ask(
    url: str, method: str, target: str, headers: Headers = (), body: bytes = b""
) -> Response:
    """Send a request and read the response."""
    return parse(await exchange(url, request(method, target, headers, body)), method)


async def post(url: str, key: str, body: bytes, *headers: tuple[str, str]) -> Response:
    """Send a chat completion."""
    pairs = [("x-usagepanda-api-key", key), ("Content-Type", "application/json"), *headers]
    return await ask(url, "POST", "/v1/chat/completions", pairs, body)


@dataclass
class Demo:
    """A running demo upstream."""

    url: str
    app: DemoUpstream

    @property
    def targets(self) -> list[str]:
        """The paths and queries of the requests, as they arrived."""
        return [received.target.decode("latin-1") for received in self.app.record]


@asynccontextmanager
async def serving_demo(**options: object) -> AsyncIterator[Demo]:
    """Run a demo upstream that keeps what it gets."""
    app = DemoUpstream(record=1000, **options)  # type: ignore[arg-type]  # any of its settings
    config = uvicorn.Config(app, port=0, log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.001)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Demo(f"http://127.0.0.1:{port}", app)
    finally:
        server.should_exit = True
        await running


class Wire:
    """An upstream that keeps every byte, and gives every request the same answer.

    Without an answer it only listens. `cut` closes the connection after the answer.
    """

    def __init__(self, answer: bytes | None, *, cut: bool) -> None:
        self._answer = answer
        self._cut = cut
        self.received = bytearray()
        self.connections = 0
        self.lost = asyncio.Event()
        self.url = ""

    @property
    def head(self) -> list[str]:
        """The lines of the first request up to its body."""
        return bytes(self.received).partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while chunk := await reader.read(65536):
                self.received += chunk
                if self._answer is not None and self._is_complete():
                    writer.write(self._answer)
                    if self._cut:
                        break
        except ConnectionError:
            pass
        self.lost.set()
        writer.close()

    def _is_complete(self) -> bool:
        head, end, body = bytes(self.received).partition(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
        chunked = re.search(rb"\r\ntransfer-encoding: chunked", head, re.IGNORECASE)
        if chunked:
            return body.endswith(b"0\r\n\r\n")
        return bool(end) and len(body) >= (int(length[1]) if length else 0)


@asynccontextmanager
async def serving_wire(
    answer: bytes | None = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", *, cut: bool = False
) -> AsyncIterator[Wire]:
    """Run a Wire."""
    wire = Wire(answer, cut=cut)
    server = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
    wire.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield wire
    finally:
        server.close()
