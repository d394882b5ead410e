"""The console behind its listener, and the URLs at which a browser finds it."""

import logging
import socket
from contextlib import AsyncExitStack
from typing import Self

from policyd.asgi.limits import Limits
from policyd.asgi.listener import Listener
from policyd.asgi.tls import tls_context
from policyd.command.address import Address, listen
from policyd.command.threads import StoreThreads
from policyd.console.app import application
from policyd.console.security.attempts import Attempts
from policyd.console.security.connection import LIMITS, Connection
from policyd.console.security.guards import public_origin
from policyd.console.security.sessions import Sessions
from policyd.console.view.render import Console
from policyd.keys import tokens
from policyd.settings import ServerSettings
from policyd.store import Store

_log = logging.getLogger(__name__)

_MAX_HEAD = 64 * 2**10
"""Bytes of a request line and its headers: a browser sends the cookies of all that a host
serves."""
_GRACE = 3
"""Seconds that pages under way have when the console stops."""
_AT_ONCE = 8
"""Pages that may use the store at once, and as many again for clients that are not signed in."""
_WAITING = 1000
"""Requests that may wait for their turn: more than there can be connections."""
_LONG = 60.0
"""Seconds that a page may take: its statistics may have to look at every row of the log."""
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  # compared, not listened on


class ConsoleServer:
    """Runs the console at `settings.console`, on a `store` that is migrated.

    `async with ConsoleServer(settings, store) as server:`; `server.address` is where it listens.
    Making and starting it raise SettingsError or CannotListen.
    """

    def __init__(self, settings: ServerSettings, store: Store, limits: Limits = LIMITS) -> None:
        assert settings.console is not None
        self._address = settings.console
        self._settings = settings
        self._console = Console(
            settings,
            store,
            _token(settings),
            _sessions(settings),
            Attempts(),
            settings.console_proxies,
            pages=_threads("the console", max(_LONG, settings.database_timeout)),
            door=_threads("sign-ins", settings.database_timeout),
        )
        self._limits = limits
        self._listener: Listener
        self._begun = AsyncExitStack()
        self.address = self._address

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as begun:
            await self._begin(begun)
            self._begun = begun.pop_all()
        return self

    async def _begin(self, begun: AsyncExitStack) -> None:
        settings = self._settings
        tls = tls_context(settings.tls_cert, settings.tls_key)
        # Shared with the parent process, which holds the port while this one is replaced.
        listening = begun.enter_context(listen(self._address, "--console", shared=True))
        if settings.console_url and not settings.console_trusted_proxies:
            _log.info(
                "all sign-ins at %s may count as attempts of one address: if a proxy stands before "
                "the console, name it in --console-trusted-proxies",
                settings.console_url,
            )
        self._listener = Listener(
            application(self._console),
            tls=tls,
            grace=_GRACE,
            limits=self._limits,
            http=Connection,
            h11_max_incomplete_event_size=_MAX_HEAD,
            date_header=True,
        )
        self.address = Address(self._address.host, listening.getsockname()[1])
        begun.push_async_callback(self._listener.stop)
        await self._listener.start(listening)

    async def __aexit__(self, *_: object) -> None:
        await self._begun.aclose()


def _threads(purpose: str, seconds: float) -> StoreThreads:
    return StoreThreads(purpose, seconds, at_once=_AT_ONCE, waiting=_WAITING)


def console_url(settings: ServerSettings) -> str:
    """The URL at which a browser finds the console."""
    assert settings.console is not None
    if settings.console_url:
        return public_origin(settings.console_url)
    host, port = settings.console
    reached = Address(socket.gethostname() if host in _EVERYWHERE else host, port)
    return f"{'https' if settings.tls_cert else 'http'}://{reached}"


def first_link(settings: ServerSettings, store: Store) -> str | None:
    """The one-time link with which the administrator sets the password; None once it is set.

    It is a secret, and valid for a day. Raises SettingsError or StoreUnavailable.
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


# Its lines would contain the one-time link, so it stays silent, whatever handlers it is given.
logging.getLogger("uvicorn.access").disabled = True
