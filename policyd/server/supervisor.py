"""A policyd with all its processes: the workers on one port, and the background worker.

The kernel spreads gRPC's connections over the workers (SO_REUSEPORT). They take connections to
--http from one socket, which the supervisor holds, so that none is lost with a worker that ends.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from policyd.command.address import reserve, reserve_listening
from policyd.command.child import Child, End
from policyd.command.config_checks import look_at
from policyd.command.crew import Crew, Orders, Own, Worker, keep_fixed
from policyd.command.process import settle
from policyd.server.config_checks import files
from policyd.server.preparation import background_worker, preparing, start_with_room
from policyd.settings import SHIPPING, ServerSettings, dump_settings

if TYPE_CHECKING:
    from policyd.server.supervisor_metrics import SupervisorMetrics

Ready = Callable[[ServerSettings], Awaitable[None]]
"""Called once every worker decides, with the settings, which have the ports that were taken."""
ReadAgain = Callable[[], ServerSettings]
"""Reads the settings once more. Raises SettingsError."""

_FIXED = (
    *("database_url", "spool", "admin_token_file", "workers"),
    *("grpc", "admin", "http", "console", "metrics"),
)
"""Settings that hold until policyd is started again."""


async def supervise(
    settings: ServerSettings, orders: Orders, ready: Ready, read_again: ReadAgain
) -> None:
    """Run all processes until the operator stops them. Raises SettingsError, CannotListen or
    StoreUnusable."""
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
    """Holds the ports of policyd, and the processes that answer at them."""

    def __init__(self, asked: ServerSettings, read_again: ReadAgain, held: ExitStack) -> None:
        self._asked = asked
        self._read_again = read_again
        http = console = None
        self._metrics = _metrics(asked, held)
        self._sockets = {}
        if asked.http is not None:
            http, self._sockets["http"] = reserve_listening(asked.http, "--http", held)
        if asked.console is not None:
            console = reserve(asked.console, "--console", held)
        self.settings = replace(
            asked,
            grpc=reserve(asked.grpc, "--grpc", held),
            admin=reserve(asked.admin, "--admin", held),
            http=http,
            console=console,
            metrics=self._metrics.address if self._metrics else None,
        )
        self._background = Crew([background_worker(self.settings)])
        self._workers = Crew(self._first_workers())
        self._tasks: list[asyncio.Task[None]] = []
        self._starting_late: asyncio.Task[None] | None = None

    def _first_workers(self) -> list[Worker]:
        if self.settings.workers > 1:
            return [self._worker(None, is_first=True) for _ in range(self.settings.workers)]
        # A single worker runs in this process until it is replaced, which starts sooner.
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
        """Start all processes, and from then on restart those that end."""
        if self._metrics is not None:
            await self._metrics.start(self._workers, self.settings)
        await self._workers.start()
        self._workers.watch()
        # After the workers, as no decision needs it.
        if has_room:
            await self._background.start()
            self._background.watch()
        else:
            self._start_late()
        self._tasks.append(asyncio.create_task(self._say_ready(ready)))

    async def _say_ready(self, ready: Ready) -> None:
        await self._workers.until_ready()
        settle()  # One worker may be in this process.
        await ready(self.settings)

    def _start_late(self) -> None:
        self._starting_late = asyncio.create_task(self._start_background_late())
        self._tasks.append(self._starting_late)

    async def _start_background_late(self) -> None:
        await start_with_room(self._background.start, self.settings)
        self._background.watch()

    async def replace(self) -> None:
        """Replace all processes but this one, by the settings and files as they are now.

        Raises PolicydError or OSError.
        """
        before = self.settings
        again = self._read_again()
        look_at(files(again))
        self.settings = keep_fixed(again, self._asked, before, _FIXED)
        try:
            await self._workers.replace(self._worker)
        except BaseException:
            self.settings = before
            raise
        if self._metrics is not None:
            self._metrics.renew(self.settings)
        if (late := self._starting_late) is not None and not late.done():
            # The background worker still waits for room on the disk. A new one waits instead.
            late.cancel()
            await asyncio.gather(late, return_exceptions=True)
            await self._background.stop(End.NOW)  # It may have been about to start.
            self._background = Crew([background_worker(self.settings)])
            self._start_late()
            return
        # The new one ships as soon as the old one has released the spool.
        await self._background.replace(lambda _: background_worker(self.settings))

    async def stop(self, end: End) -> None:
        """End all processes, the background worker last, so that it ships what workers wrote."""
        began = time.monotonic()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listening in self._sockets.values():
            listening.close()  # Workers that still answer have their own descriptor of it.
        await self._workers.stop(end)
        spent = time.monotonic() - began
        left = self.settings.drain + self.settings.grace - spent
        await self._background.stop(End.NOW, SHIPPING + max(left, 0))
        if self._metrics is not None:
            await self._metrics.stop()

    def hurry(self) -> None:
        """Have all processes stop waiting."""
        self._workers.hurry()
        self._background.hurry()


def _metrics(settings: ServerSettings, held: ExitStack) -> "SupervisorMetrics | None":
    if settings.metrics is None:
        return None
    # Imported late, so that a policyd without --metrics starts sooner.
    from policyd.server.supervisor_metrics import SupervisorMetrics

    return SupervisorMetrics(settings.metrics, held)
