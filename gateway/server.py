"""The gateway behind its listener: uvicorn, started, drained and stopped."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import uvicorn

from gateway.app import Evaluate, Gateway
from gateway.protocol import Protocol
from gateway.settings import Settings, listener_tls
from policyd.configuration import Address, CannotListen

_BACKLOG = 2048
_KEEPALIVE = 75
"""Seconds that an idle client's connection is kept: longer than clients keep theirs."""


class Server:
    """Runs the gateway: `async with Server(settings) as server:`; `server.url` is where it listens.

    `evaluate` decides in place of the policyd that `settings` name. Starting raises SettingsError
    or CannotListen.
    """

    def __init__(self, settings: Settings, evaluate: Evaluate | None = None) -> None:
        self._settings = settings
        self._gateway = Gateway(settings, evaluate)
        self._server: _Uvicorn
        self._running: asyncio.Task[None]
        self.url = ""

    async def __aenter__(self) -> Self:
        tls = listener_tls(self._settings)
        listener = _listen(self._settings.listen)
        port = listener.getsockname()[1]
        config = uvicorn.Config(
            await self._gateway.__aenter__(),
            http=Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEPALIVE,
            timeout_graceful_shutdown=self._settings.grace,
            ssl_context_factory=(lambda *_: tls) if tls else None,
        )
        self._server = _Uvicorn(config)
        self._running = asyncio.create_task(self._server.serve(sockets=[listener]))
        self._running.add_done_callback(lambda _: self._server.listening.set())
        await self._server.listening.wait()
        if self._running.done():
            await self._running  # It failed; this raises why.
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://{Address(self._settings.listen.host, port)}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        await self._running
        await self._gateway.__aexit__(kind, error, trace)

    def hurry(self) -> None:
        """Cut the requests under way, where it is being stopped."""
        self._server.force_exit = True


class _Uvicorn(uvicorn.Server):
    """Says when it listens, and leaves signals alone."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server."""
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Whoever runs the gateway handles signals."""
        yield


def _listen(address: Address) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        return socket.create_server(address, family=family, backlog=_BACKLOG)
    except OSError:
        raise CannotListen(
            f"--listen {address} cannot be listened on: another program has the port, or it is no "
            "address of this machine. Give --listen another one; port 0 takes a free port"
        ) from None


class _NoNoise(logging.Filter):
    """Drops what uvicorn says about cut connections: the gateway has said why, in one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        return "returned without completing response" not in str(record.msg)


logging.getLogger("uvicorn.error").addFilter(_NoNoise())
