"""One connection to a policyd: it notices that no answers come, steps aside, and comes back.

TCP does not help here. A peer that has vanished leaves its connections open, and a process that is
stopped still accepts new ones. So a peer counts as silent when calls wait and none has been
answered for `patience` seconds. A peer that answers some calls is slow, not silent.

When a peer falls silent, its calls end, to be made elsewhere, and its channel is replaced. The
connection is then away: others are preferred, and it looks for its peer with growing pauses. The
first look tries several new channels, as one of them may lead to another worker of the same
address. If this process itself has stood still, the answers may be here and not read yet, so the
wait begins anew.
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

OPTIONS = (
    # A policyd that restarts is found again quickly. The second option is also how long a peer may
    # take to accept a connection: one that is stopped never does.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_retries", 0),  # peers.py retries, within one deadline.
    ("grpc.max_send_message_length", -1),
    # A peer that has vanished is noticed while no call is made, too. gRPC waits as long as the 3rd
    # option says, which is a minute by default and not shortened by the second.
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
# The contents of the health service's other messages do not matter here, so all stay bytes.
_DECISIONS = b"\x0a\x09decisions"
"""A request for the health of the service "decisions": whether requests get a decision."""
_NOT_SERVING = b"\x08\x02"
_FIRST_PAUSE, _MAX_PAUSE = 0.1, 5.0
"""Seconds between two looks for a peer that is away, at first and at most."""
_LOOK = 2.0
"""Seconds that a look may take."""
_RIVALS = 4
"""New channels that the first look tries: workers of one address cannot be told apart, so a new
channel may lead to the worker that hangs, too."""
_HEAD_START = 0.05
"""Seconds that each has before the next one is tried."""


class Connection:
    """Calls the policyd at `address`, which counts as silent after `patience` seconds with calls
    under way and no answer. Belongs to the event loop that it is made in.
    """

    def __init__(
        self, address: str, credentials: ChannelCredentials | None, patience: float
    ) -> None:
        self.address = address
        self.is_away = False
        """Whether the peer did not answer when it was last tried."""
        self._credentials = credentials
        self._patience = patience
        self._calls: set[grpc.aio.Call] = set()
        self._expected = 0
        """How many of the calls should be answered soon."""
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
        """Make a call, and wait at most `seconds`. A call that `is_patient` is no sign of silence,
        as policyd itself may be waiting for a revision. Raises Failed."""
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
        """Whether the peer answers within `seconds`. Its health does not matter: it decides as long
        as it answers."""
        if not await _answers(self._channel, seconds):
            return False
        self._hear()
        return True

    async def decides(self, seconds: float) -> bool:
        """Whether the peer answers within `seconds`, and does not say that it gives no decisions;
        one of an older version does not say it."""
        reply = await _health(self._channel, seconds, _DECISIONS)
        return reply is not None and reply != _NOT_SERVING

    async def close(self) -> None:
        """Close the connection. Calls under way are cancelled."""
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
            channel = grpc.aio.secure_channel(self.address, self._credentials, options=OPTIONS)
        else:
            channel = grpc.aio.insecure_channel(self.address, options=OPTIONS)
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
        """End the calls under way, so that they are made elsewhere."""
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
            # This process has stood still: the answers may be here, and not read yet.
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
        """Look for the peer until it is back. Calls go to others meanwhile, if there are any."""
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
            return False  # The peer is gone, not silent: more channels find it no sooner.
        if self._channel not in winners:
            self._end_calls()
            self._use(winners[0])
        return True


async def _answers(channel: grpc.aio.Channel, seconds: float) -> bool:
    return await _health(channel, seconds) is not None


async def _health(channel: grpc.aio.Channel, seconds: float, request: bytes = b"") -> bytes | None:
    """What the health service replies; b"" where with an error. None: the peer does not answer."""
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_HEALTH)
    try:
        async with asyncio.timeout(seconds + 0.5):  # Holds even where gRPC's own timeout does not.
            return await method(request, timeout=seconds)
    except grpc.aio.AioRpcError as error:
        return None if failed(error).meaning is Meaning.NOT_REACHED else b""
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return None  # Its channel was put away meanwhile.
    except (TimeoutError, grpc.aio.UsageError):
        return None
