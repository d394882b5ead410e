"""An allowed request and its answer pass unchanged, in both directions, as they arrive."""

import asyncio
import gzip
from collections.abc import Callable

import aiohttp
import pytest

from gateway.upstream_url import KEY_HEADERS
from tests.gateway.conftest import IN_SESSION, Serving
from tests.support.raw_http import (
    CHAT,
    CHAT_WITH_USER,
    Demo,
    ask,
    connect,
    exchange,
    parse,
    post,
    request,
    serving_demo,
    serving_wire,
)

pytestmark = IN_SESSION

OK = b"HTTP/1.1 200 OK\r\n"


async def test_request_headers(open_door: Serving) -> None:
    """Headers keep order, letter case and repeats.

    Those for one hop and for policyd are dropped, and so are twins of those by which a body is
    read. A repeat is spelled as the first one is.
    """
    passed = [
        ("AUTHORIZATION", "Bearer sk-1"),
        ("x-Two", "1"),
        ("Accept", "a/b"),
        ("X-TWO", "2"),
        ("Content-Type", "text/plain"),
        ("Cookie", "a=b; a=c"),
        ("X-Name", "é".encode().decode("latin-1")),
        ("x-empty", ""),
    ]
    dropped = [
        ("Connection", "keep-alive, X-Named"),
        ("connection", "content-type, authorization"),
        ("x-named", "1"),
        ("Keep-Alive", "5"),
        ("Proxy-Authorization", "Basic x"),
        ("TE", "trailers"),
        ("Trailer", "X-T"),
        ("Upgrade", "h3"),
        ("x-usagepanda-api-key", "up-1"),
        ("X-UsagePanda-Trace-Id", "t"),
        ("x-usagepanda-anything", "t"),
        ("X_USAGEPANDA_API_KEY", "up-2"),
        ("x-usagepanda_api-key", "up-3"),
        ("Content_Type", "application/x-www-form-urlencoded"),
        ("content_encoding", "deflate"),
        ("Content_Length", "0"),
        ("Transfer_Encoding", "chunked"),
    ]
    mixed = [pair for pairs in zip(dropped, passed, strict=False) for pair in pairs]
    mixed += dropped[len(passed) :]
    async with serving_wire() as wire, open_door(wire.url) as server:
        assert (await ask(server.url, "GET", "/v1/models", mixed)).status == 200
    sent = [f"{name}: {value}".replace("X-TWO", "x-Two") for name, value in passed]
    assert wire.head[0] == "GET /v1/models HTTP/1.1"
    assert wire.head[1].startswith("Host: 127.0.0.1:")
    assert wire.head[2:] == sent


async def test_no_header_is_added(open_door: Serving) -> None:
    """A request without Accept, User-Agent and Content-Type goes upstream without them."""
    async with serving_wire() as wire, open_door(wire.url) as server:
        await ask(server.url, "POST", "/v1/files", [], b"abc")
    assert wire.head[2:] == ["Content-Length: 3"]
    assert bytes(wire.received).endswith(b"\r\n\r\nabc")


@pytest.mark.parametrize(
    ("header", "sent"),
    [
        ("", "Authorization: Bearer sk-operator"),
        ("Authorization", "Authorization: Bearer sk-operator"),
        ("api-key", "api-key: sk-operator"),
        ("x-api-key", "x-api-key: sk-operator"),
        ("x-goog-api-key", "x-goog-api-key: sk-operator"),
    ],
)
async def test_the_operators_upstream_key(open_door: Serving, header: str, sent: str) -> None:
    """The operator's key replaces every key of the client's, in the header that it belongs in."""
    names = [*KEY_HEADERS, *map(str.upper, KEY_HEADERS), "API_KEY", "x_api-key"]
    for headers in ([], [(name, "sk-client") for name in names]):
        async with (
            serving_wire() as wire,
            open_door(
                wire.url, upstream_api_key="sk-operator", upstream_api_key_header=header
            ) as server,
        ):
            await ask(server.url, "GET", "/v1/models", headers)
        assert wire.head[2:] == [sent]


async def test_the_clients_upstream_keys(open_door: Serving) -> None:
    """The client's keys are forwarded where the operator has set none."""
    headers = [(name, "sk-client") for name in KEY_HEADERS]
    async with serving_wire() as wire, open_door(wire.url) as server:
        await ask(server.url, "GET", "/v1/models", headers)
    assert wire.head[2:] == [f"{name}: sk-client" for name in KEY_HEADERS]


async def test_response_headers(open_door: Serving) -> None:
    """Headers keep order, letter case and repeats; those for one hop are dropped."""
    answer = (
        OK + b"X-B: 1\r\nset-COOKIE: a=1\r\nConnection: x-named, close\r\nX-Named: 1\r\n"
        b"Keep-Alive: 5\r\nSet-Cookie: b=2\r\nDate: then\r\nServer: s\r\nContent-LENGTH: 3\r\n"
        b"Access-Control-Allow-origin: https://a.test\r\n\r\nabc"
    )
    async with serving_wire(answer) as wire, open_door(wire.url) as server:
        response = await ask(server.url, "GET", "/v1/models")
    assert response.headers == [
        ("X-B", "1"),
        ("set-COOKIE", "a=1"),
        ("Set-Cookie", "b=2"),
        ("Date", "then"),
        ("Server", "s"),
        ("Content-LENGTH", "3"),
        ("Access-Control-Allow-origin", "https://a.test"),
        ("connection", "close"),
    ]
    assert response.body == b"abc"


async def test_browsers_may_read_answers(open_door: Serving) -> None:
    """Access-Control-Allow-Origin: * is added where the upstream sets none, on errors too."""
    answer = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}"
    async with serving_wire(answer) as wire, open_door(wire.url) as server:
        response = await ask(server.url, "GET", "/v1/models")
    assert (response.status, response.body) == (401, b"{}")
    assert response.all("access-control-allow-origin") == ["*"]


@pytest.mark.parametrize(
    ("method", "answer", "status", "body"),
    [
        ("HEAD", OK + b"Content-Length: 5\r\n\r\n", 200, b""),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 5\r\n\r\n", 304, b""),
        ("GET", b"HTTP/1.1 307 Go\r\nLocation: /v2\r\nContent-Length: 1\r\n\r\nx", 307, b"x"),
        ("GET", b"HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\n\r\n", 418, b""),
        ("GET", b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\nx", 200, b"x"),
        ("GET", OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", 200, b"x"),
    ],
)
async def test_statuses(
    open_door: Serving, method: str, answer: bytes, status: int, body: bytes
) -> None:
    """Every status is passed on, redirects too, with or without a body; the connection lives on."""
    async with serving_wire(answer) as wire, open_door(wire.url) as server:
        reader, writer = await connect(server.url)
        for _ in range(2):
            writer.write(request(method, "/v1/x").replace(b"Connection: close\r\n", b""))
            head = await reader.readuntil(b"\r\n\r\n")
            response = parse(head, method)
            assert response.status == status
            if response.all("transfer-encoding"):
                assert await reader.readuntil(b"0\r\n\r\n") == b"1\r\nx\r\n0\r\n\r\n"
            else:
                assert await reader.readexactly(len(body)) == body
        writer.close()
        assert wire.connections == 1
    if b"Content-Length: 5" in answer:
        assert response.all("content-length") == ["5"]


async def test_an_answer_that_ends_with_its_connection(open_door: Serving) -> None:
    """Such an answer is passed on whole."""
    async with (
        serving_wire(OK + b"\r\nuntil the end", cut=True) as wire,
        open_door(wire.url) as server,
    ):
        response = await ask(server.url, "GET", "/v1/x")
    assert (response.body, response.is_whole) == (b"until the end", True)


async def test_compressed_answers(open_door: Serving) -> None:
    """Compressed answers are passed on without being decompressed."""
    body = gzip.compress(b"{}")
    answer = OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with serving_wire(answer) as wire, open_door(wire.url) as server:
        response = await ask(server.url, "GET", "/v1/x")
    assert response.body == body
    assert response.all("content-encoding") == ["gzip"]


async def test_streams_come_as_they_are_sent(serving: Serving, enforcing: str) -> None:
    """The client gets the first chunk of a stream before the second is sent."""
    body = CHAT_WITH_USER.replace(b"{", b'{"stream":true,', 1)
    headers = {"x-usagepanda-api-key": enforcing}
    gate = asyncio.Semaphore(0)
    async with (
        serving_demo(gate=gate) as demo,
        serving(demo.url) as server,
        aiohttp.ClientSession() as session,
        session.post(f"{server.url}/v1/chat/completions", data=body, headers=headers) as response,
    ):
        first = await response.content.readany()
        assert first.startswith(b"data: ")
        for _ in range(1000):
            gate.release()
        rest = await response.content.read()
    assert rest.endswith(b"data: [DONE]\n\n")


async def test_uploads_go_up_as_they_come(serving: Serving, off: str) -> None:
    """Out of scope, the upstream gets the first part of a body before the second is sent."""
    async with serving_wire() as wire, serving(wire.url) as server:
        reader, writer = await connect(server.url)
        head = request("POST", "/v1/files", [("x-usagepanda-api-key", off)])
        writer.write(head[:-2] + b"Content-Length: 10\r\n\r\nfirst")
        await _until(lambda: wire.received.endswith(b"first"))
        writer.write(b"later")
        assert parse(await reader.read()).status == 200
        writer.close()
    assert bytes(wire.received).endswith(b"\r\n\r\nfirstlater")


async def test_chunked_uploads(serving: Serving, enforcing: str) -> None:
    """Chunked uploads go upstream in chunks out of scope, and with a length if the gateway read
    them.
    """
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (b"{", CHAT_WITH_USER[1:]))
    for target, framing in [
        ("/v1/files", "Transfer-Encoding: chunked"),
        ("/v1/chat/completions", f"Content-Length: {len(CHAT_WITH_USER)}"),
    ]:
        async with serving_wire() as wire, serving(wire.url) as server:
            head = request(
                "POST",
                target,
                [("x-usagepanda-api-key", enforcing), ("Transfer-Encoding", "chunked")],
            )
            assert parse(await exchange(server.url, head + chunks + b"0\r\n\r\n")).status == 200
        assert wire.head[2:] == [framing]


async def test_a_chunked_upload_that_is_cut(open_door: Serving) -> None:
    """A chunked upload that is cut never ends cleanly upstream."""
    async with serving_wire(None) as wire, open_door(wire.url) as server:
        _, writer = await connect(server.url)
        head = request("POST", "/v1/files", [("Transfer-Encoding", "chunked")])
        writer.write(head + b"5\r\nhello\r\n")
        await _until(lambda: b"hello" in wire.received)
        writer.close()
        await wire.lost.wait()
    assert not bytes(wire.received).endswith(b"0\r\n\r\n")


async def test_a_malformed_upload(open_door: Serving) -> None:
    """Where chunks are malformed half-way, the upstream's connection is cut."""
    async with serving_wire(None) as wire, open_door(wire.url) as server:
        reader, writer = await connect(server.url)
        head = request("POST", "/v1/files", [("Transfer-Encoding", "chunked")])
        writer.write(head + b"5\r\nhello\r\n")
        await _until(lambda: b"hello" in wire.received)
        writer.write(b"zz\r\n")
        assert parse(await reader.read()).status == 400
        await wire.lost.wait()
        writer.close()
    assert not bytes(wire.received).endswith(b"0\r\n\r\n")


async def test_expect_continue(gateway: str, upstream: Demo, enforcing: str) -> None:
    """A client that waits for 100 Continue before its body gets it."""
    reader, writer = await connect(gateway)
    headers = [("x-usagepanda-api-key", enforcing), ("Expect", "100-continue")]
    length = [("Content-Length", str(len(CHAT_WITH_USER)))]
    writer.write(request("POST", "/v1/chat/completions", headers + length))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(CHAT_WITH_USER)
    assert parse(await reader.read()).status == 200
    writer.close()
    assert upstream.app.record[0].header(b"expect") == ""


async def test_an_offer_of_http2(gateway: str, upstream: Demo, enforcing: str) -> None:
    """The gateway ignores the offer, as servers may, and judges the request by its body."""
    headers = [
        ("x-usagepanda-api-key", enforcing),
        ("Connection", "Upgrade, HTTP2-Settings"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA"),
    ]
    reader, writer = await connect(gateway)
    for body, status in [(CHAT_WITH_USER, 200), (CHAT, 422), (CHAT_WITH_USER, 200)]:
        data = request("POST", "/v1/chat/completions", headers, body)
        data = data.replace(b"Connection: close\r\n", b"")
        for piece in (data[:100], data[100:-20], data[-20:]):
            writer.write(piece)
            await asyncio.sleep(0.01)
        head = await reader.readuntil(b"\r\n\r\n")
        response = parse(head)
        assert response.status == status
        await reader.readexactly(int(response.all("content-length")[0]))
    writer.close()
    assert [bytes(received.body) for received in upstream.app.record] == [CHAT_WITH_USER] * 2
    assert upstream.app.record[0].header(b"http2-settings") == ""


@pytest.mark.parametrize("stream", [b"true", b"false"])
async def test_a_client_that_leaves(serving: Serving, enforcing: str, stream: bytes) -> None:
    """The upstream request of a client that leaves is cancelled at once, in a stream or before the
    answer has begun.
    """
    body = CHAT_WITH_USER.replace(b'"m"', b'"demo-slow","stream":' + stream, 1)
    gate = asyncio.Semaphore(0)
    pause = 0.0 if stream == b"true" else 3600.0
    async with (
        serving_demo(gate=gate, pause_slow=pause) as demo,
        serving(demo.url) as server,
    ):
        reader, writer = await connect(server.url)
        key = ("x-usagepanda-api-key", enforcing)
        writer.write(request("POST", "/v1/chat/completions", [key], body))
        if stream == b"true":
            await reader.readuntil(b"data: ")
        else:
            await _until(lambda: len(demo.app.record) == 1 and demo.app.record[0].complete)
        assert demo.app.disconnects == 0
        writer.close()
        await _until(lambda: demo.app.disconnects == 1)


async def test_connections_are_kept(open_door: Serving) -> None:
    """Requests in a row share a connection to the upstream."""
    async with serving_wire() as wire, open_door(wire.url) as server:
        for _ in range(5):
            assert (await post(server.url, "", CHAT)).status == 200
        assert wire.connections == 1


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)
