"""Where something fails, the client learns what, and nothing is forwarded unchecked."""

import json
import logging
import signal
import socket
from pathlib import Path

import pytest

from gateway.server import Server
from gateway.settings import Settings
from policyd.v1.policy_pb2 import EvaluateRequest, EvaluateResponse
from tests.gateway.conftest import FREE, IN_SESSION, Serving
from tests.support.databases import migrated
from tests.support.processes import Policyd
from tests.support.raw_http import (
    CHAT,
    CHAT_WITH_USER,
    NO_USER,
    Demo,
    Response,
    ask,
    post,
    serving_demo,
    serving_wire,
)

pytestmark = IN_SESSION

OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def nowhere() -> str:
    """An address at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def check(response: Response, status: int, word: str) -> None:
    """Check that the answer is a server error in the shape of section 4."""
    assert response.status == status
    error = json.loads(response.body)["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["type"] == "server_error"
    assert error["message"].startswith("Usage Panda: ")
    assert word in error["message"]
    assert response.headers[:4] == [
        ("Access-Control-Allow-Headers", "*"),
        ("Access-Control-Allow-Origin", "*"),
        ("Access-Control-Allow-Methods", "OPTIONS,POST,GET"),
        ("Content-Type", "application/json"),
    ]


async def test_policyd_is_down(serving: Serving, upstream: Demo, nowhere: str) -> None:
    """The request is denied with 503 and Retry-After, in scope and out of it."""
    async with serving(upstream.url, policyd=nowhere, policy_timeout=0.5) as server:
        for method, target in [("POST", "/v1/chat/completions"), ("GET", "/v1/models")]:
            response = await ask(server.url, method, target, [], CHAT_WITH_USER)
            check(response, 503, "policy service")
            assert response.all("retry-after")[0] in {"1", "2", "3"}
    assert not upstream.app.record


async def test_policyd_is_down_and_that_is_allowed(
    serving: Serving, upstream: Demo, nowhere: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The operator may choose to forward unchecked instead; the log counts such requests."""
    async with serving(
        upstream.url, policyd=nowhere, policy_timeout=0.5, on_policy_error="allow"
    ) as server:
        response = await post(server.url, "", CHAT)
    assert response.status == 200
    assert upstream.targets == ["/v1/chat/completions"]
    (line,) = [record.getMessage() for record in caplog.records if record.name == "gateway"]
    assert "forwarded unchecked (1 so far)" in line


@pytest.mark.slow
async def test_policyd_hangs_and_comes_back(tmp_path: Path, upstream: Demo) -> None:
    """While policyd is stopped requests are denied; once it goes on, they are judged again."""
    policyd = Policyd(migrated(tmp_path))
    key = policyd.create_key("enforce")
    settings = Settings(
        listen=FREE, upstream=upstream.url, policyd=policyd.grpc, policy_timeout=0.5
    )
    async with Server(settings) as server:
        assert (await post(server.url, key, CHAT)).body == NO_USER
        policyd.send(signal.SIGSTOP)
        for body in (CHAT, CHAT_WITH_USER):
            check(await post(server.url, key, body), 503, "policy service")
        assert not upstream.app.record
        policyd.send(signal.SIGCONT)
        while (response := await post(server.url, key, CHAT)).status == 503:
            pass
        assert response.body == NO_USER
        policyd.send(signal.SIGKILL)
        policyd.wait()
        check(await post(server.url, key, CHAT_WITH_USER), 503, "policy service")
    assert not upstream.app.record


async def test_an_answer_that_is_no_decision(upstream: Demo) -> None:
    """An answer without a decision counts as no decision: the request is denied."""

    async def nothing(_: EvaluateRequest) -> EvaluateResponse:
        return EvaluateResponse()

    async with Server(Settings(listen=FREE, upstream=upstream.url), nothing) as server:
        check(await post(server.url, "", CHAT_WITH_USER), 503, "policy service")
    assert not upstream.app.record


async def test_a_fault_of_the_gateway(upstream: Demo, caplog: pytest.LogCaptureFixture) -> None:
    """A fault of the gateway answers 500, and the log has the traceback."""

    async def fail(_: EvaluateRequest) -> EvaluateResponse:
        raise ZeroDivisionError

    async with Server(Settings(listen=FREE, upstream=upstream.url), fail) as server:
        check(await post(server.url, "", CHAT_WITH_USER), 500, "log")
    assert not upstream.app.record
    assert "ZeroDivisionError" in caplog.text


async def test_what_policyd_is_told(upstream: Demo) -> None:
    """policyd gets a descriptor, but never the Authorization, the other headers or the body."""
    asked: list[EvaluateRequest] = []

    async def listen(descriptor: EvaluateRequest) -> EvaluateResponse:
        asked.append(descriptor)
        return EvaluateResponse()

    async with Server(Settings(listen=FREE, upstream=upstream.url), listen) as server:
        headers = [
            ("Authorization", "Bearer sk-secret"),
            ("User-Agent", "agent" * 100),
            ("OpenAI-Organization", "org-1"),
            ("X-Request-Id", "r-1"),
            ("X-UsagePanda-Trace-ID", "t-1"),
            ("x_usagepanda_enforce_user_ids", "false"),
            ("X-Forwarded-For", "203.0.113.9"),
        ]
        await post(server.url, "up-1", CHAT_WITH_USER, *headers)
        await ask(server.url, "POST", "/v1/files", headers, CHAT_WITH_USER)
    told = asked[0]
    assert [(header.name, header.value) for header in told.headers] == [
        ("x-usagepanda-api-key", "up-1"),
        ("x-usagepanda-trace-id", "t-1"),
    ]
    assert (told.method, told.path, told.model) == ("POST", "/v1/chat/completions", "m")
    assert (told.user, told.user_state, told.safety_identifier_state) == ("u-1", 1, 2)
    assert (told.source_ip, told.organization, told.request_id) == ("127.0.0.1", "org-1", "r-1")
    assert told.user_agent == ("agent" * 100)[:256]
    for descriptor in asked:
        assert b"sk-secret" not in descriptor.SerializeToString()
        assert b"Hello" not in descriptor.SerializeToString()
    assert asked[1].user_state == 0
    assert not asked[1].HasField("user")


async def test_upstream_is_down(open_door: Serving, nowhere: str) -> None:
    """The client gets 502, and the log names the upstream's address."""
    async with open_door(f"http://{nowhere}") as server:
        check(await post(server.url, "", CHAT_WITH_USER), 502, "cannot be reached")


async def test_upstream_has_no_address(open_door: Serving) -> None:
    """The client gets 502."""
    async with open_door("http://upstream.invalid") as server:
        check(await post(server.url, "", CHAT_WITH_USER), 502, "cannot be reached")


async def test_upstream_is_slow(open_door: Serving) -> None:
    """The client gets 504 where the upstream does not begin its answer in time."""
    async with serving_wire(None) as wire, open_door(wire.url, first_byte_timeout=0.1) as server:
        check(await post(server.url, "", CHAT_WITH_USER), 504, "too long to begin")
        await wire.lost.wait()


async def test_upstream_is_slow_to_connect(open_door: Serving) -> None:
    """The client gets 504 if the upstream, with its queue full, does not accept in time."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        crowd = [socket.socket() for _ in range(8)]
        for one in crowd:
            one.setblocking(False)
            one.connect_ex(address)
        url = f"http://127.0.0.1:{address[1]}"
        async with open_door(url, connect_timeout=0.1) as server:
            check(await post(server.url, "", CHAT_WITH_USER), 504, "accept a connection")
        for one in crowd:
            one.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n",
        OK + b"X: a\x01b\r\nContent-Length: 0\r\n\r\n",
        OK + b"Content-Length: x\r\n\r\n",
    ],
)
async def test_upstream_does_not_answer_in_http(open_door: Serving, answer: bytes) -> None:
    """The client gets 502."""
    async with serving_wire(answer, cut=True) as wire, open_door(wire.url) as server:
        check(await post(server.url, "", CHAT_WITH_USER), 502, "upstream API")


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 10\r\n\r\nhalf",
        OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ],
)
async def test_upstream_breaks_off(
    open_door: Serving, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets what there is and then a cut, never a clean end; the log gets one line."""
    caplog.set_level(logging.INFO)
    async with serving_wire(answer, cut=True) as wire, open_door(wire.url) as server:
        response = await post(server.url, "", CHAT_WITH_USER)
    assert (response.status, response.body) == (200, b"half")
    assert not response.is_whole
    lines = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    assert len(lines) == 1
    assert "broke off" in lines[0]


async def test_a_broken_stream(serving: Serving, enforcing: str) -> None:
    """A broken stream of events is cut likewise."""
    body = CHAT_WITH_USER.replace(b'"m"', b'"demo-broken-stream","stream":true', 1)
    async with serving_demo() as demo, serving(demo.url) as server:
        response = await post(server.url, enforcing, body)
    assert response.status == 200
    assert response.body.startswith(b"data: ")
    assert not response.is_whole
