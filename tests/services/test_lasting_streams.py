"""Streams of gateways that say nothing, or read nothing: each ends in time, and none keeps a good
gateway out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from policyd.client.key_follower import Policyds
from policyd.client.policyd_destination import PolicydDestination
from policyd.client.stream_call import StreamCall
from policyd.decision_log.spool import Chunk
from policyd.errors import PositionMoved, StoreUnavailable, TooManyGateways
from policyd.server.server import Server
from policyd.services import append_decisions, watch_keys
from policyd.services.lasting_streams import LastingStreams
from policyd.v1 import local_pb2 as pb
from tests.services.test_append_decisions import Running, lines
from tests.services.test_watch_keys import made
from tests.services.test_watch_keys import serving as watched
from tests.support.databases import open_store
from tests.support.followers import TOKEN, bearer, stub

CODE = grpc.StatusCode
MANY = 1000
SPOOL = "5" * 16
# A connection whose client grants no more than a window of answers that it does not read.
NARROW = (("grpc.http2.lookahead_bytes", 65535), ("grpc.http2.bdp_probe", 0))


@asynccontextmanager
async def appended(tmp_path: Path) -> AsyncIterator[Running]:
    url = f"sqlite:///{tmp_path}/policyd.db"
    store = open_store(url)
    async with Server(made(tmp_path, database_url=url, database_timeout=5.0)) as server:
        found = Running(server, store)
        yield found
        await found.channel.close()
    store.close()


class GoodGateway:
    """Hands over entries, one chunk after another, as a gateway's carrier does."""

    def __init__(self, running: Running) -> None:
        policyds = Policyds((str(running.server.grpc),), None, TOKEN)
        self._destination = PolicydDestination(policyds, running.store.identity)
        self._running = running
        self._end = 0
        self.sent: set[str] = set()

    async def carry(self) -> None:
        """Hand over one more entry. Raises StoreUnavailable."""
        await self._append(self._next())

    async def carry_at_last(self) -> None:
        """Hand over one more entry, as often as it takes."""
        chunk = self._next()
        async with asyncio.timeout(30):
            while True:
                with suppress(StoreUnavailable):
                    return await self._append(chunk)
                await asyncio.sleep(0.05)

    def _next(self) -> Chunk:
        entries = self._running.records(1)
        self.sent |= {one.id for one in entries}
        data = lines(entries)
        at, self._end = self._end, self._end + len(data)
        return Chunk("aa-1.jsonl", [data.rstrip(b"\n")], at, self._end, is_last=False)

    async def _append(self, chunk: Chunk) -> None:
        # A response that was lost with its stream leaves the position at the chunk's end.
        with suppress(PositionMoved):
            assert await asyncio.to_thread(self._destination.append, SPOOL, chunk) == 1

    def close(self) -> None:
        assert self._running.logged() == self.sent
        self._destination.close()


def silent(running: Running, method: str) -> StreamCall:
    """A stream that is opened, and sends nothing."""
    return StreamCall(getattr(stub(running.channel), method)(metadata=bearer()))


async def end_of(stream: StreamCall) -> tuple[grpc.StatusCode, str]:
    """How a stream ends."""
    try:
        while await stream.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return CODE.OK, ""


@pytest.mark.slow
async def test_many_that_say_nothing(tmp_path: Path) -> None:
    """Silent streams push out each other, and a gateway that appends goes on meanwhile."""
    async with appended(tmp_path) as running:
        good = GoodGateway(running)
        await good.carry()
        streams = []
        for number in range(MANY):
            streams.append(silent(running, "AppendDecisions"))
            if number % 100 == 0:
                await asyncio.sleep(0)
                await good.carry()
        ended = [asyncio.create_task(end_of(one)) for one in streams]
        async with asyncio.timeout(60):
            while sum(one.done() for one in ended) < MANY - append_decisions.MOST:
                await asyncio.sleep(0.05)
        await good.carry()
        for stream in streams:
            stream.cancel()
        told = [one.result() for one in ended if one.done() and not one.cancelled()]
        assert {code for code, _ in told} == {CODE.RESOURCE_EXHAUSTED}
        assert all("append decisions" in words for _, words in told)
        await asyncio.gather(*ended, return_exceptions=True)
        good.close()


@pytest.mark.slow
async def test_many_that_read_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that ask and take no response make room for a gateway that appends."""
    monkeypatch.setattr(append_decisions, "MOST", 4)
    monkeypatch.setattr(append_decisions, "_PATIENCE", 2.0)
    async with appended(tmp_path) as running:
        names = {f"{number:016x}": 2**40 - 1 for number in range(1000)}
        carrier = await running.carrier()
        await carrier.ask(losses={"lost": names})
        carrier.end()
        channel = grpc.aio.insecure_channel(str(running.server.grpc), options=NARROW)
        good = GoodGateway(running)
        asking = [asyncio.create_task(ask_only(channel, names)) for _ in range(8)]
        for _ in range(10):
            await good.carry_at_last()
            await asyncio.sleep(0.2)
        for one in asking:
            one.cancel()
        await asyncio.wait(asking)
        await channel.close()
        good.close()


@pytest.mark.slow
async def test_a_stop_under_streams_that_read_nothing(tmp_path: Path) -> None:
    """policyd ends in its grace all the same."""
    async with appended(tmp_path) as running:
        names = {f"{number:016x}": 2**40 - 1 for number in range(1000)}
        carrier = await running.carrier()
        await carrier.ask(losses={"lost": names})
        channel = grpc.aio.insecure_channel(str(running.server.grpc), options=NARROW)
        asking = [asyncio.create_task(ask_only(channel, names)) for _ in range(8)]
        await asyncio.sleep(1)
    for one in asking:
        one.cancel()
    await asyncio.wait(asking)
    await channel.close()


async def ask_only(channel: grpc.aio.Channel, names: dict[str, int]) -> None:
    """Send requests with large responses, and read none."""
    stream = StreamCall(stub(channel).AppendDecisions(metadata=bearer()))
    await stream.write(pb.AppendDecisionsRequest(resume=pb.ResumeSpool(spool=SPOOL, host="x")))
    while True:
        await stream.write(pb.AppendDecisionsRequest(lost_by=pb.LostBy(processes=names)))
        await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_nothing_to_append_for_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream ends well, and its gateway begins another without an error."""
    monkeypatch.setattr(append_decisions, "_IDLE", 0.2)
    async with appended(tmp_path) as running:
        good = GoodGateway(running)
        stream = silent(running, "AppendDecisions")
        resume = pb.ResumeSpool(spool=SPOOL, host="x")
        await stream.write(pb.AppendDecisionsRequest(resume=resume))
        assert await end_of(stream) == (CODE.OK, "")
        for _ in range(3):
            await good.carry()
            await asyncio.sleep(1)
        good.close()


@pytest.mark.slow
async def test_a_stream_that_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lasting stream ends between two requests, however busy it is."""
    monkeypatch.setattr(append_decisions, "_LIFE", 1.0)
    async with appended(tmp_path) as running:
        stream = silent(running, "AppendDecisions")
        resume = pb.AppendDecisionsRequest(resume=pb.ResumeSpool(spool=SPOOL, host="x"))
        async with asyncio.timeout(30):
            await stream.write(resume)
            while await stream.read() is not grpc.aio.EOF:
                await asyncio.sleep(0.01)
                await stream.write(resume)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "module", "code", "words"),
    [
        ("AppendDecisions", append_decisions, CODE.RESOURCE_EXHAUSTED, "sent no request for"),
        ("WatchKeys", watch_keys, CODE.INVALID_ARGUMENT, "begins with a request"),
    ],
)
async def test_no_first_request(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    module: Any,
    code: grpc.StatusCode,
    words: str,
) -> None:
    """The stream ends with an error that says so."""
    monkeypatch.setattr(module, "_BEGIN", 0.2)
    async with appended(tmp_path) as running:
        told = await end_of(silent(running, method))
        assert told[0] is code
        assert words in told[1]


@pytest.mark.slow
async def test_many_that_begin_to_follow(tmp_path: Path) -> None:
    """Streams that begin to follow push out each other, and followers are served meanwhile."""
    settings = made(tmp_path)
    store = open_store(settings.database_url)
    async with watched(settings, store) as running:
        follower = await running.up_to_date()
        calls = [stub(running.channel).WatchKeys(metadata=bearer()) for _ in range(MANY)]
        async with asyncio.timeout(60):
            while sum(one.done() for one in calls) < MANY - watch_keys._BEGINNING:
                await asyncio.sleep(0.05)
        another = await running.up_to_date()
        await follower.beaten(2)
        assert follower.error is another.error is None
        for one in calls:
            one.cancel()
        await another.leave()
        await follower.leave()
    store.close()


async def test_no_room_for_streams_that_cannot_end() -> None:
    """Streams whose gateway takes no status are counted, so that they cannot take all calls."""
    streams = LastingStreams(1, "work by")
    go_on = asyncio.Event()

    class Stuck:
        async def abort(self, *_: object) -> None:
            await go_on.wait()

    ending = [
        asyncio.create_task(streams.end(Stuck(), TooManyGateways("too many"))) for _ in range(4)
    ]
    await asyncio.sleep(0)
    with pytest.raises(TooManyGateways), streams.held():
        pass
    go_on.set()
    await asyncio.gather(*ending)
    with streams.held():
        assert len(streams) == 1


async def test_one_that_works_makes_no_room() -> None:
    """If no stream waits for its gateway, a new stream is refused for want of a place."""
    streams = LastingStreams(2, "work by")
    go_on = asyncio.Event()

    async def last(*, waits: bool) -> None:
        with streams.held():
            if not waits:
                await go_on.wait()
            else:
                with streams.waiting():
                    await go_on.wait()

    working = [asyncio.create_task(last(waits=False)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(TooManyGateways, match="2 gateways work by this worker"):
        await last(waits=True)
    go_on.set()
    await asyncio.gather(*working)
    assert len(streams) == 0
