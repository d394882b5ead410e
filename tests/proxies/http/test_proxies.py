"""The proxies that ask policyd over HTTP enforce as its own gateway does.

None forwards a request by accident, and each gives the client the denial's very bytes.
"""

import gzip
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import openai
import pytest

from policyd.demo.received import Received
from tests.proxies.http.conftest import LARGEST, Stack, stack
from tests.support import requirements
from tests.support.raw_http import (
    CHAT,
    CHAT_WITH_USER,
    NO_USER,
    Response,
    ask,
    connect,
    exchange,
    parse,
)
from tests.support.raw_http import request as raw_request
from tests.support.stack import Background

PATH = "/v1/chat/completions"
PROXIES = ("nginx", "haproxy", "caddy")
Pairs = list[tuple[str, str]]


@pytest.fixture(scope="module", params=PROXIES)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, background: Background
) -> Iterator[Stack]:
    """Each proxy in turn."""
    folder = tmp_path_factory.mktemp(request.param)
    with stack(request.param, folder, background) as one:
        yield one


@pytest.fixture
def proxied(running: Stack) -> Stack:
    """A proxy whose upstream has an empty record."""
    running.upstream.forget()
    return running


async def post(
    at: Stack, body: bytes, *headers: tuple[str, str], key: str | None = None, path: str = PATH
) -> Response:
    """Send a chat completion with the key that enforces, or with `key`."""
    pairs = [("x-usagepanda-api-key", key or at.enforced), ("Authorization", "Bearer sk-1")]
    if not any(name == "Content-Type" for name, _ in headers):
        pairs.append(("Content-Type", "application/json"))
    return await ask(at.url, "POST", path, [*pairs, *headers], body)


# How each proxy sends the denial's four headers: as docs/contract.md, section 4, has
# them, or what it changes.
AS_ORDERED = {
    "nginx": ("Content-Type", "Access-Control-Allow-Headers", "Access-Control-Allow-Origin",
              "Access-Control-Allow-Methods"),
    "haproxy": ("Access-Control-Allow-Headers", "Access-Control-Allow-Origin",
                "Access-Control-Allow-Methods", "Content-Type"),
    "caddy": ("Access-Control-Allow-Headers", "Access-Control-Allow-Methods",
              "Access-Control-Allow-Origin", "Content-Type"),
}  # fmt: skip


async def test_a_denial(proxied: Stack) -> None:
    """A denial has the status, headers in their letter case, bytes and ID of docs/contract.md,
    section 4.
    """
    response = await post(proxied, CHAT)
    (identifier,) = response.all("x-request-id")
    assert re.fullmatch("[0-9a-f]{32}", identifier)
    assert (response.status, response.body) == (422, NO_USER)
    wanted = {
        "Access-Control-Allow-Headers": "*",
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Allow-Methods": "OPTIONS,POST,GET",
        "Content-Type": "application/json",
    }
    given = [pair for pair in response.headers if pair[0] in wanted]
    assert dict(given) == wanted
    assert tuple(name for name, _ in given) == AS_ORDERED[proxied.name]
    assert not proxied.upstream.received


async def test_an_allowed_request(proxied: Stack) -> None:
    """An allowed request reaches the upstream unchanged, without a header of ours."""
    trace = ("x-usagepanda-trace-id", "t-1")
    override = ("X-UsagePanda-Enforce-User-IDs", "true")
    response = await post(proxied, CHAT_WITH_USER, trace, override, path=PATH + "?a=%20b")
    assert response.status == 200
    assert response.all("access-control-allow-origin") == ["*"]
    (received,) = proxied.upstream.received
    assert received.target == b"/v1/chat/completions?a=%20b"
    assert bytes(received.body) == CHAT_WITH_USER
    assert received.header(b"authorization") == "Bearer sk-1"
    names = [name for name, _ in received.headers]
    assert not any(name.startswith((b"x-usagepanda", b"x-policyd")) for name in names)


async def test_out_of_scope(proxied: Stack) -> None:
    """A request out of scope is forwarded with its path and query unchanged, given a key."""
    headers = [("x-usagepanda-api-key", proxied.enforced)]
    target = "/v1/models?limit=%31&a"
    assert (await ask(proxied.url, "GET", target, headers)).status == 200
    assert [one.target.decode() for one in proxied.upstream.received] == [target]
    assert (await ask(proxied.url, "GET", target)).status == 403
    assert len(proxied.upstream.received) == 1


def test_streams(proxied: Stack) -> None:
    """The client gets the first chunk of a stream before the upstream sends the second."""
    client = openai.OpenAI(
        base_url=f"{proxied.url}/v1",
        api_key="sk-1",
        max_retries=0,
        default_headers={"x-usagepanda-api-key": proxied.enforced},
    )
    proxied.upstream.hold()
    try:
        with client.chat.completions.create(
            model="m",
            user="u-1",
            stream=True,
            messages=[{"role": "user", "content": "Hello"}],
            timeout=30,
        ) as events:
            first = next(iter(events))
            assert first.choices[0].delta.role == "assistant"
            proxied.upstream.let_go()
            assert sum(1 for _ in events) > 3
    finally:
        proxied.upstream.let_go()
        client.close()


def test_the_official_client(proxied: Stack) -> None:
    """The official client raises the exception of the denial's status, and does not retry."""
    client = openai.OpenAI(
        base_url=f"{proxied.url}/v1",
        api_key="sk-1",
        default_headers={"x-usagepanda-api-key": proxied.enforced},
    )
    with client, pytest.raises(openai.UnprocessableEntityError) as raised:
        client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Hello"}], stream=True
        )
    assert "Config set to block requests without user field" in str(raised.value)
    assert not proxied.upstream.received


FORM = ("Content-Type", "multipart/form-data; boundary=B")
GZIP = ("Content-Encoding", "gzip")
OVERRIDE = "x-usagepanda-enforce-user-ids"


def form(user: str) -> bytes:
    """A form with this user."""
    file = 'Content-Disposition: form-data; name="image"; filename="a.png"\r\n\r\nPNG'
    field = f'Content-Disposition: form-data; name="user"\r\n\r\n{user}'
    return f"--B\r\n{file}\r\n--B\r\n{field}\r\n--B--\r\n".encode()


DENIED: dict[str, tuple[bytes, Pairs, str, int]] = {
    "no body": (b"", [], PATH, 400),
    "JSON cut short": (CHAT_WITH_USER[:-1], [], PATH, 400),
    "an array": (b'[{"user":"u-1"}]', [], PATH, 400),
    "a blank user": (b'{"user":" "}', [], PATH, 422),
    "gzip": (gzip.compress(CHAT), [GZIP], PATH, 422),
    "gzip cut short": (gzip.compress(CHAT_WITH_USER)[:-3], [GZIP], PATH, 400),
    "an unknown coding": (CHAT_WITH_USER, [("Content-Encoding", "compress")], PATH, 415),
    "a form": (form(""), [FORM], "/v1/images/edits", 422),
    "a form cut short": (form("u-1")[:-8], [FORM], "/v1/images/edits", 400),
    "two overrides": (CHAT, [(OVERRIDE, "false"), (OVERRIDE, "true")], PATH, 422),
    "a strange override": (CHAT, [(OVERRIDE, "false, false")], PATH, 422),
    "percent-encoded": (CHAT, [], "/v1/%63hat/%63ompletions", 422),
    "slashes and dots": (CHAT, [], "//v1/x/..//./chat/completions/", 422),
    "capitals": (CHAT, [], "/v1/Chat/Completions", 422),
    "another method named": (CHAT, [("X-Forwarded-Method", "GET")], PATH, 422),
    "another path named": (CHAT, [("X-Forwarded-Uri", "/v1/models")], PATH, 422),
    "named by other headers": (
        CHAT, [("X-Original-Method", "GET"), ("X-Original-URI", "/v1/models")], PATH, 422,
    ),
    "headers for one hop": (CHAT, [("Connection", "X-Forwarded-Method")], PATH, 422),
    "a descriptor": (
        b'{"hasUser":true}', [("Content-Type", "application/vnd.policyd.descriptor+json")], PATH,
        422,
    ),
    "a decision": (CHAT, [("X-Policyd-Decision-Id", "1")], PATH, 422),
    "a path of policyd's": (CHAT, [("X-Policyd-Upstream-Path", "/v1/models")], PATH, 422),
}  # fmt: skip


@pytest.mark.parametrize(("body", "headers", "path", "status"), DENIED.values(), ids=DENIED)
async def test_denied(proxied: Stack, body: bytes, headers: Pairs, path: str, status: int) -> None:
    """A request that does not clearly carry a user is denied, whatever its form."""
    response = await post(proxied, body, *headers, path=path)
    assert response.status == status, response
    assert response.all("content-type") == ["application/json"]
    assert response.body.startswith(b'{"error":{"message":"Usage Panda: ')
    assert not proxied.upstream.received


PASSING: dict[str, tuple[bytes, Pairs, str, str]] = {
    "gzip": (gzip.compress(CHAT_WITH_USER), [GZIP], PATH, PATH),
    "a form": (form("u-1"), [FORM], "/v1/images/edits", "/v1/images/edits"),
    "percent-encoded": (CHAT_WITH_USER, [], "/v1//%63hat/completions/?a=1", f"{PATH}?a=1"),
    "an override": (CHAT, [(OVERRIDE, "False")], PATH, PATH),
    "a large one": (
        CHAT_WITH_USER[:-1] + b',"a":"%s"}' % (b"x" * (LARGEST - 100_000)), [], PATH, PATH,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "headers", "path", "target"), PASSING.values(), ids=PASSING)
async def test_passing(proxied: Stack, body: bytes, headers: Pairs, path: str, target: str) -> None:
    """A request with a user is forwarded, its body unchanged and its path in the canonical form."""
    response = await post(proxied, body, *headers, path=path)
    assert response.status == 200, response
    (received,) = proxied.upstream.received
    assert received.target.decode() == target
    assert received.length == len(body)
    assert body.startswith(bytes(received.body))


async def test_keys(proxied: Stack) -> None:
    """A request without a key, with an unknown one or two different ones is denied with 403."""
    unknown = "up-" + "0" * 48
    json = ("Content-Type", "application/json")
    both = [("x-usagepanda-api-key", proxied.enforced), ("x-usagepanda-api-key", unknown)]
    for headers in ([], [("x-usagepanda-api-key", unknown)], both):
        response = await ask(proxied.url, "POST", PATH, [json, *headers], CHAT_WITH_USER)
        assert response.status == 403
        assert b'"type":"access_denied"' in response.body
    assert not proxied.upstream.received


async def test_bodies_over_the_bound(proxied: Stack) -> None:
    """Such bodies are denied with 413 in OpenAI's shape, with a length or in chunks."""
    body = b'{"user":"u-1","a":"%s"}' % (b"x" * 3 * LARGEST)
    response = await post(proxied, body)
    assert response.status == 413
    assert b"too large" in response.body or b"incomplete" in response.body
    chunked = [("x-usagepanda-api-key", proxied.enforced), ("Transfer-Encoding", "chunked")]
    data = raw_request("POST", PATH, chunked) + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    assert parse(await _answer_until_cut(proxied.url, data)).status == 413
    assert not proxied.upstream.received


async def test_bodies_over_the_bound_where_not_enforced(proxied: Stack) -> None:
    """Such bodies are forwarded whole, as long as the proxy holds them."""
    body = CHAT_WITH_USER[:-1] + b',"a":"%s"}' % (b"x" * (LARGEST * 3 // 2))
    assert (await post(proxied, body, key=proxied.off)).status == 200
    assert [one.length for one in proxied.upstream.received] == [len(body)]


async def _answer_until_cut(url: str, data: bytes) -> bytes:
    """The answer to a request that is answered before it is complete."""
    reader, writer = await connect(url)
    writer.write(data)
    answer = b""
    with suppress(ConnectionError):
        while chunk := await reader.read(65536):
            answer += chunk
    writer.close()
    return answer


async def test_chunked_bodies(proxied: Stack) -> None:
    """A body in chunks is read whole."""
    for body, status in ((CHAT, 422), (CHAT_WITH_USER, 200)):
        headers = [("x-usagepanda-api-key", proxied.enforced), ("Transfer-Encoding", "chunked")]
        pieces = [body[at : at + 7] for at in range(0, len(body), 7)]
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        data = raw_request("POST", PATH, headers) + chunks + b"0\r\n\r\n"
        assert parse(await exchange(proxied.url, data)).status == status
    assert [bytes(one.body) for one in proxied.upstream.received] == [CHAT_WITH_USER]


def over_http_2(at: Stack, target: str, body: bytes) -> tuple[int, bytes]:
    """Send a request for `target` over HTTP/2, as curl speaks it. Gives status and body."""
    program = requirements.program("curl", "curl")
    url = at.proxy.h2_url + target
    done = subprocess.run(
        [
            *(program, "--silent", "--http2-prior-knowledge", "--path-as-is", "--max-time", "60"),
            *("--write-out", "\n%{http_version} %{http_code}", "--data-binary", "@-"),
            *("--header", f"x-usagepanda-api-key: {at.enforced}"),
            *("--header", "Content-Type: application/json", url),
        ],
        input=body,
        capture_output=True,
        check=True,
    )
    answer, _, measured = done.stdout.rpartition(b"\n")
    version, status = measured.split()
    assert version == b"2"
    return int(status), answer


@pytest.mark.parametrize("target", [PATH, "/v1//%63hat/x/../completions?a=1"])
def test_http_2(proxied: Stack, target: str) -> None:
    """Pseudo-headers are judged as a request line is."""
    assert over_http_2(proxied, target, CHAT) == (422, NO_USER)
    assert not proxied.upstream.received
    status, _ = over_http_2(proxied, target, CHAT_WITH_USER)
    assert status == 200
    query = target.partition("?")[1:]
    assert proxied.upstream.received[0].target.decode() == PATH + "".join(query)


@pytest.mark.parametrize("host", ["x", "x?", "x\\v1"])
async def test_whole_urls(proxied: Stack, host: str) -> None:
    """No target that is a whole URL hides its path from the check."""
    key = ("x-usagepanda-api-key", proxied.enforced)
    length = ("Content-Length", str(len(CHAT)))
    data = raw_request("POST", f"http://{host}{PATH}", [key, length]) + CHAT
    data = re.sub(rb"(?i)\r\nHost: [^\r]*", lambda _: b"\r\nHost: " + host.encode(), data)
    assert parse(await exchange(proxied.url, data)).status in (400, 422)
    assert not proxied.upstream.received


async def test_other_protocols(proxied: Stack) -> None:
    """No upstream gets an offer to speak another protocol, whose requests would not be checked."""
    await _ask_for_h2c(proxied)


H2C = "as-h2c"


def sent_up(at: Stack) -> list[Received]:
    """The requests that the upstream got.

    Not what Caddy sends of a request for h2c when its client has left: that may still arrive while
    the next test runs.
    """
    return [one for one in at.upstream.received if not one.target.endswith(H2C.encode())]


async def _ask_for_h2c(at: Stack) -> None:
    upgrade = ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA")
    key = ("x-usagepanda-api-key", at.enforced)
    data = raw_request("GET", f"/v1/models?{H2C}", [key, *upgrade])
    data = data.replace(b"Connection: close", b"Connection: close, Upgrade, HTTP2-Settings")
    # Caddy may accept the offer itself: then it sees into every request.
    ours = 101 if at.name == "caddy" else 200
    assert parse(await _first_bytes(at.url, data)).status == ours
    assert not any(one.header(b"upgrade") for one in at.upstream.received)
    at.upstream.forget()


async def test_clients_that_leave(proxied: Stack) -> None:
    """A request that ends too soon is not forwarded, and harms no other one."""
    key = ("x-usagepanda-api-key", proxied.enforced)
    data = raw_request("POST", PATH, [key, ("Content-Length", "500")]) + CHAT_WITH_USER
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", int(proxied.url.rpartition(":")[2]))) as one:
            one.sendall(data)
    assert (await post(proxied, CHAT)).status == 422
    assert not sent_up(proxied)


async def test_preflight_and_websocket(proxied: Stack) -> None:
    """OPTIONS is answered without a key, and a WebSocket is denied with 426."""
    preflight = await ask(proxied.url, "OPTIONS", PATH)
    assert (preflight.status, preflight.body) == (200, b"{}")
    assert preflight.all("access-control-allow-headers") == ["*, Authorization"]
    upgrade = [("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]
    head = raw_request(
        "GET", "/v1/realtime", [*upgrade, ("Sec-WebSocket-Key", "YWJjZGVmZ2hpamtsbW5vcA==")]
    )
    data = head.replace(b"Connection: close", b"Connection: Upgrade")
    denial = parse(await _first_bytes(proxied.url, data))
    assert denial.status == 426
    # RFC 9110: a 426 names the protocol that the server speaks. Caddy drops that header.
    assert proxied.name == "caddy" or denial.all("upgrade") == ["HTTP/1.1"]
    assert denial.all("content-type") == ["application/json"]
    assert not sent_up(proxied)


async def _first_bytes(url: str, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30) as one:
        one.sendall(data)
        return one.recv(4096)


@pytest.mark.parametrize("name", PROXIES)
async def test_policyd_is_down(name: str, tmp_path: Path, background: Background) -> None:
    """While policyd is down nothing is forwarded: each proxy answers 503 in OpenAI's shape."""
    with stack(name, tmp_path, background) as one:
        assert (await post(one, CHAT_WITH_USER)).status == 200
        one.upstream.forget()
        if name != "caddy":  # With Caddy the gateway waits for policyd.
            await _hangs(one)
        one.policyd.stop()
        for body in (CHAT, CHAT_WITH_USER):
            response = await post(one, body)
            assert response.status == 503
            assert b'"type":"server_error"' in response.body
            assert response.all("retry-after")[0] in {"1", "2", "3"}
        assert not one.upstream.received


async def _hangs(at: Stack) -> None:
    at.policyd.send(signal.SIGSTOP)
    try:
        assert (await post(at, CHAT_WITH_USER)).status == 503
        assert not at.upstream.received
    finally:
        at.policyd.send(signal.SIGCONT)


async def test_forward_auth(tmp_path: Path, background: Background) -> None:
    """Caddy's forward_auth sends no body: where the key enforces nothing in scope is allowed, and
    the answer tells why. Keys are checked all the same.
    """
    with stack("forward_auth", tmp_path, background) as one:
        for body in (CHAT, CHAT_WITH_USER):
            for path in (PATH, "/v1//%63hat/completions"):
                response = await post(one, body, path=path)
                assert response.status == 400
                assert b"body did not come to the policy check" in response.body
        await _ask_for_h2c(one)
        fooled = ("X-Policyd-Upstream-Path", "/v1/models"), ("X-Forwarded-Method", "GET")
        assert (await post(one, CHAT, *fooled)).status == 400
        assert not one.upstream.received
        assert (
            await post(one, CHAT, key=one.off, path="/v1//%63hat/completions?a=1")
        ).status == 200
        models = [("x-usagepanda-api-key", one.enforced)]
        assert (await ask(one.url, "GET", "/v1/models", models)).status == 200
        assert (await ask(one.url, "GET", "/v1/models")).status == 403
        chat, listing = one.upstream.received
        assert chat.target.decode() == f"{PATH}?a=1"
        assert bytes(chat.body) == CHAT
        assert not any(name.startswith(b"x-usagepanda") for name, _ in chat.headers)
        assert listing.target == b"/v1/models"
        one.upstream.forget()
        await _hangs(one)
        one.policyd.stop()
        assert (await ask(one.url, "GET", "/v1/models", models)).status == 503
        assert not one.upstream.received
