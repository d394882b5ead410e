"""The workers of one server: watched, replaced one at a time, and ended together.

SIGTERM drains them and SIGINT does not. A second signal of either kind cuts requests under way.
SIGHUP replaces the workers, for example after an upgrade, or when a file that is read at the start
has changed.
"""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from policyd.command import service_manager
from policyd.command.child import End, Serving
from policyd.errors import PolicydError, SettingsError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_Settings = TypeVar("_Settings", bound="DataclassInstance")


class Worker(Protocol):
    """A worker of a crew: a Child, or Own."""

    async def start(self) -> None:
        """Start it, and wait until it is ready. Raises PolicydError."""

    @property
    def is_ready(self) -> bool:
        """Whether it does its work, and does not wait for what it needs."""

    async def until_ready(self) -> None:
        """Wait until it does its work."""

    async def keep_running(self) -> None:
        """Start it again whenever it ends, until cancelled."""

    async def stop(self, end: End, patience: float | None = None) -> None:
        """End it, and wait until it has ended: for `patience` seconds if it is a process."""

    def hurry(self) -> None:
        """Have it stop waiting, now or when it is being stopped."""


Hire = Callable[[int | None], Worker]
"""Makes a worker. Its position is given where it takes another's place, else None."""


class Runs(Serving, AbstractAsyncContextManager[object], Protocol):
    """A server that runs in an `async with` block."""

    @property
    def is_ready(self) -> bool:
        """Whether it does its work."""

    async def until_ready(self) -> None:
        """Wait until it does its work."""


class Own:
    """A worker inside this process: the only one, until it is replaced by a process."""

    def __init__(self, server: Runs) -> None:
        self._server = server
        self._running = AsyncExitStack()
        self._ending: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """See Worker."""
        await self._running.enter_async_context(self._server)

    @property
    def is_ready(self) -> bool:
        """See Worker."""
        return self._server.is_ready

    async def until_ready(self) -> None:
        """See Worker."""
        await self._server.until_ready()

    async def keep_running(self) -> None:
        """See Worker."""
        await asyncio.Event().wait()

    async def stop(self, end: End, patience: float | None = None) -> None:
        """See Worker. It ends even if the caller stops waiting for that."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._stop(end))
        await asyncio.shield(self._ending)

    async def _stop(self, end: End) -> None:
        await self._server.wind_down(end)
        await self._running.aclose()

    def hurry(self) -> None:
        """See Worker."""
        self._server.hurry()


class Crew:
    """Workers that do the same work, so that each can be replaced by another."""

    def __init__(self, workers: list[Worker]) -> None:
        self._workers = workers
        self._leaving: set[Worker] = set()
        self._watching: dict[Worker, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Start all workers, and wait until they are ready. Raises PolicydError."""
        await asyncio.gather(*(one.start() for one in self._workers))

    @property
    def ready(self) -> int:
        """How many workers do their work."""
        return sum(one.is_ready for one in self._workers)

    async def until_ready(self) -> None:
        """Wait until all do their work."""
        await asyncio.gather(*(one.until_ready() for one in self._workers))

    def watch(self) -> None:
        """Restart each worker whenever it ends, from now on."""
        for one in self._workers:
            self._watching[one] = asyncio.create_task(one.keep_running())

    async def replace(self, hire: Hire) -> None:
        """Replace all workers, one at a time: the new one is ready before the old one goes.

        Raises PolicydError or OSError where a new worker does not start; then the old one stays.
        """
        for number, old in enumerate(self._workers):
            new = hire(len(self._workers))
            await self._begin(new)
            self._workers[number] = new
            self._watching[new] = asyncio.create_task(new.keep_running())
            self._leaving.add(old)
            await self._forget(old)
            await old.stop(End.REPLACE)
            self._leaving.discard(old)

    async def _begin(self, new: Worker) -> None:
        try:
            await new.start()
            if not new.is_ready:
                raise SettingsError(
                    "a new worker knows no settings to decide by yet: the database, or for a "
                    "gateway policyd, is away"
                )
        except BaseException:
            new.hurry()
            await new.stop(End.NOW)
            raise

    async def _forget(self, worker: Worker) -> None:
        task = self._watching.pop(worker, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def stop(self, end: End, patience: float | None = None) -> None:
        """End all workers, including those being replaced, and wait until they have ended."""
        for one in tuple(self._watching):
            await self._forget(one)
        all_of_them = (*self._workers, *self._leaving)
        await asyncio.gather(*(one.stop(end, patience) for one in all_of_them))

    def hurry(self) -> None:
        """Have all workers stop waiting."""
        for one in (*self._workers, *self._leaving):
            one.hurry()


class Orders:
    """What the operator asks for, by signals."""

    def __init__(self) -> None:
        self._stopping = asyncio.Event()
        self._replacing = asyncio.Event()
        self._any = asyncio.Event()
        self.end = End.NOW
        self.hurry: Callable[[], object] = bool
        """Called at a second signal to stop."""

    def stop(self, end: End) -> None:
        """Stop; at the second call, without waiting."""
        if self._stopping.is_set():
            self.hurry()
        else:
            self.end = end
            service_manager.stopping()
        self._stopping.set()
        self._any.set()

    def replace(self) -> None:
        """Replace the workers."""
        self._replacing.set()
        self._any.set()

    async def follow(self, replace: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Call `replace` whenever the operator asks for that, until the workers are to stop."""
        while not self._stopping.is_set():
            await self._any.wait()
            self._any.clear()
            if self._replacing.is_set() and not self._stopping.is_set():
                self._replacing.clear()
                await self._replace(replace)

    async def unless_stopping(self, work: Coroutine[Any, Any, _Result]) -> _Result | None:
        """The result of `work`; None where the operator asked to stop before it was done."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        working.cancel()
        try:
            return await working
        except asyncio.CancelledError:
            return None

    async def _replace(self, replace: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def replaced() -> bool:
            await replace()
            return True

        service_manager.reloading()
        try:
            if await self.unless_stopping(replaced()):
                _log.info("all workers are replaced")
            else:
                _log.info("the workers are being stopped, so no more of them are replaced")
        except (PolicydError, OSError) as error:
            _log.error("no more workers are replaced, and those that run go on: %s", error)
        if not self._stopping.is_set():
            service_manager.ready()


def keep_fixed(
    new: _Settings, first: _Settings, current: _Settings, fixed: Iterable[str]
) -> _Settings:
    """The `new` settings, except for those that are `fixed` until the next start, which stay as
    they are in `current`. The log names the fixed ones that differ from those read at `first`."""
    for name in fixed:
        if getattr(new, name) != getattr(first, name):
            flag = name.replace("_", "-")
            _log.warning("--%s has changed, which holds from the next start on", flag)
    return replace(new, **{name: getattr(current, name) for name in fixed})


@asynccontextmanager
async def orders() -> AsyncIterator[Orders]:
    """The operator's signals, while the block runs."""
    loop = asyncio.get_running_loop()
    given = Orders()
    had_terminal = os.isatty(0)

    def hang_up() -> None:
        # A terminal that is closed sends SIGHUP too, and then the program should end.
        if had_terminal and not os.isatty(0):
            given.stop(End.NOW)
        else:
            given.replace()

    loop.add_signal_handler(signal.SIGTERM, given.stop, End.DRAIN)
    loop.add_signal_handler(signal.SIGINT, given.stop, End.NOW)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    telling = asyncio.create_task(service_manager.keep_telling())
    try:
        yield given
    finally:
        telling.cancel()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
