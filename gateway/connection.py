"""One connection to the upstream: how long each wait may last, and how the connection ended.

    connecting   `Timeouts.connect` for all of it: see connector.py
    sending      `Timeouts.send` for the upstream to take more of the request
    waiting      `Timeouts.first_byte`, from the end of the request to the end of the answer's head
    answering    `Timeouts.read` between two pieces of the answer

aiohttp has one time-out for the last two, and none for sending. Nor does it report whether a lost
connection had brought any byte of an answer, or how long it had been idle: the former decides
whether the request may be sent again, and keep_alive.py learns from the latter.
"""

import asyncio
import re
import select
from contextlib import suppress
from time import monotonic
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from gateway.keep_alive import MOST, IdleTime
from gateway.resending import Delivery
from gateway.timeouts import Timeouts

_SOON = 1.0
"""Seconds after a failure within which the loss of the connection becomes known."""


_TIMEOUT = re.compile(r"(?:^|[,\s])timeout\s*=\s*\"?(\d{1,9})", re.IGNORECASE)


class SlowToTake(aiohttp.ServerTimeoutError):
    """The upstream has stopped receiving the request."""


class UpstreamConnection(ResponseHandler):
    """aiohttp's connection, with time-outs of our own and a record of what came."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, timeouts: Timeouts, idle_time: IdleTime
    ) -> None:
        super().__init__(loop=loop)
        self._timeouts = timeouts
        self._idle_time = idle_time
        self._keep = MOST
        self._idle: float | None = None
        """Seconds that it was idle before the current request; None with its first request."""
        self._rests_since: float | None = None
        """When it became idle, in seconds of monotonic(); None while it carries a request."""
        self._is_waiting = False
        """Whether the answer's head is still incomplete."""
        self._has_received = False
        self._has_ended = False
        self._delivery: Delivery | None = None
        self._connected: Any = None
        self._lost = asyncio.Event()
        self._head_late: asyncio.TimerHandle | None = None
        self._taken_late: asyncio.TimerHandle | None = None

    def begin(self) -> Delivery:
        """Note that a request is about to be sent. Returns its Delivery."""
        self._is_waiting, self._has_received = True, False
        if self._rests_since is not None:
            self._idle = monotonic() - self._rests_since
            self._rests_since = None
        self._delivery = Delivery(self._connected)
        return self._delivery

    def rest(self) -> None:
        """Note that the request is over, and that the connection is kept for another one."""
        self._rests_since = monotonic()
        self._delivery = None

    async def is_lost_unanswered(self) -> bool:
        """Whether it is lost, and no byte of an answer to the last request has come."""
        with suppress(TimeoutError):  # The request may fail a moment before the loss is noted.
            async with asyncio.timeout(_SOON):
                await self._lost.wait()
        return self._lost.is_set() and not self._has_received

    def is_usable(self, idle: float) -> bool:
        """Whether another request may be sent after `idle` seconds, as far as the gateway knows."""
        if not self.is_connected() or self.should_close:
            return False
        if idle > min(self._keep, self._idle_time.usable):
            return False
        # The event loop may not have read yet what has come: an end, or bytes that answer nothing.
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
            # EPIPE: the upstream had ended the connection (FIN) before it reset it.
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
        """See ResponseHandler: the answer's head is complete, or an informational one (1xx)."""
        message = data[0]
        if message.code >= 200 or message.code == 101:
            self._is_waiting = False
            _cancel(self._head_late)
            self._learn(message.headers.get("Keep-Alive", ""))
            self._reschedule_timeout()
        super().feed_data(data, size)

    def start_timeout(self) -> None:
        """See ResponseHandler: the request has been sent."""
        if self._is_waiting:
            _cancel(self._head_late)
            self._head_late = self._loop.call_later(self._timeouts.first_byte, self._be_late)
        else:
            super().start_timeout()

    def _reschedule_timeout(self) -> None:
        if not self._is_waiting:
            super()._reschedule_timeout()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        super().pause_writing()
        self._taken_late = self._loop.call_later(self._timeouts.send, self._give_up)

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
        """Use the connection for less time than the upstream's Keep-Alive header (`told`)
        allows."""
        if found := _TIMEOUT.search(told):
            seconds = int(found[1])
            self._keep = min(MOST, max(seconds - 1.0, seconds / 2))


def _cancel(*timers: asyncio.TimerHandle | None) -> None:
    for timer in timers:
        if timer is not None:
            timer.cancel()
