"""A request that is not quite HTTP/1.1 is rejected in OpenAI's shape, and never smuggled on."""

import asyncio
import contextlib
import json

import pytest

from tests.gateway.conftest import IN_SESSION, Serving
from tests.support.raw_http import (
    CHAT,
    CHAT_WITH_USER,
    Demo,
    ask,
    connect,
    exchange,
    parse,
    request,
    serving_wire,
)

pytestmark = IN_SESSION

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"5\r\nhello\r\n0\r\n\r\n"
MALFORMED = {
    "Content-Length and Transfer-Encoding": POST
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    + CHUNKED,
    "Transfer-Encoding and Content-Length": POST
    + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"
    + CHUNKED,
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a signed length": POST + b"Content-Length: +5\r\n\r\nhello",
    "a space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKED,
    "a coding that is not chunked": POST + b"Transfer-Encoding: identity\r\n\r\nhello",
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a folded header": POST + b"X: a\r\n b\r\n\r\n",
    "a control character": POST + b"X: a\x01b\r\n\r\n",
    "bare line feeds": b"POST / HTTP/1.1\nHost: x\n\n",
    "no path": b"GET nowhere HTTP/1.1\r\nHost: x\r\n\r\n",
    "only a host": b"GET http://nowhere HTTP/1.1\r\nHost: x\r\n\r\n",
    "an asterisk": b"GET * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "a raw byte in the path": b"GET /\xe9 HTTP/1.1\r\nHost: x\r\n\r\n",
    "CONNECT": b"CONNECT nowhere:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
async def test_malformed_requests(gateway: str, upstream: Demo, data: bytes) -> None:
    """Malformed requests get 400, a readable error, and the end of the connection."""
    response = parse(await exchange(gateway, data))
    assert response.status == 400
    assert response.is_whole
    assert json.loads(response.body)["error"]["message"].startswith("Usage Panda: ")
    assert response.headers[1] == ("Access-Control-Allow-Origin", "*")
    assert not upstream.app.record


async def test_heads_have_a_bound(gateway: str, upstream: Demo) -> None:
    """A path, or a head, without end is rejected with 431."""
    long_path = request("GET", "/v1/models" + "/a" * 5000)
    assert parse(await exchange(gateway, long_path)).status == 431
    reader, writer = await connect(gateway)
    writer.write(b"GET / HTTP/1.1\r\nX: ")
    for _ in range(5):
        writer.write(b"x" * 65536)
    assert parse(await reader.readuntil(b"}}")).status == 431
    writer.close()
    assert not upstream.app.record


async def test_what_follows_a_refused_body_is_no_request(
    gateway: str, upstream: Demo, enforcing: str
) -> None:
    """A request hidden behind a malformed one is never read."""
    hidden = request("GET", "/v1/models", [("x-usagepanda-api-key", enforcing)])
    raw = await exchange(gateway, MALFORMED["Content-Length and Transfer-Encoding"] + hidden)
    assert raw.count(b"HTTP/1.1 ") == 1
    assert not upstream.app.record


async def test_pipelined_requests(gateway: str, upstream: Demo, enforcing: str) -> None:
    """Pipelined requests are each judged by themselves, in order."""
    key = ("x-usagepanda-api-key", enforcing)
    bodies = [CHAT_WITH_USER, CHAT, CHAT_WITH_USER]
    data = [request("POST", "/v1/chat/completions", [key], body) for body in bodies]
    keep = [one.replace(b"Connection: close\r\n", b"") for one in data[:-1]]
    raw = await exchange(gateway, b"".join([*keep, data[-1]]))
    statuses = [int(part[:3]) for part in raw.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 422, 200]
    assert [bytes(received.body) for received in upstream.app.record] == [CHAT_WITH_USER] * 2


async def test_upgrades_smuggle_nothing(open_door: Serving) -> None:
    """Bytes behind an Upgrade are the request's body, and no request of their own upstream."""
    inner = b"GET /v1/hidden HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serving_wire() as wire, open_door(wire.url) as server:
        for name in ("Connection", "Proxy-Connection"):
            head = [("Upgrade", "anything"), (name, "upgrade"), ("x-usagepanda-api-key", "up-1")]
            data = request("POST", "/v1/chat/completions", head, inner)
            assert parse(await exchange(server.url, data)).status == 200
        assert (
            bytes(wire.received).count(b"Content-Length: %d\r\n\r\n%s" % (len(inner), inner)) == 2
        )
        assert wire.connections == 1


async def test_http_1_0(gateway: str, enforcing: str) -> None:
    """A client of HTTP/1.0 is served, and its connection closed."""
    data = request("GET", "/v1/models", [("x-usagepanda-api-key", enforcing)])
    response = parse(await exchange(gateway, data.replace(b"HTTP/1.1", b"HTTP/1.0")))
    assert response.status == 200


async def test_trailers_are_no_headers(gateway: str, upstream: Demo, enforcing: str) -> None:
    """Trailers behind the last chunk are ignored and not forwarded."""
    head = [("Transfer-Encoding", "chunked"), ("Content-Type", "application/json")]
    chunks = b"%x\r\n%s\r\n0\r\n" % (len(CHAT_WITH_USER), CHAT_WITH_USER)
    trailer = f"x-usagepanda-api-key: {enforcing}\r\nX-Foo: 1\r\n\r\n".encode()
    data = request("POST", "/v1/chat/completions", head)
    assert parse(await exchange(gateway, data + chunks + trailer)).status == 403
    assert not upstream.app.record
    data = request("POST", "/v1/chat/completions", [*head, ("x-usagepanda-api-key", enforcing)])
    assert parse(await exchange(gateway, data + chunks + trailer)).status == 200
    assert upstream.app.record[0].header(b"x-foo") == ""


async def test_trailers_have_a_bound(gateway: str) -> None:
    """The gateway reads a bounded part of endless trailers, and ends the connection."""
    reader, writer = await connect(gateway)
    head = [("Transfer-Encoding", "chunked"), ("x-usagepanda-api-key", "up-1")]
    writer.write(request("POST", "/v1/chat/completions", head) + b"0\r\n")

    async def flood() -> None:
        for _ in range(200):
            writer.write(b"X-Foo: " + b"x" * 65536 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.001)

    async with asyncio.timeout(60):
        with contextlib.suppress(ConnectionError):
            await flood()
        with contextlib.suppress(ConnectionError):
            assert b"HTTP/1.1 200" not in await reader.read()
    writer.close()


async def test_many_upgrades_in_one_packet(open_door: Serving) -> None:
    """Many upgrades in one packet are all answered, one after the other and not nested."""
    one = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    last = request("GET", "/v1/models")
    async with serving_wire() as wire, open_door(wire.url) as server:
        raw = await exchange(server.url, one * 100 + last)
    assert raw.count(b"HTTP/1.1 200") == 101


async def test_header_values(open_door: Serving) -> None:
    """White space around a value is dropped; a value that is not UTF-8 is rejected, not changed."""
    async with serving_wire() as wire, open_door(wire.url) as server:
        padded = [("X-Padded", " a\t "), ("Content-Length", "3 ")]
        data = request("POST", "/v1/files", padded, framed=False) + b"abc"
        assert parse(await exchange(server.url, data)).status == 200
        assert "X-Padded: a" in wire.head
        latin = [("Authorization", "Bearer \xe9")]
        refused = await ask(server.url, "GET", "/v1/models", latin)
    assert refused.status == 400
    assert b"not UTF-8" in refused.body
