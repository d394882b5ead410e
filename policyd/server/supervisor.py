"""A policyd with all its processes: the workers on one port, and the background worker.

The kernel spreads gRPC's connections over the workers (SO_REUSEPORT). Those to --http they take
from one socket, which the supervisor holds, so that none is lost with a worker that ends.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace

from policyd.command.address import reserve, reserve_listening
from policyd.command.child import Child, End
from policyd.command.crew import Crew, Orders, Own, Worker
from policyd.server.preparation import background_worker, preparing, start_with_room
from policyd.settings import SHIPPING, ServerSettings, dump_settings

_log = logging.getLogger(__name__)

Ready = Callable[[ServerSettings], Awaitable[None]]
"""Tells the settings, with the ports that were taken, once every worker decides."""
ReadAgain = Callable[[], ServerSettings]
"""Reads the settings once more. Raises SettingsError."""

_FIXED = (
    *("database_url", "spool", "admin_token_file", "workers"),
    *("grpc", "admin", "http", "console"),
)
"""Settings that hold until policyd is started again."""


async def supervise(
    settings: ServerSettings, orders: Orders, ready: Ready, read_again: ReadAgain
) -> None:
    """Run all of it until it is to stop. Raises SettingsError, CannotListen or StoreUnusable."""
    has_room = await orders.unless_stopping(preparing(settings))
    if has_room is None:
        return
    with ExitStack() as held:
        supervisor = _Supervisor(settings, read_again, held)
        orders.hurry = supervisor.hurry
        end = End.NOW
        try:
            await orders.unless_stopping(supervisor.start(ready, has_room=has_room))
            await orders.follow(supervisor.replace)
            end = orders.end
        finally:
            await supervisor.stop(end)


class _Supervisor:
    """Holds the ports of policyd, and what answers at them."""

    def __init__(self, asked: ServerSettings, read_again: ReadAgain, held: ExitStack) -> None:
        self._asked = asked
        self._read_again = read_again
        http = console = None
        self._sockets = {}
        if asked.http is not None:
            # Only a policyd that has it waits for all that it is made of.
            http, self._sockets["http"] = reserve_listening(asked.http, "--http", held)
        if asked.console is not None:
            console = reserve(asked.console, "--console", held)
        self.settings = replace(
            asked,
            grpc=reserve(asked.grpc, "--grpc", held),
            admin=reserve(asked.admin, "--admin", held),
            http=http,
            console=console,
        )
        self._background = Crew([background_worker(self.settings)])
        self._workers = Crew(self._first_workers())
        self._tasks: list[asyncio.Task[None]] = []
        self._starting_late: asyncio.Task[None] | None = None

    def _first_workers(self) -> list[Worker]:
        if self.settings.workers > 1:
            return [self._worker(None, is_first=True) for _ in range(self.settings.workers)]
        # The only one needs no process of its own to begin with, which starts sooner.
        from policyd.server.server import Server

        listening = self._sockets["http"].dup() if self._sockets else None
        return [Own(Server(self.settings, shared=True, is_first=True, listening=listening))]

    def _worker(self, position: int | None, *, is_first: bool = False) -> Child:
        return Child(
            "a worker",
            "policyd.server.worker",
            dump_settings(self.settings),
            self.settings.ending,
            self._sockets,
            position,
            is_first=is_first,
        )

    async def start(self, ready: Ready, *, has_room: bool) -> None:
        """Start all, and watch over it from then on."""
        await self._workers.start()
        self._workers.watch()
        # After them, as no decision waits for it.
        if has_room:
            await self._background.start()
            self._background.watch()
        else:
            self._start_late()
        self._tasks.append(asyncio.create_task(self._say_ready(ready)))

    async def _say_ready(self, ready: Ready) -> None:
        await self._workers.until_ready()
        await ready(self.settings)

    def _start_late(self) -> None:
        self._starting_late = asyncio.create_task(self._start_background_late())
        self._tasks.append(self._starting_late)

    async def _start_background_late(self) -> None:
        await start_with_room(self._background.start, self.settings)
        self._background.watch()

    async def replace(self) -> None:
        """Replace all processes but this one, by what the settings and files are now.

        Raises PolicydError or OSError.
        """
        self.settings = self._changed(self._read_again())
        await self._workers.replace(self._worker)
        if (late := self._starting_late) is not None and not late.done():
            # It still waits for room, and the new one does so in its place.
            late.cancel()
            await asyncio.gather(late, return_exceptions=True)
            await self._background.stop(End.NOW)  # It may have been about to start.
            self._background = Crew([background_worker(self.settings)])
            self._start_late()
            return
        # The new one ships as soon as the old one no longer does.
        await self._background.replace(lambda _: background_worker(self.settings))

    def _changed(self, asked: ServerSettings) -> ServerSettings:
        for name in _FIXED:
            if getattr(asked, name) != getattr(self._asked, name):
                flag = "--" + name.replace("_", "-")
                _log.warning("%s has changed, which holds from the next start on", flag)
        return replace(asked, **{name: getattr(self.settings, name) for name in _FIXED})

    async def stop(self, end: End) -> None:
        """End all. The background worker ends last, so that it ships what the workers wrote."""
        began = time.monotonic()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listening in self._sockets.values():
            listening.close()  # Those that still answer have their own.
        await self._workers.stop(end)
        spent = time.monotonic() - began
        left = self.settings.drain + self.settings.grace - spent
        await self._background.stop(End.NOW, SHIPPING + max(left, 0))

    def hurry(self) -> None:
        """Wait for nothing any more."""
        self._workers.hurry()
        self._background.hurry()
