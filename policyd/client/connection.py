"""One connection to a policyd over gRPC: it notices that no answers come, steps aside, and returns.

When a peer falls silent (silence.py), its calls end, to be made elsewhere, and its channel is
replaced. The connection is then away (recovery.py): others are preferred, and it looks for
its peer.
"""

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.protobuf.message import Message
from grpc import ChannelCredentials

from policyd.client.recovery import HEAD_START, LOOK, Recovery
from policyd.client.silence import Silence
from policyd.client.statuses import Failed, Meaning, failed
from policyd.client.transport import Method
from policyd.v1.policy_pb2_grpc import PolicyServiceStub

if TYPE_CHECKING:
    from policyd.v1.policy_pb2_grpc import PolicyServiceAsyncStub  # In the types only.

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)

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


class Connection:
    """Calls the policyd at `address` with `metadata`. The peer counts as silent after `patience`
    seconds with calls under way and no answer. See transport.Transport.
    """

    def __init__(
        self,
        address: str,
        credentials: ChannelCredentials | None,
        metadata: Metadata,
        patience: float,
    ) -> None:
        self.address = address
        self._credentials = credentials
        self._metadata = metadata
        self._silence = Silence(patience, self._fall_silent)
        self._recovery = Recovery(self._race, self._silence)
        self._calls: set[grpc.aio.Call] = set()
        self._silences = 0
        self._closing: set[asyncio.Task[None]] = set()
        self._use(self._new_channel())

    @property
    def is_away(self) -> bool:
        """Whether the peer did not answer when it was last tried."""
        return self._recovery.is_away

    @property
    def load(self) -> int:
        """Calls under way."""
        return len(self._calls)

    async def ask(
        self,
        method: Method[_Request, _Response],
        request: _Request,
        seconds: float,
        *,
        is_patient: bool,
    ) -> _Response:
        """See Transport. Raises Failed."""
        silences = self._silences
        calling: Any = getattr(self._stub, method.name)
        call = calling(request, timeout=seconds, metadata=self._metadata)
        self._calls.add(call)
        if not is_patient:
            self._silence.expect()
        try:
            answer: _Response = await call
        except grpc.aio.AioRpcError as error:
            raise self._failed(error) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if silences == self._silences or task is None or task.cancelling():
                raise
            raise self._unanswered() from None
        finally:
            self._calls.discard(call)
            if not is_patient:
                self._silence.settle()
        self._recovery.end()
        return answer

    async def answers(self, seconds: float) -> bool:
        """See Transport."""
        if not await _answers(self._channel, seconds):
            return False
        self._recovery.end()
        return True

    async def decides(self, seconds: float) -> bool:
        """See Transport."""
        reply = await _health(self._channel, seconds, _DECISIONS)
        return reply is not None and reply != _NOT_SERVING

    async def close(self) -> None:
        """Close the connection. Calls under way are cancelled."""
        self._silence.stop()
        await self._recovery.close()
        await self._channel.close()
        await asyncio.gather(*self._closing)

    def _new_channel(self) -> grpc.aio.Channel:
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

    def _fall_silent(self) -> None:
        self._end_calls()
        if self._channel.get_state() is grpc.ChannelConnectivity.READY and not self.is_away:
            self._put_away(self._channel)
            self._use(self._new_channel())
        self._recovery.begin()

    def _failed(self, error: grpc.aio.AioRpcError) -> Failed:
        problem = failed(error)
        if problem.meaning is not Meaning.NOT_REACHED:
            self._recovery.end()
        elif problem.code is grpc.StatusCode.UNAVAILABLE:
            self._recovery.begin()
        return problem

    def _unanswered(self) -> Failed:
        return Failed(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            f"no answer from {self.address} for {self._silence.patience:g} s",
            Meaning.NOT_REACHED,
        )

    async def _race(self, rivals: int) -> bool:
        """Whether the peer answers on this channel or a new one, which then replaces it."""
        looks = {asyncio.create_task(_answers(self._channel, LOOK)): self._channel}
        try:
            for number in range(rivals, -1, -1):
                patience = HEAD_START if number else LOOK
                over, _ = await asyncio.wait(looks, timeout=patience, return_when=_FIRST)
                if over:
                    return self._win(looks, over)
                if number:
                    channel = self._new_channel()
                    looks[asyncio.create_task(_answers(channel, LOOK))] = channel
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
        self._recovery.end()
        return True


async def _answers(channel: grpc.aio.Channel, seconds: float) -> bool:
    return await _health(channel, seconds) is not None


async def _health(channel: grpc.aio.Channel, seconds: float, request: bytes = b"") -> bytes | None:
    """The health service's reply; b"" for an error; None where the peer does not answer."""
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
