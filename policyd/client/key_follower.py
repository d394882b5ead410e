"""Fills a table of settings from policyd and keeps it current, over one stream at a time.

A stream is given up where it ends, is silent, late, of another database, or stale while there are
other policyds to follow. Then the next address is tried after a pause with jitter, which grows with
each round of the addresses, so that a policyd that restarts is not found by all its gateways at
once.
"""

import asyncio
import logging
import random
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
from grpc import ChannelCredentials

from policyd.build_info import version
from policyd.client.connection import OPTIONS
from policyd.client.key_stream import SILENCE, KeyStream, Pulse, StreamFault
from policyd.client.stream_call import StreamCall
from policyd.command.worker_clock import WorkerClock
from policyd.keys import key_table
from policyd.keys.key_table import KeyTable
from policyd.v1 import local_pb2 as pb
from policyd.v1.local_pb2_grpc import LocalDecisionServiceStub

if TYPE_CHECKING:
    from policyd.v1.local_pb2_grpc import LocalDecisionServiceAsyncStub  # In the types only.

_log = logging.getLogger(__name__)

_FIRST_PAUSE, _MAX_PAUSE = 0.2, 5.0
"""Seconds between two streams, at first and at most, before jitter."""
_MAX_MESSAGE = 64 * 2**20
"""Bytes of one message of the stream, at most."""
_PATIENCE = 5.0
"""Seconds that a stream has to make the settings fresh, before another address is tried."""
_HOST = 256
"""Characters of the host's name that policyd takes."""


class Policyds(NamedTuple):
    """The policyds that a gateway may follow and send its log to, and how."""

    targets: tuple[str, ...]
    credentials: ChannelCredentials | None
    token: str

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of each call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


class KeyFollower:
    """Keeps `keys` as the settings at `policyds` are, for `process`, which decides by them.

    `database` is the identity of the database that the decisions in the spool belong to, "" where
    there is none yet. `expect` is called when a policyd names the identity of its database, and
    raises StreamFault unless that is the right one. Settings count as stale after `max_staleness`
    seconds. Belongs to one event loop.
    """

    def __init__(
        self,
        keys: KeyTable,
        clock: WorkerClock,
        policyds: Policyds,
        process: str,
        expect: Callable[[str], Awaitable[None]],
        max_staleness: float,
        database: str,
    ) -> None:
        self._keys = keys
        self._pulse = Pulse(clock)
        self._policyds = policyds
        self._process = process
        self._expect = expect
        self._max_staleness = max_staleness
        self.database = database
        """The identity of the database that is followed."""
        self.is_followed = False
        """Whether a stream stands and the settings are fresh by it."""
        self.settled = asyncio.Event()
        """Set once settings are followed, or all addresses have failed."""
        self._told = ""
        """The problem that was logged last; "" while settings are followed."""
        self.problem = "it has not answered yet"
        """Why no stream stands; "" while one does."""

    async def follow(self) -> None:
        """Follow, until cancelled."""
        targets = list(self._policyds.targets)
        # The first one is followed most, and should not be the same one in all processes.
        random.shuffle(targets)
        pause = _FIRST_PAUSE
        while True:
            for target in targets:
                self.problem = await self._follow_one(target)
                if self.is_followed:
                    pause, self.is_followed = _FIRST_PAUSE, False
                self._tell(target)
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  # no secret
            self.settled.set()
            pause = min(pause * 2, _MAX_PAUSE)

    def _tell(self, target: str) -> None:
        """Log why no stream stands, where the cause has changed."""
        if self.problem != self._told:
            self._told = self.problem
            _log.error(
                "settings stay at revision %d, as policyd at %s is not followed: %s",
                *(self._keys.revision, target, self.problem),
            )

    async def _follow_one(self, target: str) -> str:
        """Follow one policyd as long as possible. Returns why that ended."""
        try:
            async with channel_to(target, self._policyds) as channel:
                await self._read(channel, target)
        except StreamFault as fault:
            return str(fault)
        except grpc.aio.AioRpcError as error:
            return reason(error.code(), error.details())
        except TimeoutError:
            return f"it has been silent for {SILENCE:g} s"
        except Exception as error:  # noqa: BLE001  # Whatever the error, following goes on.
            return repr(error)
        return "it has ended the stream"

    async def _read(self, channel: grpc.aio.Channel, target: str) -> None:
        stub: LocalDecisionServiceAsyncStub = LocalDecisionServiceStub(channel)
        call = StreamCall(stub.WatchKeys(metadata=self._policyds.metadata))
        stream = KeyStream(self._keys, self._pulse, self._expect)
        began = key_table.seconds()
        try:
            await _within(
                SILENCE, call.write(first_request(self._keys, self.database, self._process))
            )
            while True:
                left = stream.heard_at + SILENCE - key_table.seconds()
                message = await _within(max(left, 0), call.read())
                if not isinstance(message, pb.WatchKeysResponse):
                    return
                if await stream.take(message):
                    await _within(SILENCE, call.write(state_of(self._keys, self.database)))
                self._note(stream, target)
                if self._is_better_elsewhere(stream, began):
                    raise StreamFault("its own settings are stale, and others may have newer ones")
        finally:
            call.cancel()

    def _note(self, stream: KeyStream, target: str) -> None:
        self.database = stream.database or self.database
        if not self.is_followed and self._is_fresh:
            self.is_followed, self.problem = True, ""
            self.settled.set()
            if self._told:
                _log.info(
                    "policyd at %s is followed again; settings are at revision %d",
                    *(target, self._keys.revision),
                )
            self._told = ""

    @property
    def _is_fresh(self) -> bool:
        return self._keys.is_known and self._keys.staleness() <= self._max_staleness / 2

    def _is_better_elsewhere(self, stream: KeyStream, began: float) -> bool:
        others = len(self._policyds.targets) > 1
        is_stale = not self._is_fresh or stream.behind > self._max_staleness / 2
        return others and is_stale and key_table.seconds() - began > _PATIENCE


def first_request(keys: KeyTable, database: str, process: str) -> pb.WatchKeysRequest:
    """The first request of a stream: which process follows, and which settings it has."""
    request = state_of(keys, database)
    request.follower_id = process
    request.host = socket.gethostname()[:_HOST]
    request.version = version()
    return request


def state_of(keys: KeyTable, database: str) -> pb.WatchKeysRequest:
    """Which settings a follower has in force."""
    return pb.WatchKeysRequest(
        database=database, revision=keys.revision, epoch=keys.epoch, has_none=not keys.is_known
    )


async def _within(seconds: float, work: Awaitable[Any]) -> Any:
    async with asyncio.timeout(seconds):
        return await work


def channel_to(target: str, policyds: Policyds) -> grpc.aio.Channel:
    """A channel to one of `policyds`."""
    options = (*OPTIONS, ("grpc.max_receive_message_length", _MAX_MESSAGE))
    if policyds.credentials:
        return grpc.aio.secure_channel(target, policyds.credentials, options=options)
    return grpc.aio.insecure_channel(target, options=options)


def reason(code: grpc.StatusCode, details: str | None) -> str:
    """Why a call of LocalDecisionService failed, and what to do about it."""
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return "it serves no gateways that decide by themselves: serve it with --local-token-file"
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return (
            "it was shown another token than the one in its --local-token-file: give the gateway "
            "that one as --policyd-token-file"
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in (details or ""):
        return (
            "it takes no message so large: have each policyd, and each proxy before it, take 2 MiB "
            f"(--max-message): {details}"
        )
    return f"{code.name}: {details}"
