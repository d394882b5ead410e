"""The gateway does not hold bodies without a known key.

Those that it holds have a total and a deadline.
"""

import asyncio
import gzip
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from gateway.server import Server
from gateway.settings import Settings
from policyd.descriptor.body_memory import SMALL, Bodies
from policyd.descriptor.describe import HttpRequest, read_attributes
from policyd.descriptor.pieces import Pieces
from policyd.errors import BodiesFull, SettingsError
from policyd.v1.policy_pb2 import DECISION_ALLOW, EvaluateRequest, EvaluateResponse
from tests.gateway.conftest import FREE, IN_SESSION, Serving
from tests.support.raw_http import CHAT_WITH_USER, Demo, connect, parse, post, request, serving_wire

pytestmark = IN_SESSION

PATH = "/v1/chat/completions"
PATIENCE = 30
NOISE = random.Random(9).randbytes(250_000).hex()  # This text compresses to a half.
LARGE = json.dumps({"model": "m", "user": "u-1", "messages": [], "x": NOISE}).encode()
LARGE_WITHOUT_USER = LARGE.replace(b'"user"', b'"abcd"')
Open = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _begin(url: str, key: str, size: int, sent: bytes) -> Open:
    """Send the head of a chat completion, and some of its body."""
    reader, writer = await connect(url)
    head = [("x-usagepanda-api-key", key), ("Content-Length", str(size))]
    writer.write(request("POST", "/v1/chat/completions", head) + sent)
    await writer.drain()
    return reader, writer


async def _answer(reader: asyncio.StreamReader) -> int:
    async with asyncio.timeout(PATIENCE):
        return parse(await reader.readuntil(b"}}")).status


async def test_a_strangers_body_is_not_waited_for(gateway: str, upstream: Demo) -> None:
    """A request with an unknown key is denied once 64 KiB have arrived, not at its end."""
    for sent in (LARGE[: SMALL + 1000], LARGE):
        reader, writer = await _begin(gateway, "up-unknown", 2 * len(LARGE), sent)
        assert await _answer(reader) == 403
        writer.close()
    assert not upstream.app.record


async def test_a_known_keys_body_is_read(
    gateway: str, upstream: Demo, enforcing: str, off: str
) -> None:
    """The body of a known key is judged whole, whatever its size."""
    for coded, headers in (
        (lambda body: body, ()),
        (gzip.compress, (("Content-Encoding", "gzip"),)),
    ):
        code: Callable[[bytes], bytes] = coded
        assert (await post(gateway, enforcing, code(LARGE), *headers)).status == 200
        assert (await post(gateway, enforcing, code(LARGE_WITHOUT_USER), *headers)).status == 422
        assert (await post(gateway, off, code(LARGE_WITHOUT_USER), *headers)).status == 200
    assert len(upstream.app.record) == 4
    reader, writer = await _begin(gateway, enforcing, len(LARGE), LARGE[:-1])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await reader.read(1)
    writer.write(LARGE[-1:])
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_small_bodies_travel_in_one_call(gateway: str, enforcing: str) -> None:
    """A small body needs a single call to policyd, compressed or not."""
    small = gzip.compress(CHAT_WITH_USER)
    assert (await post(gateway, enforcing, small, ("Content-Encoding", "gzip"))).status == 200
    assert (await post(gateway, "up-unknown", small, ("Content-Encoding", "gzip"))).status == 403


async def test_the_total(serving: Serving, demo: Demo, enforcing: str) -> None:
    """The memory of all bodies is bounded: a body beyond it gets 503, and small ones go on."""
    size = 600_000
    async with serving(demo.url, max_body=size, body_memory=3 * size) as server:
        sent = LARGE[:550_000].ljust(550_000)
        held = [await _begin(server.url, enforcing, size, sent) for _ in range(3)]
        async with asyncio.timeout(PATIENCE):
            while server.gateway.held < 3 * len(sent):
                await asyncio.sleep(0.01)
        reader, writer = await _begin(server.url, enforcing, size, sent)
        async with asyncio.timeout(PATIENCE):
            refused = parse(await reader.readuntil(b"}}"))
        assert refused.status == 503
        assert refused.all("retry-after")[0] in {"1", "2", "3"}
        assert (await post(server.url, enforcing, CHAT_WITH_USER)).status == 200
        for _, one in [*held, (reader, writer)]:
            one.close()
        async with asyncio.timeout(PATIENCE):
            while server.gateway.held:
                await asyncio.sleep(0.01)
        assert (await post(server.url, enforcing, LARGE)).status == 200


async def test_a_body_has_a_deadline(serving: Serving, demo: Demo, enforcing: str) -> None:
    """A checked body must be complete by its deadline, though it arrives without a pause."""
    async with serving(demo.url, body_timeout=0.5) as server:
        for sent in (b"", LARGE[: 2 * SMALL]):
            reader, writer = await _begin(server.url, enforcing, 2**25, sent)
            answered = asyncio.create_task(_answer(reader))
            while not answered.done():
                writer.write(b"x" * 1000)
                await asyncio.sleep(0.02)
            assert await answered == 408
            writer.close()


async def test_settings_that_do_not_fit() -> None:
    """One body must fit into the total, as it is sent and decompressed."""
    with pytest.raises(
        SettingsError, match="--body-memory must be at least three times --max-body"
    ):
        Settings(max_body=1000, body_memory=2999)
    assert Settings(max_body=2**30).memory >= 2 * 2**30


Answer = Callable[[EvaluateRequest, object], Awaitable[EvaluateResponse]]


@asynccontextmanager
async def _policyd(check_key: grpc.StatusCode | None) -> AsyncIterator[str]:
    """A policyd that allows everything, and fails CheckKey with a status, or does not know it."""

    async def evaluate(_: EvaluateRequest, __: object) -> EvaluateResponse:
        return EvaluateResponse(decision=DECISION_ALLOW, decision_id="1")

    async def fail(_: bytes, context: Any) -> bytes:
        assert check_key is not None
        await context.abort(check_key, "as the test has it")
        return b""

    known = {
        "Evaluate": grpc.unary_unary_rpc_method_handler(
            evaluate,
            EvaluateRequest.FromString,
            EvaluateResponse.SerializeToString,
        )
    }
    if check_key is not None:
        known["CheckKey"] = grpc.unary_unary_rpc_method_handler(fail)
    server = grpc.aio.server()
    handlers = grpc.method_handlers_generic_handler("policyd.v1.PolicyService", known)
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check_key", "on_policy_error", "status"),
    [
        (None, "deny", 200),
        (grpc.StatusCode.UNAVAILABLE, "deny", 503),
        (grpc.StatusCode.UNAVAILABLE, "allow", 200),
        (grpc.StatusCode.UNAUTHENTICATED, "allow", 503),
        (grpc.StatusCode.INTERNAL, "deny", 503),
    ],
)
async def test_a_policyd_that_does_not_say(
    check_key: grpc.StatusCode | None, on_policy_error: str, status: int
) -> None:
    """An older policyd does not know CheckKey, so the gateway reads the body.

    Any other failure denies the request.
    """
    async with _policyd(check_key) as address, serving_wire() as wire:
        settings = Settings(
            upstream=wire.url, listen=FREE, policyd=address, on_policy_error=on_policy_error
        )
        async with Server(settings) as server:
            assert (await post(server.url, "up-1", LARGE)).status == status


async def test_the_ledger() -> None:
    """Small bodies take nothing from the total; others always give back what they took."""
    bodies = Bodies(40 * SMALL)
    with bodies.hold() as one:
        one.grow(SMALL)
        assert bodies.held == 0
        one.grow(SMALL + 1)
        one.grow(36 * SMALL)
        with bodies.hold() as other, pytest.raises(BodiesFull, match="--body-memory"):
            other.grow(2 * SMALL, 3 * SMALL)
        assert bodies.held == 36 * SMALL
        one.grow(0)
        packed = Pieces(gzip.compress(LARGE))
        compressed = HttpRequest("POST", PATH, "", {"content-encoding": ["gzip"]})
        attributes = await read_attributes(compressed, packed, bodies, one, 2**20)
        assert attributes.user.value == "u-1"
    assert bodies.held == 0
    bodies.close()
