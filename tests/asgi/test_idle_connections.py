"""More connections than a process may have open files stop neither the gateway nor policyd."""

import asyncio
import contextlib
import gzip
import json
import os
import random
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from policyd.client import PolicyClient
from policyd.command.open_files import RESERVE
from policyd.v1.policy_pb2 import DECISION_ALLOW, EvaluateRequest
from tests.support.http_checks import check
from tests.support.processes import Policyd
from tests.support.raw_http import CHAT, CHAT_WITH_USER, ask, connect, post
from tests.support.stack import Background, Gateway, Upstream

pytestmark = pytest.mark.slow  # These tests start servers of their own.

PATIENCE = 30
FILES = 200
MANY = 400
BEGUN = {"silent": b"", "head": b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX: "}
Start = Callable[..., Any]


@asynccontextmanager
async def _held(address: str, count: int, begun: bytes = b"") -> AsyncIterator[None]:
    """Hold connections that send nothing, opened as fast as possible."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    held = []
    try:
        for _ in range(count):
            with contextlib.suppress(OSError):
                held.append((await asyncio.open_connection(host, int(port)))[1])
                held[-1].write(begun)
        yield
    finally:
        for writer in held:
            writer.close()


def _no_fault(errors: list[str]) -> bool:
    told = "".join(errors)
    return "Traceback" not in told and " ERROR " not in told


@pytest.mark.parametrize("begun", BEGUN.values(), ids=BEGUN)
async def test_the_gateway(
    policyd: Policyd, background: Background, start: Start, begun: bytes
) -> None:
    """The gateway answers others while idle connections are held, and warns its operator once."""
    key = policyd.create_key("enforce")
    with Upstream(background) as upstream:
        flags = ("--policy-timeout", "30", "--max-connections", "1000")
        gateway = start(Gateway, policyd.grpc, upstream.url, *flags, files=FILES)
        async with _held(gateway.url, MANY, begun), asyncio.timeout(PATIENCE):
            for _ in range(10):
                assert (await post(gateway.url, key, CHAT_WITH_USER)).status == 200
                assert (await post(gateway.url, key, CHAT)).status == 422
        assert gateway.stop() == 0
    assert _no_fault(gateway.errors)
    told = "".join(gateway.errors)
    assert re.search(r"--max-connections is 1000, but 200 open files leave room for 36", told)
    assert told.count("those that wait longest are closed") == 1


WAIT_FILES = int(os.environ.get("POLICYD_TEST_FILES", str(FILES)))
_STREAM = CHAT_WITH_USER[:-1] + b',"stream":true}'


async def test_requests_that_wait_for_the_upstream(
    policyd: Policyd, background: Background, start: Start
) -> None:
    """The gateway admits as many requests as there are files for, and cuts none of them.

    Others get 503, and probes are answered. POLICYD_TEST_FILES sets how many files there are.
    """
    key = policyd.create_key("enforce")
    room = (WAIT_FILES - RESERVE) // 2
    with Upstream(background) as upstream:
        flags = ("--policy-timeout", "60", "--write-timeout", "60")
        gateway = start(Gateway, policyd.grpc, upstream.url, *flags, files=WAIT_FILES)
        upstream.hold()
        async with asyncio.timeout(2 * PATIENCE):
            held = []
            for _ in range(room):
                reader, writer = await connect(gateway.url)
                writer.write(_CHAT % (key.encode(), len(_STREAM), _STREAM))
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                held.append((reader, writer))
            beyond = await asyncio.gather(*(post(gateway.url, key, _STREAM) for _ in range(60)))
            assert {answer.status for answer in beyond} == {503}
            assert len({answer.all("retry-after")[0] for answer in beyond}) > 1
            async with _held(gateway.url, 50):
                for probe in ("/healthz", "/readyz"):
                    # Silent connections keep a spare place for a moment.
                    while (await ask(gateway.url, "GET", probe)).status == 503:
                        await asyncio.sleep(0.1)
            upstream.let_go()
            for reader, writer in held:
                assert (await reader.readuntil(b"\r\n0\r\n\r\n")).count(b"[DONE]") == 1
                writer.close()
            while (await post(gateway.url, key, _STREAM)).status == 503:
                await asyncio.sleep(0.05)
        assert gateway.stop() == 0
    assert _no_fault(gateway.errors), gateway.errors


async def test_policyd(tmp_path: Path, start: Start) -> None:
    """A caller that is connected goes on, a new one is answered soon, and the log has every
    decision. gRPC closes no connection for another; there, silent connections have a short time.
    """
    flags = ("--http", "127.0.0.1:0", "--head-timeout", "2", "--spool-limit", "65536")
    server = start(Policyd, tmp_path, *flags, files=FILES)
    key = server.create_key("enforce")
    asked = EvaluateRequest(key=key, has_user=True)
    url = f"http://{server.http}"
    async with PolicyClient(server.grpc, timeout=PATIENCE) as client:
        assert (await client.evaluate(asked)).decision == DECISION_ALLOW
        async with _held(server.grpc, MANY), _held(url, MANY), asyncio.timeout(2 * PATIENCE):
            for _ in range(50):
                assert (await client.evaluate(asked)).decision == DECISION_ALLOW
                assert (await check(url, key, CHAT_WITH_USER)).status == 200
            async with PolicyClient(server.grpc, timeout=PATIENCE, on_error="deny") as other:
                while (await other.evaluate(asked)).decision != DECISION_ALLOW:
                    await asyncio.sleep(0.1)
    assert server.stop() == 0
    assert _no_fault(server.errors), server.errors


NOISE = random.Random(9).randbytes(320_000).hex()
_BODY = {"model": "m", "user": "u-1", "messages": [], "x": NOISE + " " * 12_000_000}
BOMB = gzip.compress(json.dumps(_BODY).encode())


def _peak(pid: int) -> int:
    """The largest amount of memory that a process has had, in KiB."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it reads Linux's /proc")
async def test_compressed_bodies_of_strangers(
    policyd: Policyd, background: Background, start: Start
) -> None:
    """24 compressed bodies without a known key cost less memory at once than one with a known key,
    and others are answered.
    """
    key = policyd.create_key("enforce")
    coded = ("Content-Encoding", "gzip")
    with Upstream(background) as upstream:
        gateway = start(Gateway, policyd.grpc, upstream.url, "--policy-timeout", "30")
        assert (await post(gateway.url, key, CHAT_WITH_USER)).status == 200
        before = _peak(gateway.pid)
        async with asyncio.timeout(2 * PATIENCE):
            strangers = [post(gateway.url, "up-unknown", BOMB, coded) for _ in range(24)]
            gathered = asyncio.gather(*strangers)
            assert (await post(gateway.url, key, CHAT_WITH_USER)).status == 200
            assert {answer.status for answer in await gathered} == {403}
        grown = _peak(gateway.pid) - before
        assert (await post(gateway.url, key, BOMB, coded)).status == 200
        assert grown < _peak(gateway.pid) - before
        assert gateway.stop() == 0
    assert _no_fault(gateway.errors)


_ONE = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nx-usagepanda-api-key: %s\r\n\r\n"
_CHAT = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nx-usagepanda-api-key: %s\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
)


async def test_clients_that_reset(policyd: Policyd, background: Background, start: Start) -> None:
    """Whatever is under way when a client resets its connection, the log has no traceback."""
    key = policyd.create_key("enforce").encode()
    stream = CHAT_WITH_USER[:-1] + b',"stream":true}'
    chat = _CHAT % (key, len(stream), stream)
    one = _ONE % key
    linger = b"\1\0\0\0\0\0\0\0"
    with Upstream(background) as upstream:
        gateway = start(Gateway, policyd.grpc, upstream.url, "--policy-timeout", "30")
        for sent in (one * 30, chat * 5, chat + one * 10, one + chat[:-5], b"\x16\x03\x01\x02"):
            for pause in (0.0, 0.005, 0.02, 0.08):
                _, writer = await connect(gateway.url)
                writer.write(sent)
                await asyncio.sleep(pause)
                connected = writer.get_extra_info("socket")
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
        async with asyncio.timeout(PATIENCE):
            assert (await post(gateway.url, key.decode(), CHAT_WITH_USER)).status == 200
        assert gateway.stop() == 0
    assert _no_fault(gateway.errors), gateway.errors
