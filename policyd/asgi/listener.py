"""A listener: uvicorn serving an ASGI app at one socket, started, drained and stopped by its owner.

Stopping goes in steps, so that no request is lost and none keeps the process from ending:
connections that wait in the socket are still taken; idle ones are ended, and those whose request
is not complete yet have a second; requests under way have `grace` seconds, and those whose answer
has begun `stream_grace`; then what is left is cut.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn

from policyd.asgi.bounded import Bounded
from policyd.asgi.door import Door
from policyd.asgi.limits import Limits
from policyd.asgi.protocol import Protocol
from policyd.asgi.visit import State
from policyd.command.address import BACKLOG

_AT_ONCE = 32
"""Connections that are taken in one turn of the event loop."""
_LAST_REQUEST = 1.0
"""Seconds for which a listener that stops keeps connections whose request may be on its way."""
_UNUSED = (State.IDLE,)
_UNASKED = (State.IDLE, State.OPENING, State.HEAD)
_LOOK = 0.05
"""Seconds between two looks at which requests are under way, while it stops."""
_FOR_EVER = 10**9
"""uvicorn's seconds for an idle connection: connections.py bounds them instead."""


App = Callable[[Any, Any, Any], Awaitable[None]]


class Listener:
    """Serves the ASGI app `app` until it is stopped.

    When it is stopped, requests under way have `grace` seconds, and those whose answer has begun
    `stream_grace`, by default the same. `limits` bound its connections. By default it speaks HTTP
    as a gateway has to (protocol.py); `options` replace uvicorn's options.
    """

    def __init__(
        self,
        app: App,
        *,
        tls: ssl.SSLContext | None,
        grace: float,
        limits: Limits,
        stream_grace: float | None = None,
        **options: Any,
    ) -> None:
        usual: dict[str, Any] = {
            "http": Protocol,
            "ws": "none",
            "lifespan": "off",
            "interface": "asgi3",
            "log_config": None,
            "access_log": False,
            "proxy_headers": False,
            "server_header": False,
            "date_header": False,
            "backlog": BACKLOG,
            "timeout_keep_alive": _FOR_EVER,
        }
        config = uvicorn.Config(app, **usual | options)
        graces = (grace, grace if stream_grace is None else stream_grace)
        self._server = _Uvicorn(config, tls, limits, graces)
        self._running: asyncio.Task[None] | None = None

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return self._server.connections

    @property
    def under_way(self) -> int:
        """Number of requests that are being answered."""
        return len(self._server.server_state.tasks)

    async def start(self, listening: socket.socket, *, shared: bool = False) -> None:
        """Serve the connections of `listening`, and close it at the end.

        Where other processes share the socket (`shared`), it takes one connection at a time, so
        that they take turns.
        """
        self._server.at_once = 1 if shared else _AT_ONCE
        self._running = asyncio.create_task(self._server.serve(sockets=[listening]))
        self._running.add_done_callback(lambda _: self._server.listening.set())
        await self._server.listening.wait()
        if self._running.done():
            await self._running  # It failed: this raises the error.

    def wind_down(self) -> None:
        """Go on answering, but end each connection with its answer, so that clients reconnect."""
        self._server.wind_down()

    async def stop(self) -> None:
        """Take no new requests, and wait for those under way, as long as they may take."""
        self._server.should_exit = True
        if self._running is not None:
            await self._running

    def hurry(self) -> None:
        """Cut the requests under way, if the listener is stopping."""
        self._server.force_exit = True


class _Uvicorn(uvicorn.Server):
    """uvicorn's server with a Door in place of asyncio's; it signals when it listens, and leaves
    process signals alone."""

    def __init__(
        self,
        config: uvicorn.Config,
        tls: ssl.SSLContext | None,
        limits: Limits,
        graces: tuple[float, float],
    ) -> None:
        super().__init__(config)
        self._tls = tls
        self._limits = limits
        self._graces = graces
        self.at_once = _AT_ONCE
        self._doors: list[Door] = []
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server."""
        await self.lifespan.startup()
        self._doors = [
            Door(one, self._protocol, self._tls, self._limits, self.at_once)
            for one in sockets or ()
        ]
        self.servers = self._doors  # type: ignore[assignment]  # uvicorn only closes them.
        self.started = True
        self.listening.set()

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return sum(len(door.crowd) for door in self._doors)

    def _protocol(self) -> Bounded:
        made: Any = self.config.http_protocol_class
        protocol: Bounded = made(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    def wind_down(self) -> None:
        """Have each answer end its connection."""
        for door in self._doors:
            door.crowd.wind_down()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server. uvicorn's own has one deadline for all requests, and closes the
        socket while connections wait in it."""
        for door in self._doors:
            door.close()
        self.wind_down()
        grace, stream_grace = self._graces
        began = time.monotonic()
        try:
            while (self.connections or self.server_state.tasks) and not self.force_exit:
                spent = time.monotonic() - began
                for door in self._doors:
                    door.crowd.end(*(_UNASKED if spent >= min(_LAST_REQUEST, grace) else _UNUSED))
                    if spent >= grace:
                        door.crowd.end_requests(answered=False)
                    if spent >= stream_grace:
                        door.crowd.end_requests(answered=True)
                if spent >= max(grace, stream_grace):
                    break
                await asyncio.sleep(_LOOK)
        finally:
            await self._cut()

    async def _cut(self) -> None:
        cut = set(self.server_state.tasks)
        for task in cut:
            task.cancel()
        if cut:  # Each can still answer that the server is stopping.
            await asyncio.wait(cut, timeout=_LAST_REQUEST)
        for door in self._doors:
            door.cut()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the listener's owner."""
        yield


_NOISE = (
    # The app has logged the reason in one line.
    "returned without completing response",
    # Any client could fill the log with these.
    "Invalid HTTP request received",
    "Unsupported upgrade request",
    "No supported WebSocket library detected",
)


class _NoNoise(logging.Filter):
    """Drops what uvicorn logs about single requests and connections."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        return not any(one in str(record.msg) for one in _NOISE)


logging.getLogger("uvicorn.error").addFilter(_NoNoise())
