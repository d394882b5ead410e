"""The connections to the upstream: which one a request takes, and how long each wait may last.

The freshest of those that are kept is taken, as the upstream will close the others first, and none
that it has closed already, or has said that it will have. A request that meets a close all the same
is told by its connection whether it may be sent again: see delivery.py.

    connecting   `Patience.connect` for all of it
    sending      the upstream has `Patience.send` to take more of the request
    waiting      once it has all, `Patience.first_byte` for the answer's head to be complete
    answering    `Patience.read` between two pieces of the answer

This builds upon parts of aiohttp that may change with any version of it: pyproject.toml has the
versions that are known, and the tests tell.
"""

import asyncio
import errno
import re
import select
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from time import monotonic
from typing import Any, Self

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection

from gateway.breaker import Breaker
from gateway.delivery import Delivery
from gateway.idle import MOST, IdleTime
from gateway.patience import Patience

_SOON = 1.0
"""Seconds in which a connection that has failed is found to be lost."""
_TIMEOUT = re.compile(r"(?:^|[,\s])timeout\s*=\s*\"?(\d{1,9})", re.IGNORECASE)
_OWN_FAULTS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}
)
"""Why no connection could be made, where the upstream has no part in it."""


class SlowToTake(aiohttp.ServerTimeoutError):
    """The upstream does not take the request."""


class Try:
    """One sending of one request. `is_second` wants a new connection."""

    __slots__ = ("delivery", "is_second", "used")

    def __init__(self, *, is_second: bool) -> None:
        self.is_second = is_second
        self.used: UpstreamConnection | None = None
        """The connection, once there is one."""
        self.delivery: Delivery | None = None

    async def may_be_repeated(self, *, is_safe: bool) -> bool:
        """Whether the request, which got no answer, may be sent once more.

        It may where the upstream has closed the connection before any byte of an answer, and either
        cannot have had any of the request, or would not mind (`is_safe`).
        """
        if self.is_second or self.delivery is None or self.used is None:
            return False
        if not await self.used.is_lost_unanswered():
            return False
        return is_safe or await self.delivery.has_failed()

    def __enter__(self) -> Self:
        _CURRENT.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self.delivery is not None:
            self.delivery.close()


_CURRENT: ContextVar[Try] = ContextVar("the try that a task is at")


class UpstreamConnection(ResponseHandler):
    """One connection."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, patience: Patience, idle_time: IdleTime
    ) -> None:
        super().__init__(loop=loop)
        self._patience = patience
        self._idle_time = idle_time
        self._keep = MOST
        self._idle: float | None = None
        """Seconds that it was idle before the request that it carries; None before the first."""
        self._rests_since: float | None = None
        self._is_waiting = False
        """Whether the answer's head is not complete."""
        self._has_received = False
        self._has_ended = False
        self._delivery: Delivery | None = None
        self._connected: Any = None
        self._lost = asyncio.Event()
        self._head_late: asyncio.TimerHandle | None = None
        self._taken_late: asyncio.TimerHandle | None = None

    def begin(self) -> Delivery:
        """A request is about to be sent."""
        self._is_waiting, self._has_received = True, False
        if self._rests_since is not None:
            self._idle = monotonic() - self._rests_since
            self._rests_since = None
        self._delivery = Delivery(self._connected)
        return self._delivery

    def rest(self) -> None:
        """The request is over, and the connection is kept for another one."""
        self._rests_since = monotonic()
        self._delivery = None

    async def is_lost_unanswered(self) -> bool:
        """Whether it is lost, and no byte of an answer to the last request has come."""
        with suppress(TimeoutError):  # What has failed may come to know of it before this.
            async with asyncio.timeout(_SOON):
                await self._lost.wait()
        return self._lost.is_set() and not self._has_received

    def is_usable(self, idle: float) -> bool:
        """Whether another request may be sent after `idle` seconds, as far as is known here."""
        if not self.is_connected() or self.should_close:
            return False
        if idle > min(self._keep, self._idle_time.usable):
            return False
        # What the loop has not come to read yet: an end, or bytes that belong to no request.
        looking = select.poll()
        looking.register(self._connected.fileno(), select.POLLIN)
        return not looking.poll(0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._connected = transport.get_extra_info("socket")

    def connection_lost(self, exc: BaseException | None) -> None:
        """See asyncio.Protocol."""
        _cancel(self._head_late, self._taken_late)
        if self._delivery is not None and not self._has_received:
            # A pipe that is broken is one that the upstream had ended before it was reset.
            has_ended = isinstance(exc, BrokenPipeError) or (exc is None and self._has_ended)
            self._delivery.lose(self._connected, has_ended=has_ended)
        self._note_end(by_upstream=exc is not None or self._has_ended)
        self._lost.set()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """See asyncio.Protocol."""
        self._has_ended = True
        super().eof_received()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._has_received = True
        super().data_received(data)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """A head is complete: the answer's, or one before it."""
        message = data[0]
        if message.code >= 200 or message.code == 101:
            self._is_waiting = False
            _cancel(self._head_late)
            self._learn(message.headers.get("Keep-Alive", ""))
            self._reschedule_timeout()
        super().feed_data(data, size)

    def start_timeout(self) -> None:
        """The request has been sent."""
        if self._is_waiting:
            _cancel(self._head_late)
            self._head_late = self._loop.call_later(self._patience.first_byte, self._be_late)
        else:
            super().start_timeout()

    def _reschedule_timeout(self) -> None:
        if not self._is_waiting:
            super()._reschedule_timeout()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        super().pause_writing()
        self._taken_late = self._loop.call_later(self._patience.send, self._give_up)

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        _cancel(self._taken_late)
        super().resume_writing()

    def _be_late(self) -> None:
        self.set_exception(aiohttp.SocketTimeoutError("it has not begun its answer in time"))

    def _give_up(self) -> None:
        self.set_exception(SlowToTake("it does not take the request"))
        if self.transport is not None:
            self.transport.abort()

    def _note_end(self, *, by_upstream: bool) -> None:
        if self._rests_since is not None:
            rested = monotonic() - self._rests_since
            if by_upstream or rested >= MOST:
                self._idle_time.note(rested)
        elif self._idle is not None and by_upstream and not self._has_received:
            self._idle_time.note(self._idle)

    def _learn(self, told: str) -> None:
        """Keep the connection for less than the upstream says that it does."""
        if found := _TIMEOUT.search(told):
            seconds = int(found[1])
            self._keep = min(MOST, max(seconds - 1.0, seconds / 2))


def _cancel(*timers: asyncio.TimerHandle | None) -> None:
    for timer in timers:
        if timer is not None:
            timer.cancel()


class Connector(aiohttp.TCPConnector):
    """Makes connections, where `breaker` lets it, and keeps them."""

    def __init__(self, patience: Patience, breaker: Breaker) -> None:
        super().__init__(limit=0, keepalive_timeout=MOST)
        self._breaker = breaker
        self._time_to_connect = patience.connect
        make: Callable[[], ResponseHandler] = partial(
            UpstreamConnection, asyncio.get_running_loop(), patience, IdleTime()
        )
        self._factory = make  # type: ignore[assignment]  # theirs is a partial, too

    async def connect(
        self, req: ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        """See aiohttp. A new connection may have to wait for the breaker's leave."""
        connection = await super().connect(req, traces, timeout)
        used = connection.protocol
        assert isinstance(used, UpstreamConnection)
        current = _CURRENT.get()
        current.used, current.delivery = used, used.begin()
        return connection

    async def _get(self, key: Any, traces: list[Any]) -> Connection | None:
        kept = self._conns.get(key)
        while kept and not self._is_usable(*kept[-1]):
            kept.pop()[0].close()
        if kept and _CURRENT.get().is_second:
            # The new connection takes the place of the one that would be closed first.
            kept.popleft()[0].close()
            return None
        if kept:
            kept.rotate(1)  # The first is taken: let it be the freshest.
        return await super()._get(key, traces)

    def _release(self, key: Any, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        super()._release(key, protocol, should_close=should_close)
        if isinstance(protocol, UpstreamConnection) and protocol.is_connected():
            protocol.rest()

    @staticmethod
    def _is_usable(kept: ResponseHandler, since: float) -> bool:
        return isinstance(kept, UpstreamConnection) and kept.is_usable(monotonic() - since)

    async def _create_connection(self, *args: Any, **kwargs: Any) -> ResponseHandler:
        tries = self._breaker.enter()
        try:
            async with asyncio.timeout(self._time_to_connect):
                made = await super()._create_connection(*args, **kwargs)
        except (aiohttp.ClientError, OSError) as problem:
            if is_own_fault(problem):
                self._breaker.leave(tries=tries)
            else:
                self._breaker.fail(problem, tries=tries)
            raise
        except BaseException:  # The client has left.
            self._breaker.leave(tries=tries)
            raise
        self._breaker.work()
        return made


def is_own_fault(problem: Exception) -> bool:
    """Whether the gateway's machine has no room for a connection."""
    return getattr(problem, "errno", None) in _OWN_FAULTS
