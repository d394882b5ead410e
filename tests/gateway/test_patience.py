"""How long an upstream may keep the gateway waiting, and how the gateway treats a dead one."""

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from gateway.breaker import Breaker, UpstreamDown
from tests.gateway.conftest import IN_SESSION, Serving
from tests.support.raw_http import CHAT, Response, ask, connect, parse, post, request, serving_wire
from tests.support.upstreams import ANSWER, Line, serving_raw

pytestmark = IN_SESSION
PATIENCE = 60
SOON = 0.3
NEVER = 1000.0
LONG = {"send_timeout": NEVER, "first_byte_timeout": NEVER, "read_timeout": NEVER}


async def _post(url: str) -> Response:
    async with asyncio.timeout(PATIENCE):
        return await post(url, "", CHAT)


async def _drip(line: Line, begun: bytes, piece: bytes) -> None:
    await line.request()
    line.writer.write(begun)
    while not line.writer.is_closing():
        line.writer.write(piece)
        await line.writer.drain()
        await asyncio.sleep(SOON / 20)


DRIPS = {
    "nothing": (b"", b""),
    "a head": (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "100": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "103": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"),
}


@pytest.mark.parametrize(("begun", "piece"), DRIPS.values(), ids=DRIPS)
async def test_a_head_that_does_not_come(open_door: Serving, begun: bytes, piece: bytes) -> None:
    """The client gets 504, whatever arrives instead: the deadline covers the whole head."""

    async def serve(line: Line) -> None:
        await _drip(line, begun, piece)

    waits = LONG | {"first_byte_timeout": SOON}
    async with serving_raw(serve) as raw, open_door(raw.url, **waits) as server:
        answer = await _post(server.url)
        assert answer.status == 504
        assert b"--first-byte-timeout" in answer.body


async def test_a_head_that_does_not_come_is_not_asked_for_again(open_door: Serving) -> None:
    """The gateway gave up by itself, so even a GET goes upstream once."""

    async def serve(line: Line) -> None:
        await _drip(line, b"", b"")

    waits = LONG | {"first_byte_timeout": SOON}
    async with serving_raw(serve) as raw, open_door(raw.url, **waits) as server:
        answer = await ask(server.url, "GET", "/v1/models")
        assert answer.status == 504
        assert raw.begun == 1


@pytest.mark.slow
async def test_an_answer_that_stops(open_door: Serving, caplog: pytest.LogCaptureFixture) -> None:
    """An answer that stops is cut.

    One that goes on may take longer than any one wait, and so may its head.
    """

    async def serve(line: Line) -> None:
        while head := await line.request():
            stops = b"/stops" in head
            if not stops:
                await asyncio.sleep(5 * SOON)
            line.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n")
            for _ in range(3 if stops else 20):
                line.writer.write(b"x")
                await asyncio.sleep(SOON / 5)

    waits = LONG | {"read_timeout": 3 * SOON}
    async with serving_raw(serve) as raw, open_door(raw.url, **waits) as server:
        async with asyncio.timeout(PATIENCE):
            whole = await ask(server.url, "POST", "/v1/chat/completions", [], CHAT)
            cut = await ask(server.url, "GET", "/stops")
        assert (whole.status, whole.body) == (200, b"x" * 20)
        assert (cut.status, cut.body, cut.is_whole) == (200, b"xxx", False)
    assert "broke off" in caplog.text


@pytest.mark.parametrize("size", [8_000_000, 40_000_000], ids=["held", "streamed"])
async def test_a_request_that_is_not_taken(open_door: Serving, size: int) -> None:
    """The client gets 504 if the upstream reads none of the request, or stops in the middle."""
    lost = asyncio.Event()

    async def serve(line: Line) -> None:
        line.writer.transport.pause_reading()  # type: ignore[attr-defined]  # It reads, too.
        await lost.wait()

    waits = LONG | {"send_timeout": SOON, "max_body": 10_000_000}
    async with serving_raw(serve) as raw, open_door(raw.url, **waits) as server:
        sent = request("POST", "/v1/chat/completions", [], CHAT.ljust(size))
        reader, writer = await connect(server.url)
        writer.write(sent)
        async with asyncio.timeout(PATIENCE):
            answer = parse(await reader.readuntil(b"}}"))
        assert answer.status == 504
        assert b"--send-timeout" in answer.body
        writer.close()
        lost.set()


async def test_a_request_that_is_taken_slowly(open_door: Serving) -> None:
    """An upload may take longer than any one wait, as long as it goes on."""

    async def serve(line: Line) -> None:
        read = 0
        while read < 4_000_000:
            read += len(await line.reader.read(100_000))
            await asyncio.sleep(SOON / 20)
        line.writer.write(ANSWER)

    waits = LONG | {"send_timeout": 4 * SOON}
    async with serving_raw(serve, limit=2**14) as raw, open_door(raw.url, **waits) as server:
        async with asyncio.timeout(PATIENCE):
            answer = await ask(server.url, "POST", "/v1/files", [], b"x" * 4_000_000)
        assert answer.status == 200


async def test_a_name_that_is_not_looked_up(
    open_door: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client gets 504: a resolver that hangs has the time of the connection that it is for."""
    looking = socket.getaddrinfo
    answered = threading.Event()

    def hang(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "upstream.test":
            answered.wait(PATIENCE)
        return looking(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    async with open_door("http://upstream.test", connect_timeout=SOON / 3) as server:
        # They are answered while the resolver hangs.
        answers = await asyncio.gather(*(_post(server.url) for _ in range(4)))
        answered.set()
        assert [answer.status for answer in answers] == [504] * 4
        assert b"--connect-timeout" in answers[0].body


@pytest.mark.slow
async def test_clients_that_stop_reading(open_door: Serving) -> None:
    """The gateway cuts clients that stop reading, and their streams from the upstream."""

    async def serve(line: Line) -> None:
        await line.request()
        line.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 900000000\r\n\r\n")
        while True:
            line.writer.write(b"x" * 100_000)
            await line.writer.drain()

    many = 50
    async with serving_raw(serve) as raw, open_door(raw.url, write_timeout=SOON) as server:
        held = [await connect(server.url) for _ in range(many)]
        for reader, writer in held:
            writer.write(request("GET", "/v1/files/x/content"))
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # It reads, too.
        async with asyncio.timeout(PATIENCE):
            while not all(line.writer.is_closing() for line in raw.lines):
                await asyncio.sleep(0.05)
        assert len(raw.lines) == many
        for _, writer in held:
            writer.close()


class _Clock:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _is_let(breaker: Breaker) -> bool:
    try:
        return breaker.enter()
    except UpstreamDown:
        return False


def _opened(clock: Callable[[], float], failures: int = 3) -> Breaker:
    breaker = Breaker(failures, clock)
    for _ in range(failures):
        breaker.fail("refused", is_trial=breaker.enter())
    return breaker


async def test_the_breaker_opens_and_closes(caplog: pytest.LogCaptureFixture) -> None:
    """Failures in a row open the breaker.

    Then one request at a time tries, until a connection is made.
    """
    clock = _Clock()
    breaker = _opened(clock)
    assert not _is_let(breaker)
    clock.now += 1.5
    assert [_is_let(breaker) for _ in range(3)] == [True, False, False]
    breaker.work()
    assert not breaker.enter()
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "3 times in a row (refused)" in caplog.text
    assert "3 requests were answered 502" in caplog.text


async def test_the_breaker_waits_longer_each_time() -> None:
    """Each wait is about twice as long, up to a bound, and varies at random."""
    clock = _Clock()
    breaker = _opened(clock)
    pauses = []
    for _ in range(9):
        began = clock.now
        while not _is_let(breaker):
            clock.now += 0.01
        pauses.append(clock.now - began)
        breaker.fail("refused", is_trial=True)
    for pause, expected in zip(pauses, [1, 2, 4, 8, 16, 30, 30, 30, 30], strict=True):
        assert 0.74 * expected <= pause <= 1.26 * expected
    assert len({round(pause, 2) for pause in pauses[-4:]}) > 1


async def test_what_does_not_open_the_breaker() -> None:
    """Failures with a success between them, failures long ago, and any failure where the breaker is
    off do not open it. An attempt that is given up leaves its turn to the next; other requests do
    not end the turn meanwhile.
    """
    clock = _Clock()
    breaker = Breaker(3, clock)
    for _ in range(10):
        breaker.fail("refused", is_trial=breaker.enter())
        breaker.fail("refused", is_trial=breaker.enter())
        breaker.work()
    for _ in range(10):
        breaker.fail("refused", is_trial=breaker.enter())
        clock.now += 31
    for _ in range(100):
        Breaker(0, clock).fail("refused", is_trial=False)
    assert not breaker.enter()
    opened = _opened(clock)
    clock.now += 1.5
    assert _is_let(opened)
    opened.fail("late", is_trial=False)
    opened.leave(is_trial=False)
    assert not _is_let(opened)
    opened.leave(is_trial=True)
    assert _is_let(opened)


def _nowhere() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_an_upstream_that_is_down(
    open_door: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    """After some failures its requests get 502 with Retry-After at once.

    The gateway stays ready, and the log tells of it once. When the upstream is up, requests are
    answered.
    """
    url = _nowhere()
    port = int(url.rpartition(":")[2])
    async with open_door(url, breaker=3) as server:
        for _ in range(3):
            assert b"cannot be reached" in (await _post(server.url)).body
        told = len(caplog.records)
        answers = [await _post(server.url) for _ in range(20)]
        refused = [one for one in answers if b"several times in a row" in one.body]
        assert len(refused) >= 10  # A busy machine may have let one or two try in between.
        for answer in refused:
            assert answer.status == 502
            assert json.loads(answer.body)["error"]["type"] == "server_error"
            assert 1 <= int(answer.all("retry-after")[0]) <= 10
        assert len({answer.all("retry-after")[0] for answer in refused}) > 1
        assert len(caplog.records) - told <= len(answers) - len(refused)
        assert (await ask(server.url, "GET", "/readyz")).status == 200

        async def serve(line: Line) -> None:
            while await line.request():
                line.writer.write(ANSWER)

        async with serving_raw(serve, port=port), asyncio.timeout(PATIENCE):
            while (await _post(server.url)).status == 502:
                await asyncio.sleep(0.05)
            assert (await _post(server.url)).status == 200
    assert caplog.text.count("times in a row") == 1
    assert caplog.text.count("can be connected to again") == 1


@pytest.mark.parametrize("answer", [ANSWER.replace(b"200", b"503"), b"", b"SSH-2.0\r\n\r\n"])
async def test_what_an_upstream_answers_opens_nothing(open_door: Serving, answer: bytes) -> None:
    """An upstream that can be connected to opens no breaker, whatever it answers."""
    async with serving_wire(answer, cut=True) as wire, open_door(wire.url, breaker=1) as server:
        for _ in range(5):
            assert b"several times" not in (await _post(server.url)).body
        assert wire.connections == 5


async def test_a_breaker_that_is_off(open_door: Serving) -> None:
    """Every request tries to connect."""
    async with open_door(_nowhere(), breaker=0) as server:
        for _ in range(10):
            assert b"cannot be reached" in (await _post(server.url)).body


async def test_time_outs_open_it(open_door: Serving, caplog: pytest.LogCaptureFixture) -> None:
    """An upstream that accepts no connection is as down as one that refuses them."""
    caplog.set_level(logging.WARNING)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        crowd = [socket.socket() for _ in range(8)]
        for one in crowd:
            one.setblocking(False)
            one.connect_ex(address)
        url = f"http://127.0.0.1:{address[1]}"
        async with open_door(url, connect_timeout=0.1, breaker=2) as server:
            for _ in range(2):
                assert (await _post(server.url)).status == 504
            answers = [(await _post(server.url)).status for _ in range(3)]
            assert 502 in answers
        for one in crowd:
            one.close()
