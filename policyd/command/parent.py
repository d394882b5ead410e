"""The parent of a child process, as the child sees it: see child.py for the lines between them."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from policyd.command.child import End, Serving
from policyd.errors import PolicydError

_Settings = TypeVar("_Settings")


class Parent(Generic[_Settings]):
    """The parent, as a child sees it. `async with Parent(load) as parent:` gives the `settings`,
    which `load` makes of JSON values. A PolicydError that ends the block is reported to the parent.

    A service manager sends SIGTERM to all processes at once, so the first one means "drain" here
    too, and the second one "hurry". Without `ends_by_itself` SIGTERM does nothing, as this child
    has to outlive the others.
    """

    settings: _Settings
    position: int | None
    is_first: bool

    def __init__(
        self, load: Callable[[Mapping[str, Any]], _Settings], *, ends_by_itself: bool = True
    ) -> None:
        self._load = load
        self._ends_by_itself = ends_by_itself
        self._hurry: Callable[[], None] = lambda: None

    async def __aenter__(self) -> Self:
        self._reader = asyncio.StreamReader(limit=2**20)
        loop = asyncio.get_running_loop()
        protocol = asyncio.StreamReaderProtocol(self._reader)
        await loop.connect_read_pipe(lambda: protocol, sys.stdin)
        told = json.loads(await self._reader.readline())
        self._sockets = told["sockets"]
        self.position = told["position"]
        self.is_first = told.get("is_first", False)
        self._ending: asyncio.Future[End] = loop.create_future()
        # Ctrl-C reaches the whole process group. The parent itself ends its children.
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        loop.add_signal_handler(
            signal.SIGTERM, self._terminate if self._ends_by_itself else lambda: None
        )
        # SIGHUP is for the parent, which replaces its children one by one.
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        try:
            self.settings = self._load(told["settings"])
        except PolicydError as error:
            await self.__aexit__(type(error), error, None)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, PolicydError):
            _say(str(error))
            sys.exit(1)

    def ready(self, does_its_work: Callable[[], bool] = lambda: True) -> None:
        """Tell the parent that the start is over. While `does_its_work` returns False, this child
        says that it waits for what it needs."""
        self._does_its_work = does_its_work
        _say("ready" if does_its_work() else "waiting")
        # A parent that stands still reads nothing, and the pipe fills. Waiting for it would stop
        # this child too, so a sign of life that finds no room is dropped.
        os.set_blocking(sys.stdout.fileno(), False)

    def listening(self, name: str) -> socket.socket | None:
        """The listening socket that the parent gave under this name, None for none."""
        number = self._sockets.get(name)
        return None if number is None else socket.socket(fileno=number)

    async def serve(self, server: Serving) -> None:
        """Let the running `server` work until it is to be closed."""
        self._hurry = server.hurry

        async def wind_down() -> None:
            await server.wind_down(await asyncio.shield(self._ending))

        await self._work_on(wind_down())

    async def work_until_ended(self, *work: Coroutine[Any, Any, None]) -> None:
        """Do all of `work` until the parent has gone, or wants this child to end."""

        async def wanted() -> None:
            await asyncio.shield(self._ending)

        await self._work_on(wanted(), *work)

    async def _work_on(self, *work: Coroutine[Any, Any, None]) -> None:
        """Do all of `work` until the parent has gone, or one part is done."""
        # Listening goes on after this: the parent may want this child to hurry as it ends.
        self._listening = asyncio.create_task(self._listen())
        self._beating = asyncio.create_task(self._beat())
        tasks = [asyncio.create_task(one) for one in work]
        done, rest = await asyncio.wait(
            [self._listening, *tasks], return_when=asyncio.FIRST_COMPLETED
        )
        rest.discard(self._listening)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        for task in done:
            task.result()

    async def _listen(self) -> None:
        """Follow what the parent says, until it has gone."""
        while line := await self._reader.readline():
            word = line.decode().strip()
            if word == "hurry":
                self._hurry()
            else:
                self._end(End(word))

    def _end(self, end: End) -> None:
        if not self._ending.done():
            self._ending.set_result(end)

    def _terminate(self) -> None:
        if self._ending.done():
            self._hurry()
        self._end(End.DRAIN)

    async def _beat(self) -> None:
        """Tell the parent that the event loop still turns."""
        while True:
            await asyncio.sleep(1)
            _say("alive" if self._does_its_work() else "waiting")


def _say(line: str) -> None:
    # Where the parent has gone, the closed input ends this child.
    with suppress(BrokenPipeError, BlockingIOError):
        os.write(sys.stdout.fileno(), line.encode() + b"\n")
