"""The gateway behind its listener."""

import asyncio
import logging
import socket
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import Self

from gateway.app import Evaluate, Gateway
from gateway.settings import Settings
from policyd.asgi.listener import Listener
from policyd.asgi.tls import tls_context
from policyd.command.address import Address, listen
from policyd.command.child import End

_log = logging.getLogger("gateway")
_ENDING = "the gateway is being stopped"


class Server:
    """Runs the gateway: `async with Server(settings) as server:`; `server.url` is where it listens.

    `evaluate` decides in place of the policyd whose address `settings` give. `listening` is a
    socket that several workers share. Starting raises SettingsError or CannotListen.
    """

    def __init__(
        self,
        settings: Settings,
        evaluate: Evaluate | None = None,
        *,
        listening: socket.socket | None = None,
    ) -> None:
        self._settings = settings
        self._listening = listening
        self.gateway = Gateway(settings, evaluate)
        self._listener: Listener
        self._keeping: asyncio.Task[None] | None = None
        self._hurrying = asyncio.Event()
        self._is_replaced = False
        self._begun = AsyncExitStack()
        self.url = ""

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as begun:
            await self._begin(begun)
            self._begun = begun.pop_all()
        return self

    async def _begin(self, begun: AsyncExitStack) -> None:
        settings = self._settings
        if self.gateway.metrics is not None:
            begun.callback(self.gateway.metrics.end)
        tls = tls_context(settings.tls_cert, settings.tls_key)
        listening = begun.enter_context(self._listening or listen(settings.listen, "--listen"))
        port = listening.getsockname()[1]
        app = await begun.enter_async_context(self.gateway)
        self._listener = Listener(
            app,
            tls=tls,
            grace=settings.grace,
            stream_grace=settings.stream_grace,
            limits=settings.limits,
        )
        begun.push_async_callback(self._end_keeping)
        begun.push_async_callback(self._listener.stop)
        await self._listener.start(listening, shared=self._listening is not None)
        if (metrics := self.gateway.metrics) is not None:
            metrics.connections = lambda: self._listener.connections
            self._keeping = asyncio.create_task(metrics.keep())
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://{Address(settings.listen.host, port)}"

    async def _end_keeping(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)

    async def __aexit__(self, *_: object) -> None:
        if (requests := self._listener.under_way) and not self._is_replaced:
            _log.info(
                "the gateway waits up to %g s for requests under way (%d): a second signal cuts "
                "them",
                *(max(self._settings.grace, self._settings.stream_grace or 0), requests),
            )
        await self._begun.aclose()

    @property
    def is_ready(self) -> bool:
        """Whether it serves requests: once it has started, and knows settings if it decides by
        itself. See command.child.Serving."""
        return self.gateway.knows_settings

    async def until_ready(self) -> None:
        """Return at once: a gateway is ready as soon as it has started."""

    async def wind_down(self, end: End) -> None:
        """Go on answering for as long as `end` asks for, and have clients reconnect. Returns when
        the gateway is to be stopped.

        A gateway that is drained reports that it is not ready. One that is replaced does not: its
        replacement listens on the same socket, and is ready.
        """
        if end is End.NOW:
            return
        seconds = self._settings.drain
        if end is End.REPLACE:
            self._is_replaced, seconds = True, self._settings.handover
        elif seconds:
            _log.info(
                "the gateway is no longer ready, and ends in %g s: a second signal ends it at once",
                seconds,
            )
            self.gateway.end(_ENDING)
        self._listener.wind_down()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurrying.wait()

    def hurry(self) -> None:
        """Stop waiting, both in wind_down() and for requests under way."""
        self._hurrying.set()
        self._listener.hurry()


def listen_for_workers(address: Address, held: ExitStack) -> tuple[Address, socket.socket]:
    """A socket for all workers to share, and its address with the port. Raises CannotListen."""
    listening = held.enter_context(listen(address, "--listen"))
    return Address(address.host, listening.getsockname()[1]), listening
