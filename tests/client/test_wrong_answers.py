"""policyd.client over HTTP, where what answers breaks the rules: no answer of another request, no
part of an answer and nothing else decides a request, every wait ends, and nothing is left over."""

import asyncio
import gc
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress

import pytest

from policyd.client import NoDecision, PolicyClient
from policyd.client.http_pool import MOST
from policyd.v1 import policy_pb2 as pb

DESCRIPTOR = pb.EvaluateRequest(has_user=True)
ALIVE = b'{"state":"alive"}'
Answering = Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]


def allowed(name: str) -> bytes:
    """The answer to an evaluation."""
    answer = pb.EvaluateResponse(decision=pb.DECISION_ALLOW, decision_id=name)
    return answer.SerializeToString()


def response(
    body: bytes, *more: str, status: str = "200 OK", kind: str = "application/proto"
) -> bytes:
    lines = (f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *more)
    return "\r\n".join((*lines, "", "")).encode() + body


class Peer:
    """Answers each call as `answering` does, and probes as policyd does."""

    def __init__(self, answering: Answering) -> None:
        self.answering = answering
        self.connections: set[asyncio.StreamWriter] = set()
        self.most = 0
        """Connections at once."""
        self.calls = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        self.most = max(self.most, len(self.connections))
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    await self._answer(reader, writer)
        finally:
            self.connections.discard(writer)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        body = await reader.readexactly(int(length or 0))
        if head.startswith(b"GET"):
            writer.write(response(ALIVE, kind="application/json"))
            return
        self.calls += 1
        await self.answering(writer, body)
        await writer.drain()


@asynccontextmanager
async def peer(answering: Answering) -> AsyncIterator[Peer]:
    """Such a server, which listens."""
    running = Peer(answering)
    server = await asyncio.start_server(running.serve, "127.0.0.1", 0, backlog=2000)
    running.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield running
    finally:
        server.close()
        for writer in tuple(running.connections):
            writer.transport.abort()
        await gone(running)


async def gone(running: Peer) -> None:
    """Wait until no connection is left."""
    async with asyncio.timeout(60):
        while running.connections:
            await asyncio.sleep(0.01)


def with_bytes(raw: bytes) -> Answering:
    """What answers with these bytes, and closes the connection."""

    async def answering(writer: asyncio.StreamWriter, _: bytes) -> None:
        writer.write(raw)
        await writer.drain()
        writer.close()

    return answering


async def failure(client: PolicyClient) -> NoDecision:
    """Why a request gets no decision."""
    with pytest.raises(NoDecision) as caught:
        await client.evaluate(DESCRIPTOR)
    return caught.value


# --- answers of other requests -------------------------------------------------------------------

LEFTOVERS = {
    "a whole response": response(allowed("leftover")),
    "a head": response(allowed("leftover"))[: -len(allowed("leftover"))],
    "a part of a head": b"HTTP/1.1 200 OK\r\nContent-Ty",
    "two of them": 2 * response(allowed("leftover")),
}


@pytest.mark.parametrize("name", LEFTOVERS)
@pytest.mark.parametrize("at_once", [True, False])
async def test_leftovers(name: str, at_once: bool) -> None:
    """What comes unasked on a kept connection, with an answer or after it, answers no request: each
    gets its own answer, if need be on another connection, and none is lost."""
    numbers = iter(range(100))
    last: list[asyncio.StreamWriter] = []

    async def answering(writer: asyncio.StreamWriter, _: bytes) -> None:
        writer.write(response(allowed(str(next(numbers)))) + (LEFTOVERS[name] if at_once else b""))
        last[:] = [writer]

    async with peer(answering) as wrong, PolicyClient(wrong.url, timeout=60) as client:
        for number in range(5):
            assert (await client.evaluate(DESCRIPTOR)).decision_id == str(number)
            if not at_once:
                last[0].write(LEFTOVERS[name])
                await asyncio.sleep(0.05)  # The client has read it by then.


Results = list[pb.BatchEvaluateResult]
BATCHES: dict[str, Callable[[Results], Iterable[pb.BatchEvaluateResult]]] = {
    "too few": lambda given: given[:-1],
    "none": lambda _: [],
    "too many": lambda given: [*given, given[0]],
    "another order": lambda given: given[::-1],
    "one twice": lambda given: [given[0], given[0], *given[2:]],
    "without IDs": lambda given: [pb.BatchEvaluateResult(response=one.response) for one in given],
}


@pytest.mark.parametrize("name", BATCHES)
async def test_batches(name: str) -> None:
    """A batch whose answers are not those to its requests, one by one, decides nothing."""

    async def answering(writer: asyncio.StreamWriter, body: bytes) -> None:
        answers = [
            pb.BatchEvaluateResult(id=one.id, response=pb.EvaluateResponse.FromString(allowed("1")))
            for one in pb.BatchEvaluateRequest.FromString(body).items
        ]
        told = pb.BatchEvaluateResponse(results=BATCHES[name](answers))
        writer.write(response(told.SerializeToString()))

    async with peer(answering) as wrong, PolicyClient(wrong.url, timeout=60) as client:
        problems = await asyncio.gather(*(failure(client) for _ in range(4)))
        assert not any(one.is_outage for one in problems)
        assert wrong.calls == 1


async def test_an_answer_to_another_batch() -> None:
    """So does one that has as many answers, but to the requests of another batch."""
    kept: list[bytes] = []

    async def answering(writer: asyncio.StreamWriter, body: bytes) -> None:
        results = [
            pb.BatchEvaluateResult(id=one.id, response=pb.EvaluateResponse.FromString(allowed("1")))
            for one in pb.BatchEvaluateRequest.FromString(body).items
        ]
        kept.append(pb.BatchEvaluateResponse(results=results).SerializeToString())
        writer.write(response(kept[0]))

    async with peer(answering) as wrong, PolicyClient(wrong.url, timeout=60) as client:
        await asyncio.gather(*(client.evaluate(DESCRIPTOR) for _ in range(3)))
        problems = await asyncio.gather(*(failure(client) for _ in range(3)))
        assert not any(one.is_outage for one in problems)


# --- parts of answers, and others ----------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\n"
WHOLE = allowed("1")
FOREIGN = {
    "a part, ended by the connection": HEAD + b"\r\n" + WHOLE[:2],
    "an unknown transfer coding": HEAD + b"Transfer-Encoding: gzip\r\n\r\n" + WHOLE,
    "an unknown coding": response(WHOLE, "Content-Encoding: br"),
    "a part by its status": response(WHOLE, status="206 Partial Content"),
    "no content": HEAD.replace(b"200 OK", b"204 No Content") + b"\r\n",
    "an upgrade": HEAD.replace(b"200 OK", b"101 X") + b"Upgrade: x\r\nConnection: upgrade\r\n\r\n",
}
MALFORMED = {
    "two lengths": response(WHOLE, "Content-Length: 2"),
    "a length and chunks": response(WHOLE, "Transfer-Encoding: chunked"),
    "no chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + WHOLE,
    "a chunk that ends early": HEAD + b"Transfer-Encoding: chunked\r\n\r\n40\r\n" + WHOLE,
    "no last chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n" + WHOLE[:2] + b"\r\n",
    "a huge header": response(WHOLE, "X: " + "a" * 100_000),
    "too many headers": response(WHOLE, *("X: a" for _ in range(5000))),
}


@pytest.mark.parametrize("name", FOREIGN)
async def test_what_policyd_does_not_send(name: str) -> None:
    """An answer that may be a part of one, or was encoded on the way, decides nothing."""
    async with peer(with_bytes(FOREIGN[name])) as wrong:
        async with PolicyClient(wrong.url, timeout=60) as client:
            problem = await failure(client)
        assert "UNKNOWN: " in str(problem)
        assert not problem.is_outage
        assert wrong.calls == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_no_http(name: str) -> None:
    """A response that is no HTTP decides nothing; what sends it is no policyd that was reached."""
    async with peer(with_bytes(MALFORMED[name])) as wrong:
        async with PolicyClient(wrong.url, timeout=1) as client:
            problem = await failure(client)
        assert problem.is_outage


async def test_informational_responses() -> None:
    """Informational responses before an answer are not taken for the answer."""
    early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"

    async def answering(writer: asyncio.StreamWriter, _: bytes) -> None:
        writer.write(early + response(WHOLE))

    async with peer(answering) as other, PolicyClient(other.url, timeout=60) as client:
        for _ in range(3):
            assert (await client.evaluate(DESCRIPTOR)).decision_id == "1"


async def test_texts_of_errors() -> None:
    """The text of an error is bounded, and safe for any log."""
    told = b'{"code":"internal","message":"\\ud800' + b"m" * 3_000_000 + b'"}'
    raw = response(told, status="500 X", kind="application/json")
    async with peer(with_bytes(raw)) as wrong, PolicyClient(wrong.url, timeout=60) as client:
        said = str(await failure(client))
    assert said.encode().startswith(b"policyd gave no decision (INTERNAL: ?mmm")
    assert len(said) < 2000


# --- waits ---------------------------------------------------------------------------------------


def endless(begin: bytes, piece: bytes) -> Answering:
    """What sends these bytes, and then a piece now and then, without end."""

    async def answering(writer: asyncio.StreamWriter, _: bytes) -> None:
        writer.write(begin)
        while not writer.transport.is_closing():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)

    return answering


ENDLESS = {
    "a body": endless(HEAD + b"Content-Length: 100000\r\n\r\n", b"a"),
    "a head": endless(b"", b"H"),
    "headers": endless(HEAD, b"X: y\r\n"),
    "informational responses": endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "chunks": endless(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDLESS)
async def test_an_answer_without_end(name: str) -> None:
    """A trickling answer ends with the deadline, as an outage, and its connections with it."""
    async with peer(ENDLESS[name]) as slow:
        async with asyncio.timeout(60), PolicyClient(slow.url, timeout=0.8) as client:
            assert (await failure(client)).is_outage
        await gone(slow)


def sockets() -> int:
    """How many sockets this process has open."""
    gc.collect()
    number = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            number += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return number


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("takes", [True, False])
async def test_a_connection_that_hangs(scheme: str, takes: bool) -> None:
    """The peer does not accept the connection, or says nothing on it, also where TLS is to begin:
    the call ends with the deadline, and no socket and no task is left."""
    with socket.create_server(("127.0.0.1", 0), backlog=100 if takes else 0) as listener:
        place = listener.getsockname()
        waiting = []
        for _ in range(0 if takes else 3):  # They fill the backlog.
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(place)
        before, tasks = sockets(), len(asyncio.all_tasks())
        context = ssl.create_default_context() if scheme == "https" else None
        url = f"{scheme}://127.0.0.1:{place[1]}"
        async with PolicyClient(url, timeout=0.8, credentials=context) as client:
            async with asyncio.timeout(60):
                assert (await failure(client)).is_outage
        async with asyncio.timeout(60):
            while sockets() > before or len(asyncio.all_tasks()) > tasks:
                await asyncio.sleep(0.01)
        for one in waiting:
            one.close()


@pytest.mark.slow
async def test_a_name_that_no_server_answers_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often policyd is asked, the look-up of its name takes one thread of the loop."""
    is_over, looks = threading.Event(), []

    def hang(host: str, *_: object, **__: object) -> None:
        looks.append(host)
        is_over.wait()
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    async with PolicyClient("http://policyd.invalid:80", timeout=0.8) as client:
        try:
            async with asyncio.timeout(60):
                for _ in range(3):
                    assert (await failure(client)).is_outage
        finally:
            is_over.set()
    assert looks == ["policyd.invalid"]


async def test_callers_that_go_away() -> None:
    """Calls whose callers were cancelled end, with their connections, and the next are answered."""
    is_hanging = True
    hanging = ENDLESS["informational responses"]

    async def answering(writer: asyncio.StreamWriter, body: bytes) -> None:
        if is_hanging:
            await hanging(writer, body)
        else:
            writer.write(response(pb.CheckKeyResponse(in_force=True).SerializeToString()))

    async with peer(answering) as slow, PolicyClient(slow.url, timeout=60) as client:
        calls = [asyncio.ensure_future(client.check_key(pb.CheckKeyRequest())) for _ in range(50)]
        async with asyncio.timeout(60):
            while slow.calls < len(calls):
                await asyncio.sleep(0.01)
        is_hanging = False
        for call in calls:
            call.cancel()
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in found)
        assert (await client.check_key(pb.CheckKeyRequest())).in_force
        async with asyncio.timeout(60):
            while len(slow.connections) > 1:
                await asyncio.sleep(0.01)


async def test_many_at_once() -> None:
    """However many calls come at once, they share a bounded number of connections."""

    async def answering(writer: asyncio.StreamWriter, _: bytes) -> None:
        await asyncio.sleep(0.01)
        writer.write(response(pb.CheckKeyResponse(in_force=True).SerializeToString()))

    async with peer(answering) as other, PolicyClient(other.url, timeout=60) as client:
        calls = (client.check_key(pb.CheckKeyRequest()) for _ in range(1000))
        assert all(one.in_force for one in await asyncio.gather(*calls))
        assert other.calls == 1000
        # Of a pool, and of the one before it, where that was put away meanwhile.
        assert 1 < other.most <= 2 * MOST
