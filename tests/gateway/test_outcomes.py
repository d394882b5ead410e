"""The gateway reports the outcome of each allowed request; the client's bytes stay as they are.

A real gateway, between real upstreams and a real gRPC server.
"""

import asyncio
import gzip
import hashlib
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
import pytest_asyncio

from gateway import answer_reader
from gateway.server import Server
from gateway.settings import Settings
from policyd.command.address import Address
from policyd.v1.policy_pb2 import (
    ENDING_CLIENT_LEFT,
    ENDING_COMPLETE,
    ENDING_NO_ANSWER,
    ENDING_UNSPECIFIED,
    ENDING_UPSTREAM_BROKE,
    Outcome,
)
from tests.support.raw_http import (
    CHAT,
    CHAT_WITH_USER,
    Demo,
    Response,
    ask,
    connect,
    post,
    request,
    serving_demo,
    serving_wire,
)
from tests.support.reports import (
    Recorder,
    chat,
    check_times,
    encode,
    load,
    make_recorder,
    tokens,
)
from tests.support.waiting import until

JSON = "Content-Type: application/json"
EVENTS = "Content-Type: text/event-stream"
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
ANSWER = {"id": "chatcmpl-1", "object": "chat.completion", "model": "m-1", "choices": []}


@pytest_asyncio.fixture
async def policyd() -> AsyncIterator[Recorder]:
    recorder = await make_recorder()
    async with recorder.serving():
        yield recorder


@pytest_asyncio.fixture
async def demo() -> AsyncIterator[Demo]:
    async with serving_demo() as running:
        yield running


def gateway(policyd: Recorder, upstream: str, **settings: Any) -> Server:
    """A gateway between the two."""
    listen = Address("127.0.0.1", 0)
    given: dict[str, Any] = {"policyd": policyd.address, "policy_timeout": 30.0} | settings
    return Server(Settings(upstream=upstream, listen=listen, **given))


async def reported(policyd: Recorder) -> Outcome:
    """The one outcome, which belongs to the one decision."""
    await until(lambda: bool(policyd.outcomes))
    (outcome,) = policyd.outcomes
    assert [outcome.decision_id] == policyd.allowed
    return outcome


def http(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """An answer, as an upstream writes it."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def through(
    policyd: Recorder, answer: bytes, *, cut: bool = False
) -> tuple[Response, Outcome]:
    """What the client gets of an upstream's answer, and the outcome that the gateway reports."""
    async with serving_wire(answer, cut=cut) as wire, gateway(policyd, wire.url) as server:
        response = await post(server.url, policyd.key, CHAT_WITH_USER)
        return response, await reported(policyd)


# Answers


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a b c"}]}),
        ("/v1/completions", {"prompt": "a b c"}),
        ("/v1/responses", {"input": "a b c"}),
        ("/v1/embeddings", {"input": "a b c"}),
        ("/v1/images/generations", {"prompt": "a b c"}),
    ],
)
async def test_an_answer(
    policyd: Recorder, demo: Demo, target: str, fields: dict[str, object]
) -> None:
    """Every endpoint's ID, model and tokens are reported as the client reads them."""
    body = encode({"model": "gpt-4o-mini", "user": "u-1", **fields})
    pairs = [("x-usagepanda-api-key", policyd.key), ("Content-Type", "application/json")]
    async with gateway(policyd, demo.url) as server:
        response = await ask(server.url, "POST", target, pairs, body)
        outcome = await reported(policyd)
    answer = json.loads(response.body)
    usage = answer.get("usage", {})
    assert outcome.ending == ENDING_COMPLETE
    assert outcome.http_status == response.status == 200
    assert outcome.openai_id == answer.get("id", *response.all("x-request-id"))
    assert outcome.model == answer.get("model", "")
    assert outcome.organization == "policyd-demo"
    given = usage.get("prompt_tokens", usage.get("input_tokens"))
    generated = usage["total_tokens"] - given if usage else None
    assert tokens(outcome)[:2] == (given, generated)
    check_times(outcome)


async def test_what_the_descriptor_tells_policyd(policyd: Recorder, demo: Demo) -> None:
    """The descriptor carries everything that the log shows of the request itself."""
    headers = [
        ("x-usagepanda-trace-id", "t-1"),
        ("User-Agent", "agent/1"),
        ("OpenAI-Organization", "org-1"),
        ("X-Request-Id", "r-1"),
    ]
    async with gateway(policyd, demo.url) as server:
        await post(server.url, policyd.key, chat("gpt-4o-mini"), *headers)
    (decision,) = policyd.decisions
    assert decision.model == "gpt-4o-mini"
    assert decision.end_user == "u-1"
    assert decision.source_ip == "127.0.0.1"
    assert decision.user_agent == "agent/1"
    assert decision.organization == "org-1"
    assert decision.request_id == "r-1"
    assert decision.trace_id == "t-1"


async def test_out_of_scope(policyd: Recorder, demo: Demo) -> None:
    """A request out of scope is decided, and so reported, as well."""
    async with gateway(policyd, demo.url) as server:
        pairs = [("x-usagepanda-api-key", policyd.key)]
        response = await ask(server.url, "GET", "/v1/models", pairs)
        outcome = await reported(policyd)
    assert [outcome.openai_id] == response.all("x-request-id")
    assert (outcome.http_status, outcome.ending) == (200, ENDING_COMPLETE)
    assert tokens(outcome) == (None, None, None)


@pytest.mark.parametrize("status", [429, 500])
async def test_an_error(policyd: Recorder, demo: Demo, status: int) -> None:
    """An upstream's error is an answer too; its ID is the request's."""
    async with gateway(policyd, demo.url) as server:
        response = await post(server.url, policyd.key, chat(f"demo-error-{status}"))
        outcome = await reported(policyd)
    assert response.status == outcome.http_status == status
    assert outcome.ending == ENDING_COMPLETE
    assert [outcome.openai_id] == response.all("x-request-id")
    assert tokens(outcome) == (None, None, None)


async def test_times(policyd: Recorder, demo: Demo) -> None:
    """The outcome shows how slow the upstream was, until its first byte and until its last."""
    demo.app.pause_slow = 0.3
    async with gateway(policyd, demo.url) as server:
        await post(server.url, policyd.key, chat("demo-slow"))
        slow = await reported(policyd)
        demo.app.pause = 0.02
        await post(server.url, policyd.key, chat(stream=True))
        await until(lambda: len(policyd.outcomes) == 2)
    assert slow.time_to_first_byte.ToMilliseconds() >= 290
    stream = policyd.outcomes[1]
    assert stream.duration.ToMilliseconds() - stream.time_to_first_byte.ToMilliseconds() >= 200


async def test_strange_headers(policyd: Recorder) -> None:
    """A header that is no text, or too long, is reported as far as possible."""
    body = encode({"usage": USAGE})
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Request-Id: r-\xff\r\n"
    head += b"OpenAI-Organization: " + b"o" * 1000 + b"\r\nContent-Length: %d\r\n\r\n" % len(body)
    response, outcome = await through(policyd, head + body)
    assert response.body == body
    assert outcome.openai_id == "r-?"
    assert outcome.organization == "o" * 256
    assert tokens(outcome) == (7, 5, None)


# Streams


@pytest.mark.parametrize("target", ["chat/completions", "completions", "responses"])
@pytest.mark.parametrize("with_usage", [True, False])
async def test_a_stream(policyd: Recorder, demo: Demo, target: str, with_usage: bool) -> None:
    """The ID and model of a stream are always reported, its tokens where it counts them."""
    asked = {
        "messages": [{"content": "a b c"}],
        "prompt": "a b c",
        "input": "a b c",
        "stream": True,
    }
    options = {"stream_options": {"include_usage": True}} if with_usage else {}
    body = encode({"model": "gpt-4o-mini", "user": "u-1", **asked, **options})
    pairs = [("x-usagepanda-api-key", policyd.key), ("Content-Type", "application/json")]
    async with gateway(policyd, demo.url) as server:
        response = await ask(server.url, "POST", f"/v1/{target}", pairs, body)
        outcome = await reported(policyd)
    lines = [line[6:] for line in response.body.split(b"\n") if line.startswith(b"data: {")]
    last = json.loads(lines[-1])
    answer = last.get("response", last)
    assert outcome.openai_id == answer["id"]
    assert outcome.model == answer["model"] == "gpt-4o-mini"
    assert outcome.ending == ENDING_COMPLETE
    if with_usage or target == "responses":
        total = answer["usage"]["total_tokens"]
        assert tokens(outcome)[0] == 3
        assert tokens(outcome)[1] == total - 3 > 0
    else:
        assert tokens(outcome) == (None, None, None)
    check_times(outcome)


@pytest.mark.parametrize("coding", ["gzip", "x-unknown"])
@pytest.mark.parametrize("kind", [JSON, EVENTS])
async def test_a_compressed_answer(policyd: Recorder, coding: str, kind: str) -> None:
    """A compressed answer reaches the client unchanged, and is read where the coding is known."""
    document = encode({**ANSWER, "usage": USAGE})
    packed = gzip.compress(document if kind is JSON else b"data: %s\n\n" % document)
    answer = http(packed, kind, f"Content-Encoding: {coding}", "X-Request-Id: r-1")
    response, outcome = await through(policyd, answer)
    assert response.body == packed
    assert response.all("content-encoding") == [coding]
    if coding == "gzip":
        assert (outcome.openai_id, *tokens(outcome)) == ("chatcmpl-1", 7, 5, None)
    else:
        assert (outcome.openai_id, *tokens(outcome)) == ("r-1", None, None, None)


@pytest.mark.parametrize(
    "usage",
    [
        *(None, 7, "7", [], [[[]]], {}, {"prompt_tokens": {}}),
        {"prompt_tokens": -1, "completion_tokens": 10**30},
        {"prompt_tokens": "7", "completion_tokens": [5]},
        {"prompt_tokens": {"a": {"b": [1] * 1000}}, "completion_tokens": 1e308},
    ],
    ids=lambda usage: repr(usage)[:30],
)
@pytest.mark.parametrize("kind", [JSON, EVENTS])
async def test_hostile_usage(policyd: Recorder, usage: object, kind: str) -> None:
    """A value that is no count is unknown; the answer is passed on, and the rest reported."""
    document = encode({**ANSWER, "usage": usage})
    body = document if kind is JSON else b"data: %s\n\ndata: [DONE]\n\n" % document
    response, outcome = await through(policyd, http(body, kind))
    assert response.body == body
    assert outcome.openai_id == "chatcmpl-1"
    assert tokens(outcome) == (None, None, None)


async def test_what_is_not_what_it_says(policyd: Recorder) -> None:
    """An answer that is no JSON is passed on, and only its status is known."""
    for body in (b"<html>", b"{" * 100_000, b"\xff\xfe\x00", b""):
        policyd.batches.clear()
        policyd.decisions.clear()
        response, outcome = await through(policyd, http(body, JSON, status="201 Created"))
        assert response.body == body
        assert (outcome.http_status, outcome.openai_id, outcome.model) == (201, "", "")


async def test_a_fault_in_reading(
    policyd: Recorder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in reading an answer costs the client nothing: it is logged, the rest reported."""
    monkeypatch.setattr(answer_reader, "END", "no number")
    body = encode({**ANSWER, "usage": USAGE})
    response, outcome = await through(policyd, http(body, JSON, "X-Request-Id: r-1"))
    assert response.body == body
    assert response.is_whole
    assert (outcome.openai_id, outcome.ending) == ("r-1", ENDING_COMPLETE)
    assert "it could not read an answer, but passed it on" in caplog.text


async def test_a_huge_answer(policyd: Recorder) -> None:
    """A huge answer is passed on as it arrives, in little memory, and its ends are read."""
    piece = b'"%s",' % (b"x" * 65529)
    count = 1000
    head, tail = encode(ANSWER)[:-2], b'""],"usage":' + encode(USAGE) + b"}"
    length = len(head) + count * len(piece) + len(tail)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(CHAT_WITH_USER)
        writer.write(http(b"", JSON).replace(b"h: 0", b"h: %d" % length) + head)
        for _ in range(count):
            writer.write(piece)
            await writer.drain()
        writer.write(tail)
        await writer.drain()
        writer.close()

    upstream = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{upstream.sockets[0].getsockname()[1]}"
    headers = [("x-usagepanda-api-key", policyd.key), ("Content-Type", "application/json")]
    async with upstream, gateway(policyd, url) as server:
        tracemalloc.start()
        try:
            reader, writer = await connect(server.url)
            writer.write(request("POST", "/v1/chat/completions", headers, CHAT_WITH_USER))
            await reader.readuntil(b"\r\n\r\n")
            digest = hashlib.sha256()
            while chunk := await reader.read(65536):
                digest.update(chunk)
            writer.close()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        outcome = await reported(policyd)
    assert digest.digest() == hashlib.sha256(head + piece * count + tail).digest()
    assert peak < 8 * 2**20 < length
    assert (outcome.openai_id, outcome.model) == ("chatcmpl-1", "m-1")
    assert tokens(outcome) == (7, 5, None)


# Other endings


async def test_the_client_leaves(policyd: Recorder, demo: Demo) -> None:
    """When the client leaves in the middle of a stream, what is known by then is reported."""
    demo.app.gate = asyncio.Semaphore(0)
    headers = [("x-usagepanda-api-key", policyd.key), ("Content-Type", "application/json")]
    async with gateway(policyd, demo.url) as server:
        reader, writer = await connect(server.url)
        writer.write(request("POST", "/v1/chat/completions", headers, chat(stream=True)))
        await reader.readuntil(b"data: ")
        assert not policyd.outcomes
        writer.close()
        outcome = await reported(policyd)
    assert outcome.ending == ENDING_CLIENT_LEFT
    assert outcome.http_status == 200
    assert outcome.openai_id.startswith("chatcmpl-")
    assert outcome.model == "gpt-4o-mini"
    check_times(outcome)


async def test_the_client_leaves_before_an_answer(policyd: Recorder, demo: Demo) -> None:
    """The outcome has no status and no first byte if the client leaves before an answer."""
    demo.app.pause_slow = 60
    headers = [("x-usagepanda-api-key", policyd.key), ("Content-Type", "application/json")]
    async with gateway(policyd, demo.url) as server:
        _, writer = await connect(server.url)
        writer.write(request("POST", "/v1/chat/completions", headers, chat("demo-slow")))
        await until(lambda: bool(demo.app.record and demo.app.record[0].complete))
        writer.close()
        outcome = await reported(policyd)
    assert outcome.ending == ENDING_CLIENT_LEFT
    assert outcome.http_status == 0
    assert not outcome.HasField("time_to_first_byte")


async def test_the_client_leaves_in_an_upload(policyd: Recorder, demo: Demo) -> None:
    """The outcome of an upload that its client leaves has no status."""
    headers = [("x-usagepanda-api-key", policyd.key), ("Content-Length", "1000000")]
    async with gateway(policyd, demo.url) as server:
        _, writer = await connect(server.url)
        writer.write(request("POST", "/v1/files", headers, b"x" * 1000, framed=False))
        await until(lambda: bool(demo.app.record and demo.app.record[0].length == 1000))
        writer.close()
        outcome = await reported(policyd)
    assert (outcome.ending, outcome.http_status) == (ENDING_CLIENT_LEFT, 0)


async def test_the_upstream_breaks_off(policyd: Recorder, demo: Demo) -> None:
    """The outcome of a stream that breaks off names the upstream as its end."""
    async with gateway(policyd, demo.url) as server:
        body = chat("demo-broken-stream", stream=True)
        response = await post(server.url, policyd.key, body)
        outcome = await reported(policyd)
    assert not response.is_whole
    assert outcome.ending == ENDING_UPSTREAM_BROKE
    assert (outcome.http_status, outcome.model) == (200, "demo-broken-stream")
    check_times(outcome)


async def test_the_upstream_breaks_off_its_json(policyd: Recorder) -> None:
    """The beginning of a broken answer is not trusted: only the request's ID is known."""
    body = encode({**ANSWER, "usage": USAGE})
    answer = http(body, JSON, "X-Request-Id: r-1")[:-10]
    response, outcome = await through(policyd, answer, cut=True)
    assert not response.is_whole
    assert (outcome.ending, outcome.openai_id) == (ENDING_UPSTREAM_BROKE, "r-1")
    assert tokens(outcome) == (None, None, None)


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH\r\n\r\n"])
async def test_the_upstream_gives_no_answer(policyd: Recorder, answer: bytes) -> None:
    """The client gets the gateway's error, which is not the upstream's status."""
    response, outcome = await through(policyd, answer, cut=True)
    assert response.status == 502
    assert (outcome.ending, outcome.http_status) == (ENDING_NO_ANSWER, 0)
    assert not outcome.HasField("time_to_first_byte")


async def test_the_upstream_is_gone(policyd: Recorder, unused_port: Callable[[], int]) -> None:
    """The client gets the gateway's error, which is not the upstream's status."""
    async with gateway(policyd, f"http://127.0.0.1:{unused_port()}") as server:
        response = await post(server.url, policyd.key, CHAT_WITH_USER)
        outcome = await reported(policyd)
    assert response.status == 502
    assert (outcome.ending, outcome.http_status) == (ENDING_NO_ANSWER, 0)


async def test_the_gateway_is_stopped(policyd: Recorder, demo: Demo) -> None:
    """The gateway cuts what lasts too long, and reports that as its own doing before it ends."""
    demo.app.gate = asyncio.Semaphore(0)
    headers = [("x-usagepanda-api-key", policyd.key), ("Content-Type", "application/json")]
    async with gateway(policyd, demo.url, grace=1) as server:
        reader, writer = await connect(server.url)
        writer.write(request("POST", "/v1/chat/completions", headers, chat(stream=True)))
        await reader.readuntil(b"data: ")
    writer.close()
    (outcome,) = policyd.outcomes
    assert (outcome.ending, outcome.http_status) == (ENDING_UNSPECIFIED, 200)


# Which requests are reported, and when


async def test_denied_and_undecided_requests(policyd: Recorder, demo: Demo) -> None:
    """A denied request has no outcome, nor has one that policyd did not decide."""
    async with gateway(policyd, demo.url, on_policy_error="allow", policy_timeout=2.0) as server:
        assert (await post(server.url, policyd.key, CHAT)).status == 422
        assert (await post(server.url, "up-unknown", CHAT_WITH_USER)).status == 403
        policyd.evaluating = grpc.StatusCode.UNAVAILABLE
        assert (await post(server.url, policyd.key, CHAT)).status == 200
        policyd.evaluating = None
        assert (await post(server.url, policyd.key, CHAT_WITH_USER)).status == 200
    assert len(demo.app.record) == 2
    (outcome,) = policyd.outcomes
    assert [outcome.decision_id] == policyd.allowed


async def test_clients_do_not_wait(policyd: Recorder, demo: Demo) -> None:
    """While policyd takes no reports, requests are answered all the same; the reports follow."""
    policyd.gate.clear()
    async with gateway(policyd, demo.url) as server:
        for _ in range(3):
            assert (await post(server.url, policyd.key, CHAT_WITH_USER)).status == 200
            await until(lambda: policyd.calls == 1)
        assert not policyd.outcomes
        policyd.gate.set()
        await until(lambda: len(policyd.outcomes) == 3)
    assert [one.decision_id for one in policyd.outcomes] == policyd.allowed


async def test_an_old_policyd(policyd: Recorder, demo: Demo) -> None:
    """A policyd that does not know outcomes decides as before."""
    policyd.reporting = grpc.StatusCode.UNIMPLEMENTED
    async with gateway(policyd, demo.url) as server:
        for _ in range(3):
            assert (await post(server.url, policyd.key, CHAT_WITH_USER)).status == 200
            await until(lambda: policyd.calls == 1)


async def test_policyd_goes_and_comes_back(demo: Demo) -> None:
    """Under load, every forwarded request is reported in the end."""
    policyd = await make_recorder()
    async with policyd.serving():
        pass  # policyd has an address now.
    async with (
        AsyncExitStack() as at_last,
        gateway(policyd, demo.url, policy_timeout=0.5) as server,
        load(server.url, policyd.key) as statuses,
    ):
        for number in (1, 2, 3):
            async with policyd.serving():
                await until(lambda wanted=20 * number: statuses.count(200) >= wanted)
            refused = statuses.count(503)
            await until(lambda before=refused: statuses.count(503) > before)
        await at_last.enter_async_context(policyd.serving())
        await until(lambda: statuses.count(200) >= 80)
    ids = {one.decision_id for one in policyd.outcomes}
    assert ids <= set(policyd.allowed)
    assert len(ids) == statuses.count(200) == len(demo.app.record)
