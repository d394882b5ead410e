"""The page of metrics, at /metrics of a port of its own: what Prometheus scrapes.

The supervisor serves it, so that it covers all workers, also those that have ended. A page is made
in a thread, and only one at a time; a slow client holds up nothing but itself.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from policyd.asgi.limits import Limits
from policyd.asgi.listener import Listener
from policyd.asgi.probes import Check, Probes
from policyd.asgi.reply import AGAIN, Reply, Send, error
from policyd.command.address import Address, reserve_listening
from policyd.command.serving_settings import ANSWER_MEMORY, IDLE_TIMEOUT
from policyd.command.threads import StoreThreads
from policyd.errors import StoreBusy, StoreUnavailable
from policyd.telemetry.folder import metrics_folder

if TYPE_CHECKING:
    from policyd.telemetry.exposition import Exposition
    from policyd.telemetry.reading import Reading

PATH = "/metrics"
_CONNECTIONS = 32
"""Connections, at most. Prometheus needs one."""
_TIME = 10.0
"""Seconds for each step of a client, and for a page to be made."""
_FRESH = 0.5
"""Seconds for which a page is served again. Processes hand over their counts as often, and a client
that asks again and again costs little."""
_TEND = 30.0
"""Seconds between two looks for files of processes that have ended."""
_GRACE = 0.5
"""Seconds for requests under way when the server stops."""
_NOT_FOUND = error(404, "invalid_request", f"There is nothing here. Ask {PATH}")
_WRONG_METHOD = error(
    405, "invalid_request", "Send a GET request", headers=(("Allow", "GET, HEAD"),)
)
_BUSY = error(
    503, "server_error", "The metrics take too long to be read. Ask again", retry_after=AGAIN
)


class MetricsServer:
    """Serves the metrics of this process and its children at `address`.

    Making it takes the port and makes the folder, both until `held` is closed: before any metric is
    made. Raises CannotListen or SettingsError.
    """

    def __init__(self, address: Address, held: ExitStack) -> None:
        self.address, self._listening = reserve_listening(address, "--metrics", held)
        self._folder = held.enter_context(metrics_folder())
        self._listener: Listener | None = None
        self._tending: asyncio.Task[None] | None = None

    async def start(
        self, read: "Callable[[], Reading]", not_ready: Check, tls: ssl.SSLContext | None
    ) -> None:
        """Serve. `read` gives the gauges of each page, `not_ready` what /readyz gives as reason."""
        # Imported late: prometheus-client looks for the folder once, as it is loaded.
        from policyd.telemetry.exposition import Exposition

        app = _App(Exposition(self._folder, read), not_ready)
        limits = Limits(_CONNECTIONS, _TIME, _TIME, IDLE_TIMEOUT, _TIME, ANSWER_MEMORY)
        self._listener = Listener(app, tls=tls, grace=_GRACE, limits=limits)
        await self._listener.start(self._listening)
        self._tending = asyncio.create_task(app.keep_tending())

    async def stop(self) -> None:
        """Stop serving."""
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.gather(self._tending, return_exceptions=True)
        if self._listener is not None:
            await self._listener.stop()


class _App:
    """The ASGI app."""

    def __init__(self, exposition: "Exposition", not_ready: Check) -> None:
        from policyd.telemetry.exposition import CONTENT_TYPE

        self._headers = (("Content-Type", CONTENT_TYPE),)
        self._exposition = exposition
        self._probes = Probes(not_ready)
        self._threads = StoreThreads("metrics", _TIME, waiting=_CONNECTIONS)
        self._page = b""
        self._made_at = float("-inf")

    async def __call__(self, scope: dict[str, Any], receive: object, send: Send) -> None:
        """Serve one request."""
        await (await self._reply(scope["method"], scope["path"])).send(send)

    async def _reply(self, method: str, path: str) -> Reply:
        if probed := await self._probes.answer(method, path):
            return Reply(*probed)
        if path != PATH:
            return _NOT_FOUND
        if method not in ("GET", "HEAD"):
            return _WRONG_METHOD
        try:
            if time.monotonic() - self._made_at >= _FRESH:
                self._page = await self._threads.run(self._exposition.page)
                self._made_at = time.monotonic()
        except (StoreBusy, StoreUnavailable):
            return _BUSY
        return Reply(200, self._headers, self._page)

    async def keep_tending(self) -> None:
        """Keep the folder small, also while nothing is scraped, until cancelled."""
        while True:
            await asyncio.sleep(_TEND)
            with suppress(StoreBusy, StoreUnavailable, OSError):
                await self._threads.run(self._exposition.tend)
