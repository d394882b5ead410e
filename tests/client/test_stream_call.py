"""StreamCall reports a stream's end as policyd did, whatever gRPC's client makes of it."""

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from policyd.client.stream_call import StreamCall
from policyd.v1 import local_pb2 as pb
from policyd.v1.local_pb2_grpc import (
    LocalDecisionServiceServicer,
    LocalDecisionServiceStub,
    add_LocalDecisionServiceServicer_to_server,
)

REQUESTS = {"WatchKeys": pb.WatchKeysRequest(), "AppendDecisions": pb.AppendDecisionsRequest()}
METHODS = pytest.mark.parametrize("method", sorted(REQUESTS))


class Ending(LocalDecisionServiceServicer):
    """Ends each stream when told, and says so."""

    def __init__(self, end: Callable[[Any], None]) -> None:
        self._end = end
        self.may_end, self.ended = threading.Semaphore(0), threading.Semaphore(0)

    def WatchKeys(self, _: object, context: Any) -> Iterator[Any]:
        context.add_callback(self.ended.release)
        self.may_end.acquire(timeout=30)
        self._end(context)
        return iter(())

    def AppendDecisions(self, _: object, context: Any) -> Iterator[Any]:
        return self.WatchKeys(_, context)


class Served:
    """A server that ends streams, in threads of its own, and a channel to it."""

    def __init__(self, end: Callable[[Any], None]) -> None:
        self._ending = Ending(end)
        self._server = grpc.server(ThreadPoolExecutor(4))
        add_LocalDecisionServiceServicer_to_server(self._ending, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")

    async def ended_before_write(self, method: str) -> StreamCall:
        """A stream that the server has ended, where the client's event loop has not seen that."""
        call = getattr(LocalDecisionServiceStub(self._channel), method)()
        await call.wait_for_connection()
        self._ending.may_end.release()
        assert self._ending.ended.acquire(timeout=30)
        time.sleep(0.01)  # noqa: ASYNC251  # Only gRPC's threads read what the server has sent.
        return StreamCall(call)

    async def close(self) -> None:
        await self._channel.close()
        self._server.stop(0)


def _reject(context: Any) -> None:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "another token")


@pytest.fixture
async def rejecting() -> AsyncIterator[Served]:
    served = Served(_reject)
    yield served
    await served.close()


@pytest.mark.slow
@METHODS
async def test_an_end_that_crosses_a_request(rejecting: Served, method: str) -> None:
    """The status is the server's each time."""
    for _ in range(100):
        stream = await rejecting.ended_before_write(method)
        await stream.write(REQUESTS[method])
        with pytest.raises(grpc.aio.AioRpcError, match="another token") as raised:
            await stream.read()
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


@METHODS
async def test_a_request_after_the_end(rejecting: Served, method: str) -> None:
    """A request after the end is not sent, and reading raises the same status again."""
    stream = await rejecting.ended_before_write(method)
    for _ in range(3):
        await stream.write(REQUESTS[method])
        with pytest.raises(grpc.aio.AioRpcError, match="another token"):
            await stream.read()


@METHODS
async def test_a_stream_that_ends_well(method: str) -> None:
    """There is nothing more to read, and that is no error."""
    served = Served(lambda _: None)
    for _ in range(20):
        stream = await served.ended_before_write(method)
        await stream.write(REQUESTS[method])
        assert await stream.read() is grpc.aio.EOF
    await served.close()
