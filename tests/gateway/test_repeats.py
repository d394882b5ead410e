"""A request that meets the close of its connection is sent again if it cannot run twice."""

import asyncio
import os
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from gateway.keep_alive import MOST, IdleTime
from gateway.resending import Delivery
from gateway.server import Server
from gateway.settings import Settings
from policyd.v1.policy_pb2 import DECISION_ALLOW, EvaluateRequest, EvaluateResponse
from tests.gateway.conftest import FREE, IN_SESSION, Serving
from tests.support.raw_http import CHAT, Response, ask, connect, parse, request
from tests.support.upstreams import ANSWER, Line, Serve, serving_raw

pytestmark = [
    IN_SESSION,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what has been received"),
]
PATIENCE = 60
KEY = ("x-usagepanda-api-key", "up-1")
OVERRIDE = ("X-HTTP-Method-Override", "POST")
BURSTS = int(os.environ.get("POLICYD_TEST_BURSTS", "40"))

Pair = tuple[socket.socket, socket.socket]


def _pair() -> Pair:
    """A kept connection whose first request was answered: the gateway's side and the upstream's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.sendall(b"first")
    assert theirs.recv(100) == b"first"
    theirs.sendall(b"answer")
    assert ours.recv(100) == b"answer"
    return ours, theirs


def _closes_before(ours: socket.socket, theirs: socket.socket) -> None:
    theirs.close()
    ours.send(b"request")


def _closes_unsent(_: socket.socket, theirs: socket.socket) -> None:
    theirs.close()


def _resets_unsent(_: socket.socket, theirs: socket.socket) -> None:
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    theirs.close()


def _reads_and_closes(ours: socket.socket, theirs: socket.socket) -> None:
    ours.send(b"request")
    assert theirs.recv(100) == b"request"
    theirs.close()


def _reads_some_and_closes(ours: socket.socket, theirs: socket.socket) -> None:
    ours.send(b"request")
    assert theirs.recv(3) == b"req"
    theirs.close()


def _reads_and_resets(ours: socket.socket, theirs: socket.socket) -> None:
    ours.send(b"request")
    assert theirs.recv(100) == b"request"
    _resets_unsent(ours, theirs)


def _ends_its_side_and_reads(ours: socket.socket, theirs: socket.socket) -> None:
    theirs.shutdown(socket.SHUT_WR)
    ours.send(b"request")
    assert theirs.recv(100) == b"request"


def _ends_its_side_and_waits(ours: socket.socket, theirs: socket.socket) -> None:
    theirs.shutdown(socket.SHUT_WR)
    ours.send(b"request")


ENDS: dict[Callable[[socket.socket, socket.socket], None], bool] = {
    _closes_before: True,
    _closes_unsent: True,
    _resets_unsent: True,
    _reads_and_closes: False,
    _reads_some_and_closes: False,
    _reads_and_resets: False,
    _ends_its_side_and_reads: False,
    _ends_its_side_and_waits: False,
}


@pytest.mark.parametrize(("end", "failed"), ENDS.items(), ids=[one.__name__[1:] for one in ENDS])
async def test_what_is_known_of_a_delivery(
    end: Callable[[socket.socket, socket.socket], None], failed: bool
) -> None:
    """A delivery has failed only where the upstream cannot have read any of it."""
    ours, theirs = _pair()
    with ours, theirs, Delivery(ours) as delivery:
        end(ours, theirs)
        try:
            has_ended = ours.recv(1) == b""
        except ConnectionResetError:
            has_ended = False
        delivery.lose(ours, has_ended=has_ended)
        ours.close()
        assert await delivery.has_failed() == failed


async def test_nothing_is_known_where_the_system_does_not_tell() -> None:
    """If the system tells nothing of a delivery, it has not failed."""
    one, other = socket.socketpair()
    with one, other, Delivery(one) as delivery:
        other.close()
        delivery.lose(one, has_ended=True)
        assert not await delivery.has_failed()


async def _answer_all(line: Line) -> None:
    while await line.request():
        line.writer.write(ANSWER)


async def _answer_one(line: Line) -> None:
    """Answer the first request, and end once the second one has come."""
    await line.request()
    line.writer.write(ANSWER)
    await line.request()


async def _answer_one_without_body(line: Line) -> None:
    await line.request()
    line.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    await line.request()


async def _answer_one_and_reset(line: Line) -> None:
    await _answer_one(line)
    line.reset()


async def _send(url: str, method: str, number: int, *headers: tuple[str, str]) -> Response:
    given = [KEY, ("X-Number", str(number)), *headers]
    async with asyncio.timeout(PATIENCE):
        return await ask(url, method, "/v1/chat/completions", given, CHAT)


ONCE = [("POST", ()), ("PUT", ()), ("DELETE", ()), ("PATCH", ()), ("GET", (OVERRIDE,))]


@pytest.mark.parametrize("serve", [_answer_one, _answer_one_and_reset], ids=["closes", "resets"])
@pytest.mark.parametrize(("method", "headers"), ONCE, ids=[f"{m}{len(h)}" for m, h in ONCE])
async def test_what_has_come_upstream_is_not_sent_twice(
    open_door: Serving, serve: Serve, method: str, headers: tuple[tuple[str, str]]
) -> None:
    """An upstream that read the request may have acted on it: the client gets 502."""
    async with serving_raw(serve) as raw, open_door(raw.url) as server:
        assert (await _send(server.url, "POST", 1)).status == 200
        assert (await _send(server.url, method, 2, *headers)).status == 502
        assert raw.seen == {"1": 1, "2": 1}
        assert len(raw.lines) == 1


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_only_reads_may_come_twice(open_door: Serving, method: str) -> None:
    """A request that only reads is sent again: the client gets the second answer."""
    async with serving_raw(_answer_one_without_body) as raw, open_door(raw.url) as server:
        assert (await _send(server.url, "POST", 1)).status == 200
        assert (await _send(server.url, method, 2)).status == 200
        assert raw.seen == {"1": 1, "2": 2}


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_it_is_sent_again_once(open_door: Serving, method: str) -> None:
    """Where the second connection is closed as well, the client gets the error."""

    async def close(_: Line) -> None:
        return

    async with serving_raw(close) as raw, open_door(raw.url) as server:
        assert (await _send(server.url, method, 1)).status == 502
        assert len(raw.lines) <= 2
        assert not raw.seen


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_a_close_that_has_come_unseen(method: str) -> None:
    """The gateway checks a kept connection before use: the event loop may not know of its end."""
    held: list[socket.socket] = []
    closing = False

    async def allow(_: EvaluateRequest) -> EvaluateResponse:
        if closing:
            held[0].close()  # No turn of the event loop lies between this and the request.
        return EvaluateResponse(decision=DECISION_ALLOW)

    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        upstream = f"http://127.0.0.1:{listener.getsockname()[1]}"

        async def answer() -> bytes:
            held.append((await loop.sock_accept(listener))[0])
            held[-1].setblocking(False)
            data = await loop.sock_recv(held[-1], 65536)
            await loop.sock_sendall(held[-1], ANSWER)
            return data

        async with Server(Settings(listen=FREE, upstream=upstream), allow) as server:
            for number in (1, 2):
                answering = asyncio.create_task(answer())
                assert (await _send(server.url, method, number)).status == 200
                assert f"X-Number: {number}".encode() in await answering
                closing = True
        for one in held:
            one.close()


async def test_a_close_before_the_body_comes(open_door: Serving) -> None:
    """A body that is to stream through was not sent yet: all of it goes over a new connection."""

    async def serve(line: Line) -> None:
        assert await line.request()
        line.writer.write(ANSWER)
        if line.number == 1:
            await first_may_end.wait()
        else:
            await line.request()

    first_may_end = asyncio.Event()
    body = b"5\r\nhello\r\n0\r\n\r\n"
    async with serving_raw(serve) as raw, open_door(raw.url) as server:
        async with asyncio.timeout(PATIENCE):
            assert (await _send(server.url, "POST", 1)).status == 200
            reader, writer = await connect(server.url)
            coming = [KEY, ("X-Number", "2"), ("Transfer-Encoding", "chunked")]
            writer.write(request("POST", "/v1/files", coming))
            await asyncio.sleep(0.1)
            first_may_end.set()
            await asyncio.sleep(0.1)
            writer.write(body)
            assert parse(await reader.read()).status == 200
            writer.close()
        assert raw.seen == {"1": 1, "2": 1}


async def test_an_answer_that_no_request_asked_for(open_door: Serving) -> None:
    """Bytes that arrive on an idle connection answer no later request."""

    async def serve(line: Line) -> None:
        while await line.request():
            line.writer.write(ANSWER)
            if line.number == 1:
                await asyncio.sleep(0.05)
                line.writer.write(b"HTTP/1.1 408 Late\r\nContent-Length: 0\r\n\r\n")

    async with serving_raw(serve) as raw, open_door(raw.url) as server:
        assert (await _send(server.url, "POST", 1)).status == 200
        await asyncio.sleep(0.2)
        assert (await _send(server.url, "POST", 2)).status == 200
        assert raw.seen == {"1": 1, "2": 1}


@pytest.mark.parametrize(
    ("told", "shared"),
    [("timeout=100", True), ("max=7, timeout=100", True), ("timeout=0", False), ("max=7", True)],
)
async def test_what_the_upstream_says_of_its_patience(
    open_door: Serving, told: str, shared: bool
) -> None:
    """The gateway uses a connection no longer than its upstream promises to keep it."""

    async def serve(line: Line) -> None:
        while await line.request():
            line.writer.write(ANSWER.replace(b"\r\n", f"\r\nKeep-Alive: {told}\r\n".encode(), 1))

    async with serving_raw(serve) as raw, open_door(raw.url) as server:
        for number in range(3):
            assert (await _send(server.url, "POST", number)).status == 200
        assert len(raw.lines) == (1 if shared else 3)


async def test_the_patience_that_is_learnt() -> None:
    """The learnt idle time is shorter than where connections have ended.

    Single early ends change nothing.
    """
    idle = IdleTime()
    assert idle.usable == MOST
    for seconds in (5.0, 5.1, 0.0, 5.0, 0.1, 5.2, 4.9):
        idle.note(seconds)
    assert 3 < idle.usable < 4.9
    for _ in range(16):
        idle.note(MOST)
    assert idle.usable == MOST
    for _ in range(4):
        idle.note(0.0)
    assert idle.usable == 0


async def test_the_freshest_connection_is_taken(open_door: Serving) -> None:
    """The gateway takes the freshest connection, as the upstream closes the others first."""
    gate = asyncio.Event()
    used: list[int] = []

    async def serve(line: Line) -> None:
        while await line.request():
            used.append(line.number)
            if line.upstream.begun <= 2:
                await gate.wait()
                await asyncio.sleep(0.05 * line.number)
            line.writer.write(ANSWER)

    async with serving_raw(serve) as raw, open_door(raw.url) as server:
        both = [asyncio.create_task(_send(server.url, "POST", number)) for number in (1, 2)]
        async with asyncio.timeout(PATIENCE):
            while len(used) < 2:
                await asyncio.sleep(0.01)
        gate.set()
        await asyncio.gather(*both)
        assert (await _send(server.url, "POST", 3)).status == 200
        assert used == [1, 2, 2]
        assert len(raw.lines) == 2


async def _tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    own.private_key_pem.write_to_path(tmp_path / "key.pem")
    own.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", trusting)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    return context


@pytest.mark.slow
@pytest.mark.parametrize("over", ["plain", "TLS"])
async def test_an_upstream_that_closes_all_the_time(
    open_door: Serving, over: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bursts arrive just as the upstream closes its idle connections: nearly all are answered, none
    arrives twice.

    POLICYD_TEST_BURSTS sets how many bursts of 8.
    """

    async def serve(line: Line) -> None:
        while True:
            async with asyncio.timeout(0.05):
                if not await line.request():
                    return
            line.writer.write(ANSWER)

    async def careful(line: Line) -> None:
        try:
            await serve(line)
        except TimeoutError:
            return

    options = {"ssl": await _tls(tmp_path, monkeypatch)} if over == "TLS" else {}
    answered = 0
    async with serving_raw(careful, **options) as raw, open_door(raw.url) as server:
        for burst in range(BURSTS):
            numbers = range(8 * burst, 8 * burst + 8)
            answers = await asyncio.gather(*(_send(server.url, "POST", n) for n in numbers))
            answered += sum(answer.status == 200 for answer in answers)
            await asyncio.sleep(0.045 + 0.001 * (burst % 10))
        assert max(raw.seen.values()) == 1
        assert answered > 0.9 * 8 * BURSTS
