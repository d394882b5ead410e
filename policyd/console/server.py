"""The console behind its listener: uvicorn, started and stopped."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import uvicorn

from policyd import tokens
from policyd.configuration import Address
from policyd.console.app import application
from policyd.console.attempts import Attempts
from policyd.console.connection import Connection
from policyd.console.guards import public_origin
from policyd.console.pages import Console
from policyd.console.sessions import Sessions
from policyd.errors import CannotListen, SettingsError
from policyd.settings import ServerSettings
from policyd.store import Store

_MAX_HEAD = 64 * 2**10
"""Bytes of a request line and its headers: the cookies of all that a machine serves add up."""
_GRACE = 3
"""Seconds that pages under way have when the console stops."""
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  # compared, not listened on


class ConsoleServer:
    """Runs the console at `settings.console`, on a store that is migrated.

    `async with ConsoleServer(settings, store) as server:`; `server.address` is where it listens.
    Starting raises SettingsError or CannotListen.
    """

    def __init__(self, settings: ServerSettings, store: Store) -> None:
        assert settings.console is not None
        self._address = settings.console
        self._tls = _tls(settings)
        self._console = Console(settings, store, _token(settings), _sessions(settings), Attempts())
        self._server: _Uvicorn
        self._running: asyncio.Task[None]
        self.address = self._address

    async def __aenter__(self) -> Self:
        listener = _listen(self._address)
        tls = self._tls
        config = uvicorn.Config(
            application(self._console),
            http=Connection,
            h11_max_incomplete_event_size=_MAX_HEAD,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE,
            ssl_context_factory=(lambda *_: tls) if tls else None,
        )
        self._server = _Uvicorn(config)
        self._running = asyncio.create_task(self._server.serve(sockets=[listener]))
        self._running.add_done_callback(lambda _: self._server.listening.set())
        await self._server.listening.wait()
        if self._running.done():
            await self._running  # It failed; this raises why.
        self.address = Address(self._address.host, listener.getsockname()[1])
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        await self._running


def console_url(settings: ServerSettings) -> str:
    """Where a browser finds the console."""
    assert settings.console is not None
    if settings.console_url:
        return public_origin(settings.console_url)
    host, port = settings.console
    reached = Address(socket.gethostname() if host in _EVERYWHERE else host, port)
    return f"{'https' if settings.tls_cert else 'http'}://{reached}"


def first_link(settings: ServerSettings, store: Store) -> str | None:
    """The one-time link by which the administrator sets the password; None once it is set.

    It is a secret, good for a day. Raises SettingsError or StoreUnavailable.
    """
    known = store.administrator.get()
    if known.password_hash:
        return None
    code = _sessions(settings).link_code(known.epoch)
    return f"{console_url(settings)}/first-password?code={code}"


def _token(settings: ServerSettings) -> str:
    return tokens.load(settings.admin_token_file, "--admin-token-file")


def _sessions(settings: ServerSettings) -> Sessions:
    return Sessions(_token(settings), secure=console_url(settings).startswith("https:"))


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
        """Whoever runs the console handles signals."""
        yield


def _listen(address: Address) -> socket.socket:
    try:
        # Shared with the parent process, which holds the port while this one is replaced.
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        return socket.create_server(address, family=family, reuse_port=True)
    except OSError:
        raise CannotListen(
            f"--console {address} cannot be listened on: another program has the port, or it is "
            "no address of this machine. Give --console another one; port 0 takes a free port"
        ) from None


def _tls(settings: ServerSettings) -> ssl.SSLContext | None:
    if settings.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as problem:
        raise SettingsError(
            f"--tls-cert {settings.tls_cert} and --tls-key {settings.tls_key} cannot be used "
            f"({problem}): give a PEM certificate chain and its PEM key, without a password"
        ) from None
    return context


# It would tell the one-time link: whatever handlers somebody gives it, it stays silent.
logging.getLogger("uvicorn.access").disabled = True
