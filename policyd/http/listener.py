"""uvicorn behind one socket: started, drained and stopped by whoever runs it."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from policyd.configuration import Address, SettingsError
from policyd.http.protocol import Protocol

BACKLOG = 2048
_KEEPALIVE = 75
"""Seconds that an idle client's connection is kept: longer than clients keep theirs."""

App = Callable[[Any, Any, Any], Awaitable[None]]


class Listener:
    """Serves the ASGI app `app` until it is stopped.

    `grace` is how many seconds requests under way have then. By default it speaks as a gateway
    does; `options` are uvicorn's, for who wants it otherwise.
    """

    def __init__(
        self, app: App, *, tls: ssl.SSLContext | None, grace: float, **options: Any
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
            "timeout_keep_alive": _KEEPALIVE,
            "timeout_graceful_shutdown": grace,
            "ssl_context_factory": (lambda *_: tls) if tls else None,
        }
        self._server = _Uvicorn(uvicorn.Config(app, **usual | options))
        self._running: asyncio.Task[None] | None = None

    async def start(self, listening: socket.socket) -> None:
        """Serve what connects to `listening`, which it closes at the end."""
        self._running = asyncio.create_task(self._server.serve(sockets=[listening]))
        self._running.add_done_callback(lambda _: self._server.listening.set())
        await self._server.listening.wait()
        if self._running.done():
            await self._running  # It failed; this raises why.

    async def stop(self) -> None:
        """Take no new requests, and wait for those under way."""
        self._server.should_exit = True
        if self._running is not None:
            await self._running

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
        """Whoever runs it handles signals."""
        yield


def open_socket(address: Address, *, shared: bool = False) -> socket.socket:
    """A socket that listens at `address`; `shared` is for several processes on one port.

    Raises OSError.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    return socket.create_server(address, family=family, backlog=BACKLOG, reuse_port=shared)


def tls_context(
    certificate: Path | None, key: Path | None, client_authority: Path | None = None
) -> ssl.SSLContext | None:
    """What to listen with, None for plain HTTP. With `client_authority`, clients must show a
    certificate of it. Raises SettingsError.
    """
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as problem:
        raise SettingsError(
            f"--tls-cert {certificate} and --tls-key {key} cannot be used ({problem}): give a PEM "
            "certificate chain and its PEM key, without a password"
        ) from None
    if client_authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(client_authority)
        except (OSError, ssl.SSLError) as problem:
            raise SettingsError(
                f"--tls-client-ca {client_authority} cannot be used ({problem}): give PEM "
                "certificates"
            ) from None
    return context


class _NoNoise(logging.Filter):
    """Drops what uvicorn says about cut connections: the app has said why, in one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        return "returned without completing response" not in str(record.msg)


logging.getLogger("uvicorn.error").addFilter(_NoNoise())
