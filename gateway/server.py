"""The gateway behind its listener."""

import socket
from types import TracebackType
from typing import Self

from gateway.app import Evaluate, Gateway
from gateway.settings import Settings
from policyd.configuration import Address, CannotListen
from policyd.http.listener import Listener, open_socket, tls_context


class Server:
    """Runs the gateway: `async with Server(settings) as server:`; `server.url` is where it listens.

    `evaluate` decides in place of the policyd that `settings` name. Starting raises SettingsError
    or CannotListen.
    """

    def __init__(self, settings: Settings, evaluate: Evaluate | None = None) -> None:
        self._settings = settings
        self.gateway = Gateway(settings, evaluate)
        self._listener: Listener
        self.url = ""

    async def __aenter__(self) -> Self:
        tls = tls_context(self._settings.tls_cert, self._settings.tls_key)
        listening = _listen(self._settings.listen)
        port = listening.getsockname()[1]
        app = await self.gateway.__aenter__()
        settings = self._settings
        self._listener = Listener(app, tls=tls, grace=settings.grace, limits=settings.limits)
        await self._listener.start(listening)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://{Address(self._settings.listen.host, port)}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._listener.stop()
        await self.gateway.__aexit__(kind, error, trace)

    def hurry(self) -> None:
        """Cut the requests under way, where it is being stopped."""
        self._listener.hurry()


def _listen(address: Address) -> socket.socket:
    try:
        return open_socket(address)
    except OSError:
        raise CannotListen(
            f"--listen {address} cannot be listened on: another program has the port, or it is no "
            "address of this machine. Give --listen another one; port 0 takes a free port"
        ) from None
