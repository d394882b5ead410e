"""The listener's connections: a held connection stops no other, and every wait has an end."""

import asyncio
import contextlib
import itertools
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme

from policyd.asgi import connections
from policyd.asgi.listener import Listener
from policyd.asgi.protocol import MAX_HEAD
from policyd.asgi.reply import NO_ROOM
from policyd.asgi.tls import tls_context
from policyd.asgi.visit import State, Visit
from policyd.command.address import Address, open_socket
from tests.support.limits import NEVER, wide_limits
from tests.support.raw_http import Response, connect, exchange, parse, request

GET = b"GET /quick HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
CHUNKED = b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
PATIENCE = 30
SOON = 0.3
Message = dict[str, Any]


class Running(NamedTuple):
    """A running listener."""

    url: str
    listener: Listener


async def _app(scope: Message, receive: Any, send: Any) -> None:
    """Read the body of /body, answer /early at once, and send 100 MB on /much."""
    more = scope["path"] == "/body"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        more = message["more_body"]
    if scope["is_spare"] and scope["path"] != "/healthz":
        await NO_ROOM.send(send)
        return
    size = 100 if scope["path"] == "/much" else 1
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(size):
        piece = {"type": "http.response.body", "body": b"x" * (1 if size == 1 else 1_000_000)}
        await send(piece | {"more_body": True})
    await send({"type": "http.response.body"})


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None, **limits: Any) -> AsyncIterator[Running]:
    """Serve with these limits, and with all others out of a test's reach."""
    listening = open_socket(Address("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    listener = Listener(_app, tls=tls, grace=1, limits=wide_limits(**limits))
    await listener.start(listening)
    try:
        yield Running(url, listener)
    finally:
        await listener.stop()


async def _answered(url: str) -> Response:
    async with asyncio.timeout(PATIENCE):
        return parse(await exchange(url, request("GET", "/quick")))


async def _end(reader: asyncio.StreamReader) -> bytes:
    """What arrives until the connection ends.

    A client that goes on sending may miss the last of it.
    """
    data = b""
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(ConnectionResetError):
            while chunk := await reader.read(65536):
                data += chunk
    return data


async def _no_more(running: Running) -> None:
    async with asyncio.timeout(PATIENCE):
        while running.listener.connections:
            await asyncio.sleep(0.02)


WAITING: dict[str, tuple[bytes, bytes, dict[str, float], bytes]] = {
    "says nothing": (b"", b"", {"head": SOON}, b""),
    "begins a head": (GET[:9], b"", {"head": SOON}, b"408"),
    "drips a head": (GET[:-2] + b"X: ", b"x", {"head": SOON}, b"408"),
    "drips empty lines": (b"\r\n", b"\r\n", {"head": SOON}, b"408"),
    "drips a second head": (GET + GET[:9], b"x", {"head": SOON}, b"408"),
    "drips a body": (POST, b"x", {"body": SOON}, b"408"),
    "drips chunks": (CHUNKED, b"1\r\nx\r\n", {"body": SOON}, b"408"),
    "drips a chunk's extension": (CHUNKED + b"5;x=", b"x", {"body": SOON}, b"408"),
    "drips trailers": (CHUNKED + b"0\r\nX: ", b"x", {"body": SOON}, b"408"),
    "drips a body that was answered": (
        POST.replace(b"/body", b"/early"),
        b"x",
        {"head": SOON},
        b"200",
    ),
    "is idle": (GET, b"", {"idle": SOON}, b"200"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("begun", "drip", "limits", "status"), WAITING.values(), ids=WAITING)
async def test_every_wait_ends(
    begun: bytes, drip: bytes, limits: dict[str, Any], status: bytes
) -> None:
    """The server ends every wait for a client, whatever the client delays."""
    async with serving(**limits) as running:
        reader, writer = await connect(running.url)
        writer.write(begun)
        ended = asyncio.create_task(_end(reader))
        while not ended.done():
            await asyncio.sleep(0.02)
            if drip and not writer.is_closing():
                writer.write(drip)
        answer = await ended
        statuses = [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]
        assert statuses[-1:] in ([status] * bool(status), [] if drip else None)
        await _no_more(running)
        writer.close()


@pytest.mark.slow
async def test_a_busy_client_is_not_hurried() -> None:
    """A body that arrives fast enough and a long answer may last longer than any one wait."""
    wait = 4 * SOON  # Longer than a busy machine may stand still.
    async with serving(body=wait, head=wait, idle=wait, write=wait) as running:
        reader, writer = await connect(running.url)
        pieces = 60
        writer.write(POST.replace(b"100000", b"%d" % (pieces * 2000)))
        for _ in range(pieces):
            await asyncio.sleep(SOON / 8)
            writer.write(b"x" * 2000)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        reader, writer = await connect(running.url)
        writer.write(GET.replace(b"/quick", b"/much"))
        for _ in range(60):
            await asyncio.sleep(SOON / 8)
            assert len(await reader.read(100_000))
        writer.close()


async def test_an_answer_that_is_not_read() -> None:
    """The server closes the connection of a client that does not read its answer."""
    async with serving(write=SOON) as running:
        _, writer = await connect(running.url)
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # It reads, too.
        writer.write(GET.replace(b"/quick", b"/much"))
        await writer.drain()
        await asyncio.sleep(0)
        await _no_more(running)
        writer.close()


async def _hold(url: str, begun: bytes, count: int) -> list[tuple[Any, asyncio.StreamWriter]]:
    held = []
    for _ in range(count):
        held.append(await connect(url))
        held[-1][1].write(begun)
        if begun == GET:
            assert await held[-1][0].readuntil(b"0\r\n\r\n")
    return held


@pytest.mark.parametrize("begun", [b"", GET[:9], GET, POST], ids=["silent", "head", "idle", "body"])
async def test_held_connections_stop_no_other(begun: bytes) -> None:
    """Where there is no room, the server closes the connection that has waited longest and answers
    others at once.
    """
    async with serving(connections=10) as running:
        held = await _hold(running.url, begun, 25)
        for _ in range(5):
            assert (await _answered(running.url)).status == 200
        assert running.listener.connections <= 10
        for _, writer in held:
            writer.close()


async def test_unread_answers_stop_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that its client has not read for some time makes room where nothing else does."""
    monkeypatch.setattr(connections, "_SPARED", SOON)
    async with serving(connections=3) as running:
        held = await _hold(running.url, GET.replace(b"/quick", b"/much"), 3)
        for reader, writer in held:
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # It reads, too.
        async with asyncio.timeout(PATIENCE):
            while (await _answered(running.url)).status == 503:
                await asyncio.sleep(0.05)
        for _, writer in held:
            writer.close()


async def _busy(url: str, count: int) -> list[tuple[Any, asyncio.StreamWriter]]:
    """Hold connections whose answers have begun and are not read."""
    held = await _hold(url, GET.replace(b"/quick", b"/much"), count)
    for reader, writer in held:
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # It reads, too.
    return held


def _check_refused(answer: bytes) -> None:
    refused = parse(answer)
    assert refused.status == 503
    assert refused.is_whole
    assert refused.all("retry-after")[0] in {"1", "2", "3"}
    assert [value.lower() for value in refused.all("connection")] == ["close"]


async def test_no_room_where_all_are_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is being answered is never cut for others: these get 503 and may try again.

    So does every client of a crowd that arrives at once. A silent client keeps its place only for a
    moment.
    """
    monkeypatch.setattr(connections, "_SPARED", NEVER)
    keeping = GET * 2  # The first answer ends the connection all the same.
    async with serving(connections=3) as running, asyncio.timeout(PATIENCE):
        busy = await _busy(running.url, 3)
        silent = await _hold(running.url, b"", 2 * connections.SPARE)
        crowd = await asyncio.gather(*(exchange(running.url, keeping) for _ in range(20)))
        for answer in crowd:
            _check_refused(answer)
        assert running.listener.connections <= 3 + connections.SPARE
        for reader, writer in busy:
            writer.transport.resume_reading()  # type: ignore[attr-defined]  # It reads, too.
            assert (await _end_of_much(reader)).endswith(b"x\r\n0\r\n\r\n")
        for _, writer in silent + busy:
            writer.close()
        await _no_more(running)
        assert (await _answered(running.url)).status == 200


async def test_probes_are_answered_where_there_is_no_room() -> None:
    """The application learns that a connection is a spare one, and may answer it all the same."""
    async with serving(connections=2) as running, asyncio.timeout(PATIENCE):
        busy = await _busy(running.url, 2)
        probed = parse(await exchange(running.url, GET.replace(b"/quick", b"/healthz")))
        assert probed.status == 200
        assert [value.lower() for value in probed.all("connection")] == ["close"]
        for _, writer in busy:
            writer.close()


async def test_a_client_that_brings_its_body_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no room, a client is not cut while its body arrives; it is once it pauses."""
    monkeypatch.setattr(connections, "_SPARED", 2.0)
    async with serving(connections=2) as running, asyncio.timeout(PATIENCE):
        held = await _hold(running.url, POST.replace(b"100000", b"9000000"), 2)
        done = asyncio.Event()

        async def bring(writer: asyncio.StreamWriter) -> None:
            while not done.is_set():
                writer.write(b"x" * 4000)
                await asyncio.sleep(0.02)

        bringing = [asyncio.create_task(bring(writer)) for _, writer in held]
        await asyncio.sleep(SOON)
        for _ in range(5):
            _check_refused(await exchange(running.url, GET))
        done.set()
        await asyncio.gather(*bringing)
        while (await _answered(running.url)).status == 503:
            await asyncio.sleep(0.1)
        for _, writer in held:
            writer.close()


async def test_what_is_not_read_has_a_total(caplog: pytest.LogCaptureFixture) -> None:
    """Beyond the total of unread bytes, the server closes the connections that were not read for
    longest and no others.
    """
    async with serving(unread=3_500_000, ahead=1_000_000) as running, asyncio.timeout(PATIENCE):
        held = await _busy(running.url, 1)
        held += await _busy(running.url, 4)
        while running.listener.connections > 3:
            await asyncio.sleep(0.02)
        for index, (reader, writer) in enumerate(held):
            writer.transport.resume_reading()  # type: ignore[attr-defined]  # It reads, too.
            if index in (0, 4):
                is_whole = (await _end_of_much(reader)).endswith(b"0\r\n\r\n")
                assert is_whole == (index == 4)
            writer.close()
        await _no_more(running)
        assert caplog.text.count("--answer-memory") == 1


async def _end_of_much(reader: asyncio.StreamReader) -> bytes:
    tail = b""
    with contextlib.suppress(ConnectionResetError):
        while not tail.endswith(b"\r\n0\r\n\r\n") and (chunk := await reader.read(2**20)):
            tail = (tail + chunk)[-20:]
    return tail


@pytest.fixture
def certificates(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The certificate that a server listens with, and the one that a client trusts."""
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    own.private_key_pem.write_to_path(tmp_path / "key.pem")
    own.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    context = tls_context(tmp_path / "cert.pem", tmp_path / "key.pem")
    assert context is not None
    return context, trusting


async def test_tls_handshakes(certificates: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """A TLS handshake has a deadline and makes room for others, as a head does."""
    own, trusting = certificates
    async with serving(own, connections=5, head=SOON) as running:
        held = await _hold(running.url, b"", 8)
        host, _, port = running.url.removeprefix("http://").partition(":")
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(host, int(port), ssl=trusting)
            writer.write(request("GET", "/quick"))
            assert parse(await reader.read()).status == 200
            writer.close()
        for reader, one in held:
            assert await _end(reader) == b""
            one.close()
        await _no_more(running)


Break = Callable[[asyncio.StreamWriter], None]


def _reset(writer: asyncio.StreamWriter) -> None:
    connected = writer.get_extra_info("socket")
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


def _half_close(writer: asyncio.StreamWriter) -> None:
    writer.write_eof()


BROKEN = {
    "head": GET[:20],
    "body": POST + b"x" * 100,
    "answer": GET.replace(b"/quick", b"/much"),
    "pipelined": GET.replace(b"/quick", b"/much") + GET * 20,
    "pipelined bodies": (POST + b"x" * 100000) * 3,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    "nothing": b"",
}


@pytest.mark.parametrize("end", [_reset, _half_close, asyncio.StreamWriter.close])
@pytest.mark.parametrize("begun", BROKEN.values(), ids=BROKEN)
async def test_clients_that_leave(
    begun: bytes, end: Break, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that leaves causes no error in the log and leaves nothing behind."""
    left: list[asyncio.StreamWriter] = []
    async with serving(head=SOON, body=SOON, idle=SOON, write=SOON) as running:
        for pause in (0, 0.01, 0.05):
            _, writer = await connect(running.url)
            writer.write(begun)
            await asyncio.sleep(pause)
            with contextlib.suppress(OSError):
                end(writer)
            left.append(writer)
        await _no_more(running)
        for writer in left:
            writer.close()
        assert (await _answered(running.url)).status == 200
    assert [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []
    assert [record for record in caplog.records if record.exc_info] == []


def _head(size: int) -> bytes:
    head = b"GET /quick HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: "
    return head + b"x" * (size - len(head) - 4) + b"\r\n\r\n"


@pytest.mark.parametrize("piece", [MAX_HEAD * 2, 65536, 8191, 997])
@pytest.mark.parametrize("before", [b"", GET, GET * 50, POST + b"x" * 100000])
async def test_the_bound_of_heads_holds_to_the_byte(piece: int, before: bytes) -> None:
    """The bound of a head holds however it is split, and whatever comes before or behind it."""
    async with serving() as running:
        for size, status in ((MAX_HEAD, b"200"), (MAX_HEAD + 1, b"431")):
            reader, writer = await connect(running.url)
            data = before + _head(size)
            for begin in range(0, len(data), piece):
                writer.write(data[begin : begin + piece])
                await asyncio.sleep(0)
            answer = await _end(reader)
            assert answer.split(b"HTTP/1.1 ")[-1][:3] == status
            writer.close()


async def test_heads_have_a_total(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large incomplete heads leave room for small ones, and their total is freed when they end."""
    monkeypatch.setattr(connections, "MAX_HEADS", 3 * MAX_HEAD)
    async with serving() as running:
        held = await _hold(running.url, _head(MAX_HEAD)[:-1], 3)
        reader, writer = await connect(running.url)
        writer.write(_head(MAX_HEAD)[:-1])
        assert parse(await _end(reader)).status == 503
        assert (await _answered(running.url)).status == 200
        for _, one in [*held, (reader, writer)]:
            one.close()
        await _no_more(running)
        assert parse(await exchange(running.url, _head(MAX_HEAD))).status == 200


async def test_a_body_does_not_count_as_head() -> None:
    """Bytes that follow the head in the same piece count as the body's."""
    async with serving() as running:
        head = _head(MAX_HEAD).replace(b"GET /quick", b"POST /body")[:-4]
        extra = b"\r\nContent-Length: 100000\r\n\r\n"
        head = head[: MAX_HEAD - len(extra)] + extra
        assert parse(await exchange(running.url, head + b"x" * 100000)).status == 200


@pytest.mark.parametrize(("size", "status"), [(MAX_HEAD, 200), (MAX_HEAD + 1, 431)])
async def test_the_bound_of_trailers(size: int, status: int) -> None:
    """Trailers that arrive by themselves have the same bound."""
    async with serving() as running:
        reader, writer = await connect(running.url)
        writer.write(request("POST", "/body", [("Transfer-Encoding", "chunked")]) + b"0\r\n")
        await writer.drain()
        await asyncio.sleep(0.1)
        for _ in range(2):
            line = b"X: " + b"x" * (size // 2 - 5) + b"\r\n"
            writer.write(line)
            size -= len(line)
        writer.write(b"X: " + b"x" * (size - 7) + b"\r\n\r\n" if size > 7 else b"\r\n"[:size])
        assert parse(await _end(reader)).status == status
        writer.close()


async def test_many_heads_in_one_piece_take_linear_time() -> None:
    """Pipelined requests are each parsed by themselves, in linear time."""
    async with serving() as running:
        took = {}
        for count in (500, 4000):
            began = time.thread_time()  # Client and server share this thread.
            data = GET * count + request("GET", "/quick")
            assert (await exchange(running.url, data)).count(b"HTTP/1.1 200") == count + 1
            took[count] = time.thread_time() - began
    assert took[4000] < 4 * 8 * took[500]


def test_it_is_a_table_over_all_states() -> None:
    """Every state but that of being at work has a deadline or a minimum pace."""
    table = connections.Connections(wide_limits(), itertools.count().__next__)
    has_another = {State.ANSWERING, State.BODY}
    assert set(table.deadlines) == set(State) - has_another


@pytest.mark.parametrize("first", [CHUNKED + b"1\r\nx\r\n0\r\n\r\n", GET], ids=["chunked", "none"])
async def test_an_upgrade_behind_another_request(first: bytes) -> None:
    """Bytes behind a head that offers h2c are its body, in whatever piece they arrive."""
    offer = b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 3\r\n\r\nabc"
    offered = b"POST /body HTTP/1.1\r\nHost: x\r\n" + offer
    async with serving() as running, asyncio.timeout(PATIENCE):
        answers = await exchange(running.url, first + offered + request("GET", "/quick"))
        assert answers.count(b"HTTP/1.1 200") == 3


@pytest.mark.parametrize("state", State)
def test_time_in_which_the_server_stood_still(state: State) -> None:
    """Time in which the server stood still counts against no client, as what arrived meanwhile is
    still unread.
    """
    times = [0.0]
    crowd = connections.Connections(wide_limits(), lambda: times[0])
    ended: list[State] = []
    visit = Visit()
    visit.cut = visit.dismiss = lambda: ended.append(state)
    crowd.enter(visit)
    crowd.move(visit, state)
    crowd.hear(visit, 1)
    if state is State.ANSWERING:
        crowd.stall(visit)
    times[0] += NEVER
    crowd.pardon(NEVER)
    crowd.sweep()
    assert not ended
    assert visit.heard == times[0]
    times[0] += 2 * NEVER
    crowd.sweep()
    assert ended


@pytest.mark.slow
async def test_a_sweep_that_comes_late() -> None:
    """After a late sweep the server looks once more before it ends a connection."""
    crowd = connections.Connections(wide_limits(idle=1.0), asyncio.get_running_loop().time)
    ended = asyncio.Event()
    visit = Visit()
    visit.cut = visit.dismiss = ended.set
    crowd.enter(visit)
    crowd.move(visit, State.IDLE)
    sweeping = asyncio.create_task(connections.keep_sweeping(crowd))
    await asyncio.sleep(0.3)
    time.sleep(2)  # noqa: ASYNC251  # As a process that is stopped.
    await asyncio.sleep(0.1)
    assert not ended.is_set()
    async with asyncio.timeout(PATIENCE):
        await ended.wait()
    sweeping.cancel()
