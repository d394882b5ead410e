"""One connection to a policyd: it notices that no answer comes, steps aside, and comes back.

A peer that is gone without a word keeps its connections, and one that is stopped accepts new ones.
So it counts as silent where calls wait and no answer to any has come for a while: then they end, to
be made elsewhere, and the connection is replaced. A peer that answers others is slow, not silent.
"""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import grpc
from grpc import ChannelCredentials

from policyd.client.statuses import Failed, Meaning, failed
from policyd.v1.policy_pb2_grpc import PolicyServiceStub

if TYPE_CHECKING:
    from policyd.v1.policy_pb2_grpc import PolicyServiceAsyncStub  # It is in the types only.

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
Method = Callable[
    ["PolicyServiceAsyncStub"], "grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]"
]
Metadata = tuple[tuple[str, str], ...] | None

_OPTIONS = (
    # A policyd that restarts is found again quickly. The second one is also how long a peer may
    # take to accept a connection, in gRPC's way: one that is stopped never says a word.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_retries", 0),  # Done here, so that the deadline is one.
    ("grpc.max_send_message_length", -1),
    # A peer that is gone without a word is noticed while nothing is asked, too. The third one is
    # what gRPC waits for: the second does not shorten it, and it is a minute by default.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Two channels to one address are two connections, so that two workers share them, and to a
    # name with several addresses each takes one of them.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.service_config", '{"loadBalancingConfig":[{"pick_first":{"shuffleAddressList":true}}]}'),
)
_FIRST = asyncio.FIRST_COMPLETED
_HEALTH = "/grpc.health.v1.Health/Check"
_FIRST_PAUSE, _MAX_PAUSE = 0.1, 5.0
"""Seconds between two looks for a peer that is away, at first and at most."""
_LOOK = 2.0
"""Seconds that a look may take."""
_RIVALS = 4
"""Connections of the first look: the workers of one address are not told apart, so that a new one
may lead to the worker that hangs, too."""
_HEAD_START = 0.05
"""Seconds that each of them has before the next one begins."""


class Connection:
    """Calls the policyd at `address`. Belongs to the event loop that it is made in.

    After `patience` seconds with calls under way and no answer at all it counts as silent.
    """

    def __init__(
        self, address: str, credentials: ChannelCredentials | None, patience: float
    ) -> None:
        self.address = address
        self.is_away = False
        """Whether the last that was seen of the peer is that it does not answer."""
        self._credentials = credentials
        self._patience = patience
        self._calls: set[grpc.aio.Call] = set()
        self._expected = 0
        """How many of them should be answered soon."""
        self._quiet_since = 0.0
        self._silences = 0
        self._watch: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._looking: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._use(self._channel_to_it())

    @property
    def load(self) -> int:
        """Calls under way."""
        return len(self._calls)

    async def ask(
        self,
        method: "Method[_Request, _Response]",
        request: _Request,
        seconds: float,
        *,
        metadata: Metadata,
        is_patient: bool,
    ) -> _Response:
        """Call, and wait at most `seconds`. An answer that `is_patient` may be waited for longer
        than others are, as policyd itself waits. Raises Failed."""
        silences = self._silences
        call = method(self._stub)(request, timeout=seconds, metadata=metadata)
        self._calls.add(call)
        if not is_patient:
            self._expect()
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            raise self._failed(error) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if silences == self._silences or task is None or task.cancelling():
                raise
            raise Failed(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"no answer from {self.address} for {self._patience:g} s",
                Meaning.NOT_REACHED,
            ) from None
        finally:
            self._calls.discard(call)
            self._expected -= not is_patient
        self._hear()
        return answer

    async def answers(self, seconds: float) -> bool:
        """Whether the peer answers in time, whatever it says of its health: it decides for as long
        as it answers."""
        if not await _answers(self._channel, seconds):
            return False
        self._hear()
        return True

    async def close(self) -> None:
        """Close it. Calls under way are cancelled."""
        if self._watch:
            self._watch.cancel()
        if looking := self._looking:
            looking.cancel()
            with suppress(asyncio.CancelledError):
                await looking
            self._looking = None
        await self._channel.close()
        await asyncio.gather(*self._closing)

    def _channel_to_it(self) -> grpc.aio.Channel:
        if self._credentials:
            channel = grpc.aio.secure_channel(self.address, self._credentials, options=_OPTIONS)
        else:
            channel = grpc.aio.insecure_channel(self.address, options=_OPTIONS)
        channel.get_state(try_to_connect=True)
        return channel

    def _use(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._stub: PolicyServiceAsyncStub = PolicyServiceStub(channel)

    def _put_away(self, channel: grpc.aio.Channel) -> None:
        closing = asyncio.ensure_future(channel.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _end_calls(self) -> None:
        """Have those under way made elsewhere."""
        self._silences += 1
        for call in tuple(self._calls):
            call.cancel()

    # --- silence -------------------------------------------------------------------------------

    def _expect(self) -> None:
        """Begin to wait for one more answer."""
        self._expected += 1
        if self._expected == 1:
            self._quiet_since = time.monotonic()
        if self._watch is None:
            self._look_in(self._patience)

    def _look_in(self, seconds: float) -> None:
        self._due = time.monotonic() + seconds
        self._watch = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        self._watch = None
        if not self._expected:
            return
        now = time.monotonic()
        if now - self._due > self._patience / 4:
            # It is this process that stood still: the answers may be here, and not read yet.
            self._quiet_since = now
        left = self._quiet_since + self._patience - now
        if left > 0.001:
            self._look_in(left)
        else:
            self._fall_silent()

    def _fall_silent(self) -> None:
        self._end_calls()
        if self._channel.get_state() is grpc.ChannelConnectivity.READY and not self.is_away:
            self._put_away(self._channel)
            self._use(self._channel_to_it())
        self._leave()

    def _failed(self, error: grpc.aio.AioRpcError) -> Failed:
        problem = failed(error)
        if problem.meaning is not Meaning.NOT_REACHED:
            self._hear()
        elif problem.code is grpc.StatusCode.UNAVAILABLE:
            self._leave()
        return problem

    def _hear(self) -> None:
        self._quiet_since = time.monotonic()
        self.is_away = False

    def _leave(self) -> None:
        if self.is_away:
            return
        self.is_away = True
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_for_it())

    async def _look_for_it(self) -> None:
        """Until the peer is back. Questions go to others meanwhile, if there are others."""
        pause, rivals = _FIRST_PAUSE, _RIVALS
        while self.is_away:
            if await self._race(rivals):
                self._hear()
                return
            rivals = 1
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311  # no secret
            pause = min(2 * pause, _MAX_PAUSE)

    async def _race(self, rivals: int) -> bool:
        """Whether the peer answers on this connection or a new one, which then stands for it."""
        looks = {asyncio.create_task(_answers(self._channel, _LOOK)): self._channel}
        try:
            for number in range(rivals, -1, -1):
                patience = _HEAD_START if number else _LOOK
                over, _ = await asyncio.wait(looks, timeout=patience, return_when=_FIRST)
                if over:
                    return self._win(looks, over)
                if number:
                    channel = self._channel_to_it()
                    looks[asyncio.create_task(_answers(channel, _LOOK))] = channel
            return False
        finally:
            for look in looks:
                look.cancel()
            await asyncio.gather(*looks, return_exceptions=True)
            for channel in looks.values():
                if channel is not self._channel:
                    self._put_away(channel)

    def _win(
        self,
        looks: dict["asyncio.Task[bool]", grpc.aio.Channel],
        over: set["asyncio.Task[bool]"],
    ) -> bool:
        winners = [looks[look] for look in over if look.result()]
        if not winners:
            return False  # The peer is not silent, but gone: more connections find it no sooner.
        if self._channel not in winners:
            self._end_calls()
            self._use(winners[0])
        return True


async def _answers(channel: grpc.aio.Channel, seconds: float) -> bool:
    # Of the health service's messages nothing matters here, so they stay bytes.
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_HEALTH)
    try:
        async with asyncio.timeout(seconds + 0.5):  # gRPC's threads keep the first one.
            await method(b"", timeout=seconds)
    except grpc.aio.AioRpcError as error:
        return failed(error).meaning is not Meaning.NOT_REACHED
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return False  # Its channel was put away meanwhile.
    except (TimeoutError, grpc.aio.UsageError):
        return False
    return True
