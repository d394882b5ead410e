"""The example gateways in Node, Go and Java, before a demo upstream and a real policyd."""

import asyncio
import gzip
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.client.test_statuses import BARE, CODE, Status, descriptor, refusing_policyd
from tests.support import conformance, requirements
from tests.support.conformance import Keys, Vector
from tests.support.processes import Policyd, Program
from tests.support.raw_http import CHAT, CHAT_WITH_USER, ask, connect, parse, post, request
from tests.support.silent import SilentProxy
from tests.support.stack import Background, Upstream

FOLDER = Path(__file__).parent
OFF = conformance.Key(mode="off")
ENFORCE = conformance.Key(mode="enforce")
LARGE = CHAT_WITH_USER + b" " * 4 * 2**20


class Client(NamedTuple):
    """An example gateway."""

    program: str
    package: str
    """Debian's package that contains it."""
    built: Path
    command: tuple[str, ...]
    is_exact: bool
    """Whether its HTTP server keeps the order of a denial's headers."""
    refuses: frozenset[str]
    """Vectors whose requests its HTTP server itself rejects."""


CLIENTS = {
    "node": Client(
        *("node", "nodejs", FOLDER / "node/dist/gateway.js"),
        ("node", str(FOLDER / "node/dist/gateway.js")),
        is_exact=True,
        refuses=frozenset(),
    ),
    "go": Client(
        *("go", "golang-go", FOLDER / "go/gateway"),
        (str(FOLDER / "go/gateway"),),
        is_exact=False,  # net/http sorts them.
        refuses=frozenset(),
    ),
    "java": Client(
        *("java", "default-jdk-headless", FOLDER / "java/target/classes/example/Gateway.class"),
        *(("java", "-cp", f"{FOLDER}/java/target/classes:{FOLDER}/java/target/libraries/*"),),
        is_exact=True,
        # A path that leads above the root, and one with a NUL in it.
        refuses=frozenset(
            {"scope/spelling_dots_above_root", "scope/spelling_nul", "scope/ambiguous_nul"}
        ),
    ),
}


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    """A demo upstream."""
    with Background() as background, Upstream(background) as running:
        yield running


@pytest.fixture(scope="session")
def keys(policyd: Policyd) -> Keys:
    return Keys(policyd)


def start(client: Client, policyd: str, upstream: str, timeout: int = 30) -> Program:
    """The gateway as a process. It waits for policyd for at most `timeout` seconds."""
    program = requirements.program(client.program, client.package)
    requirements.file(client.built, "make interop builds it")
    first, *rest = client.command
    words = [program if first == client.program else first, *rest]
    if client.program == "java":
        words.append("example.Gateway")
    where = ("--listen", "127.0.0.1:0", "--policyd", policyd, "--upstream", upstream)
    # A JVM takes its time over the first request.
    where += ("--policy-timeout", str(timeout))
    return Program(*words, *where, ready=r"gateway is ready: (\S+)")


class Gateway(NamedTuple):
    """A gateway that is running."""

    client: Client
    url: str


@pytest.fixture(scope="module", params=CLIENTS)
def gateway(
    request: pytest.FixtureRequest, policyd: Policyd, upstream: Upstream
) -> Iterator[Gateway]:
    client = CLIENTS[request.param]
    server = start(client, policyd.grpc, upstream.url)
    yield Gateway(client, server.match[1])
    assert server.stop() in (0, 143)  # Java's exit status reports the signal.


@conformance.over_http
def test_vectors(
    gateway: Gateway,
    vector: Vector,
    keys: Keys,
    upstream: Upstream,
    record_property: Callable[[str, bool], None],
) -> None:
    """Each gateway passes the conformance vectors."""
    if vector.id in gateway.client.refuses:
        record_property("refused", True)
    conformance.check_over_http(
        *(vector, gateway.url, keys.secret(vector.key), upstream),
        exact=gateway.client.is_exact,
        refused=gateway.client.refuses,
    )


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
def test_behind_a_path_of_the_upstream(
    client: Client, policyd: Policyd, keys: Keys, upstream: Upstream
) -> None:
    """The gateway judges the path that goes upstream, including the part that the operator set."""
    upstream.forget()
    server = start(client, policyd.grpc, f"{upstream.url}/v1/chat")
    headers = [("x-usagepanda-api-key", keys.secret(ENFORCE)), ("Content-Type", "application/json")]
    statuses = [
        asyncio.run(ask(server.match[1], "POST", "/completions?a", headers, body)).status
        for body in (CHAT, CHAT_WITH_USER)
    ]
    assert server.stop() in (0, 143)
    assert statuses == [422, 200]
    assert [received.target for received in upstream.received] == [b"/v1/chat/completions?a"]


def test_a_stream_comes_chunk_by_chunk(gateway: Gateway, keys: Keys, upstream: Upstream) -> None:
    """The client gets the first chunk before the upstream may send the second."""
    body = json.dumps({**json.loads(CHAT_WITH_USER), "stream": True}).encode()
    headers = [("x-usagepanda-api-key", keys.secret(ENFORCE)), ("Content-Type", "application/json")]
    sent = request("POST", "/v1/chat/completions", headers, body)

    async def exchange() -> bytes:
        reader, writer = await connect(gateway.url)
        writer.write(sent)
        first = await asyncio.wait_for(reader.readuntil(b"data: "), 30)
        await asyncio.to_thread(upstream.let_go)
        rest = await reader.read()
        writer.close()
        return first + rest

    upstream.hold()
    response = parse(asyncio.run(exchange()))
    assert response.status == 200
    assert response.is_whole
    assert b"data: [DONE]" in response.body


def test_a_body_that_is_too_large(gateway: Gateway, keys: Keys, upstream: Upstream) -> None:
    """A body over the bound is denied if the key enforces, and forwarded whole in mode off."""
    upstream.forget()
    denied = asyncio.run(post(gateway.url, keys.secret(ENFORCE), LARGE))
    assert denied.status == 413
    assert not upstream.received
    assert asyncio.run(post(gateway.url, keys.secret(OFF), LARGE)).status == 200
    assert [received.length for received in upstream.received] == [len(LARGE)]


def test_a_body_that_breaks_off(gateway: Gateway, keys: Keys, upstream: Upstream) -> None:
    """A body that breaks off is not forwarded, though it is well-formed and has a user so far."""
    upstream.forget()
    headers = [
        ("x-usagepanda-api-key", keys.secret(ENFORCE)),
        ("Content-Length", str(len(CHAT_WITH_USER) + 10)),
    ]
    sent = request("POST", "/v1/chat/completions", headers, CHAT_WITH_USER, framed=False)

    async def exchange() -> bytes:
        reader, writer = await connect(gateway.url)
        writer.write(sent)
        writer.write_eof()
        try:
            return await asyncio.wait_for(reader.read(), 30)
        except ConnectionError:
            return b""
        finally:
            writer.close()

    assert not asyncio.run(exchange()).startswith(b"HTTP/1.1 2")
    assert asyncio.run(post(gateway.url, keys.secret(ENFORCE), CHAT_WITH_USER)).status == 200
    assert len(upstream.received) == 1


def test_a_connection_header_takes_nothing_away(
    gateway: Gateway, keys: Keys, upstream: Upstream
) -> None:
    """Headers that a decision rests on are forwarded, though Connection names them."""
    upstream.forget()
    headers = [
        ("Connection", "content-encoding, content-type"),
        ("Content-Encoding", "gzip"),
        ("Content-Type", "application/json"),
        ("x-usagepanda-api-key", keys.secret(ENFORCE)),
    ]
    body = gzip.compress(CHAT_WITH_USER)
    response = asyncio.run(ask(gateway.url, "POST", "/v1/chat/completions", headers, body))
    (received,) = upstream.received
    assert bytes(received.body) == body
    assert received.header(b"content-encoding") == "gzip"
    assert received.header(b"content-type") == "application/json"
    assert response.status == 200


def test_preflight(gateway: Gateway, upstream: Upstream) -> None:
    """The gateway answers OPTIONS before any authentication."""
    upstream.forget()
    response = asyncio.run(ask(gateway.url, "OPTIONS", "/v1/chat/completions"))
    assert response.status == 200
    assert response.all("access-control-allow-headers") == ["*, Authorization"]
    assert not upstream.received


def test_denials_name_their_decision(gateway: Gateway, keys: Keys) -> None:
    """A denial names its decision's ID in a header after those of docs/contract.md, section 4."""
    response = asyncio.run(post(gateway.url, keys.secret(ENFORCE), CHAT))
    (decision_id,) = response.all("x-request-id")
    assert len(decision_id) == 32
    place = [name.lower() for name, _ in response.headers].index("x-request-id")
    assert place > 3 or not gateway.client.is_exact


def test_other_protocols(gateway: Gateway, keys: Keys, upstream: Upstream) -> None:
    """The gateway neither accepts nor forwards an offer of h2c, as Java's own client makes it."""
    upstream.forget()
    offer = [("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA")]
    headers = [("Connection", "Upgrade, HTTP2-Settings"), *offer]
    response = asyncio.run(post(gateway.url, keys.secret(ENFORCE), CHAT_WITH_USER, *headers))
    assert response.status == 200
    (received,) = upstream.received
    names = {name for name, _ in received.headers}
    assert not names & {b"upgrade", b"http2-settings"}


def test_websockets(gateway: Gateway, keys: Keys, upstream: Upstream) -> None:
    """The gateway denies a WebSocket upgrade with 426, and names the protocol that it speaks."""
    upstream.forget()
    lines = (
        *("GET /v1/realtime HTTP/1.1", "Host: x", "Connection: Upgrade", "Upgrade: WebSocket"),
        *(f"x-usagepanda-api-key: {keys.secret(OFF)}", "", ""),
    )

    async def exchange() -> bytes:
        reader, writer = await connect(gateway.url)
        writer.write("\r\n".join(lines).encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        writer.close()
        return head

    denial = parse(asyncio.run(exchange()))
    assert denial.status == 426
    assert denial.all("upgrade") == ["HTTP/1.1"]
    assert "Upgrade" in denial.all("connection")
    assert not upstream.received


@pytest.mark.parametrize("name", CLIENTS)
def test_without_policyd(
    name: str, upstream: Upstream, keys: Keys, unused_port: Callable[[], int]
) -> None:
    """While policyd is away nothing is forwarded, and the denial tells the client to try again."""
    upstream.forget()
    server = start(CLIENTS[name], f"127.0.0.1:{unused_port()}", upstream.url, timeout=1)
    for body in (CHAT, CHAT_WITH_USER):
        response = asyncio.run(post(server.match[1], keys.secret(OFF), body))
        assert response.status == 503
        assert json.loads(response.body)["error"]["type"] == "server_error"
        assert response.all("retry-after") == ["1"]
    assert not upstream.received
    server.stop()


@pytest.mark.parametrize("name", CLIENTS)
def test_no_status_is_an_answer(name: str, upstream: Upstream) -> None:
    """Whatever status a call to policyd ends with, nothing is forwarded; the client may retry."""
    upstream.forget()
    background = Background()
    policyd = refusing_policyd("grpc")
    server = start(CLIENTS[name], background.run(policyd.__aenter__()).target, upstream.url, 3)
    for status in [*BARE, Status(CODE.UNAVAILABLE, "STORE_UNAVAILABLE")]:
        told = ("x-usagepanda-trace-id", descriptor(status).trace_id)
        response = asyncio.run(post(server.match[1], "up-" + "0" * 48, CHAT_WITH_USER, told))
        assert response.status == 503, status
        assert response.all("retry-after") == ["1"]
    assert not upstream.received
    server.stop()
    background.run(policyd.__aexit__(None, None, None))
    background.close()


def ask_until_denied(url: str, key: str) -> list[int]:
    """The statuses of requests sent one after another until one is denied, or for 60 seconds."""
    statuses: list[int] = []
    deadline = time.monotonic() + 60
    while statuses[-1:] != [422] and time.monotonic() < deadline:
        statuses.append(asyncio.run(post(url, key, CHAT)).status)
    assert statuses[-1] == 422
    assert set(statuses) <= {422, 503}
    return statuses


@pytest.mark.parametrize("name", CLIENTS)
def test_a_connection_that_is_lost(
    name: str, policyd: Policyd, keys: Keys, upstream: Upstream
) -> None:
    """A gateway soon reconnects where policyd acknowledges packets but answers nothing."""
    upstream.forget()
    host, _, port = policyd.grpc.rpartition(":")
    with SilentProxy((host, int(port))) as proxy:
        server = start(CLIENTS[name], f"{proxy.host}:{proxy.port}", upstream.url, timeout=1)
        ask_until_denied(server.match[1], keys.secret(ENFORCE))
        proxy.lose()
        assert len(ask_until_denied(server.match[1], keys.secret(ENFORCE))) > 1
        server.stop()
    assert not upstream.received


@pytest.mark.parametrize("name", CLIENTS)
def test_a_restart(name: str, tmp_path: Path, upstream: Upstream) -> None:
    """The gateway finds a restarted policyd again, and forwards nothing in the meantime."""
    upstream.forget()
    policyd = Policyd(tmp_path)
    key = policyd.create_key("enforce")
    server = start(CLIENTS[name], policyd.grpc, upstream.url)
    assert ask_until_denied(server.match[1], key) == [422]
    place = policyd.grpc
    assert policyd.stop() == 0
    policyd = Policyd(tmp_path, "--grpc", place)
    ask_until_denied(server.match[1], key)
    server.stop()
    policyd.stop()
    assert not upstream.received


@pytest.mark.parametrize("name", CLIENTS)
def test_without_upstream(
    name: str, policyd: Policyd, keys: Keys, unused_port: Callable[[], int]
) -> None:
    """Without an upstream, a gateway answers an allowed request 502, and a denied one as always."""
    server = start(CLIENTS[name], policyd.grpc, f"http://127.0.0.1:{unused_port()}")
    passes = asyncio.run(post(server.match[1], keys.secret(ENFORCE), CHAT_WITH_USER))
    denied = asyncio.run(post(server.match[1], keys.secret(ENFORCE), CHAT))
    assert (passes.status, denied.status) == (502, 422)
    server.stop()
