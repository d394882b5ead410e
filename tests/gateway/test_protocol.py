"""What is not quite HTTP/1.1 is refused in OpenAI's shape, and never smuggled on."""

import json

import pytest

from tests.gateway.conftest import IN_SESSION, Serving
from tests.gateway.support import (
    CHAT,
    CHAT_WITH_USER,
    Demo,
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
    """They get 400, an error that can be read, and the end of the connection."""
    response = parse(await exchange(gateway, data))
    assert response.status == 400
    assert response.is_whole
    assert json.loads(response.body)["error"]["message"].startswith("Usage Panda: ")
    assert response.headers[1] == ("Access-Control-Allow-Origin", "*")
    assert not upstream.app.record


async def test_heads_have_a_bound(gateway: str, upstream: Demo) -> None:
    """A path, or a head, without end is refused with 431."""
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
    gateway: str, upstream: Demo, enforced: str
) -> None:
    """A request hidden behind a malformed one is never read."""
    hidden = request("GET", "/v1/models", [("x-usagepanda-api-key", enforced)])
    raw = await exchange(gateway, MALFORMED["Content-Length and Transfer-Encoding"] + hidden)
    assert raw.count(b"HTTP/1.1 ") == 1
    assert not upstream.app.record


async def test_pipelined_requests(gateway: str, upstream: Demo, enforced: str) -> None:
    """Each is judged by itself, in order."""
    key = ("x-usagepanda-api-key", enforced)
    bodies = [CHAT_WITH_USER, CHAT, CHAT_WITH_USER]
    data = [request("POST", "/v1/chat/completions", [key], body) for body in bodies]
    keep = [one.replace(b"Connection: close\r\n", b"") for one in data[:-1]]
    raw = await exchange(gateway, b"".join([*keep, data[-1]]))
    statuses = [int(part[:3]) for part in raw.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 422, 200]
    assert [bytes(received.body) for received in upstream.app.record] == [CHAT_WITH_USER] * 2


async def test_upgrades_smuggle_nothing(open_door: Serving) -> None:
    """What a client sends behind an Upgrade is its body, and no request of its own upstream."""
    inner = b"GET /v1/hidden HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serving_wire() as wire, open_door(wire.url) as server:
        for name in ("Connection", "Proxy-Connection"):
            head = [("Upgrade", "anything"), (name, "upgrade")]
            data = request("POST", "/v1/chat/completions", head, inner)
            assert parse(await exchange(server.url, data)).status == 200
        assert (
            bytes(wire.received).count(b"Content-Length: %d\r\n\r\n%s" % (len(inner), inner)) == 2
        )
        assert wire.connections == 1


async def test_http_1_0(gateway: str, enforced: str) -> None:
    """A client of HTTP/1.0 is served, and its connection closed."""
    data = request("GET", "/v1/models", [("x-usagepanda-api-key", enforced)])
    response = parse(await exchange(gateway, data.replace(b"HTTP/1.1", b"HTTP/1.0")))
    assert response.status == 200
