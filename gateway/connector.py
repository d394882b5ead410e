"""The pool of connections to the upstream: which one a request takes, and when a new one is made.

A request that is sent on a connection which the upstream is just closing gets no answer, and
sending it again is safe only sometimes (resending.py says when). So the pool avoids that moment:

- It takes the connection that was used last, because the upstream closes the others before it.
- It passes over a connection that the upstream has closed, or has been idle for longer than the
  upstream is known to keep one: from its Keep-Alive header, or learnt (keep_alive.py).
- A request that is sent again takes a new connection. A context variable holds the current attempt,
  because aiohttp passes nothing from its caller to the connector.
- A new connection is made only where the breaker allows it (breaker.py). A fault of the gateway's
  own machine, such as a lack of file descriptors, does not count against the upstream.

This and connection.py build on parts of aiohttp that are not public: pyproject.toml pins its minor
version, and the tests of the gateway fail where a new one differs.
"""

import asyncio
import errno
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from time import monotonic
from typing import Any, Self

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection

from gateway.breaker import Breaker
from gateway.connection import UpstreamConnection
from gateway.keep_alive import MOST, IdleTime
from gateway.resending import Delivery
from gateway.timeouts import Timeouts

_OWN_FAULTS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}
)
"""Errors of connecting that the gateway's own machine causes."""


class Attempt:
    """One attempt to send a request. One that `is_second` takes a new connection."""

    __slots__ = ("delivery", "is_second", "used")

    def __init__(self, *, is_second: bool) -> None:
        self.is_second = is_second
        self.used: UpstreamConnection | None = None
        """The connection that carries the request, once there is one."""
        self.delivery: Delivery | None = None

    async def may_be_repeated(self, *, is_safe: bool) -> bool:
        """Whether the request, which got no answer, may be sent once more.

        It may where the upstream closed the connection before the first byte of an answer, and
        either received nothing of the request, or only reads for it (`is_safe`).
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


_CURRENT: ContextVar[Attempt] = ContextVar("the attempt that a task makes")


class Connector(aiohttp.TCPConnector):
    """Makes connections where `breaker` allows it, and keeps those that are idle."""

    def __init__(self, timeouts: Timeouts, breaker: Breaker) -> None:
        super().__init__(limit=0, keepalive_timeout=MOST)
        self._breaker = breaker
        self._time_to_connect = timeouts.connect
        make: Callable[[], ResponseHandler] = partial(
            UpstreamConnection, asyncio.get_running_loop(), timeouts, IdleTime()
        )
        self._factory = make  # type: ignore[assignment]  # aiohttp's own is a partial, too

    async def connect(
        self, req: ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        """See aiohttp. Raises UpstreamDown where the breaker allows no new connection."""
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
            # The new connection replaces the one that the upstream would close first.
            kept.popleft()[0].close()
            return None
        if kept:
            kept.rotate(1)  # aiohttp takes the first: let it be the one that was used last.
        return await super()._get(key, traces)

    def _release(self, key: Any, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        super()._release(key, protocol, should_close=should_close)
        if isinstance(protocol, UpstreamConnection) and protocol.is_connected():
            protocol.rest()

    @staticmethod
    def _is_usable(kept: ResponseHandler, since: float) -> bool:
        return isinstance(kept, UpstreamConnection) and kept.is_usable(monotonic() - since)

    async def _create_connection(self, *args: Any, **kwargs: Any) -> ResponseHandler:
        is_trial = self._breaker.enter()
        try:
            async with asyncio.timeout(self._time_to_connect):
                made = await super()._create_connection(*args, **kwargs)
        except (aiohttp.ClientError, OSError) as problem:
            if is_own_fault(problem):
                self._breaker.leave(is_trial=is_trial)
            else:
                self._breaker.fail(problem, is_trial=is_trial)
            raise
        except BaseException:  # The task was cancelled, because the client has left.
            self._breaker.leave(is_trial=is_trial)
            raise
        self._breaker.work()
        return made


def is_own_fault(problem: Exception) -> bool:
    """Whether the gateway's own machine could not make the connection."""
    return getattr(problem, "errno", None) in _OWN_FAULTS
