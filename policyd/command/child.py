"""Child processes of a server: started, watched, restarted and ended together with their parent.

Each is a new process that reads its settings from its standard input, so they show in no process
list, says "ready", then once a second that it lives, and ends when its input closes: not even a
killed parent leaves children behind. Until then its parent may tell it there how to end.
"""

import asyncio
import json
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from enum import Enum
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from policyd.errors import PolicydError, SettingsError

_log = logging.getLogger(__name__)

_PAUSE = 1.0
"""Seconds before a child that ended is started again."""
_TURN = 1.0
"""Seconds between two looks at a child. What a child has to do in time is counted in these turns
and not by a clock: a clock goes on while the parent, or the machine, stands still, and would find a
child silent whose signs of life are only unread."""
_START = 60
"""Turns that a child has to start."""
_SILENCE = 10
"""Turns without a sign of life, of which one comes a second, until a child is killed."""
_MARGIN = 3
"""Turns beyond what a child may take to end, until it is killed."""
_HURRIED = 3
"""Turns that a child has to end once it is told to hurry."""

_Result = TypeVar("_Result")
_Settings = TypeVar("_Settings")


class End(Enum):
    """How a server ends. The values are what a parent tells its children."""

    DRAIN = "drain"
    """Say that no more should come, answer what comes all the same for a while, then close."""
    REPLACE = "replace"
    """Another has taken its place: have the clients go there, then close."""
    NOW = "now"
    """Close at once. What is under way is finished in each case."""


class Serving(Protocol):
    """A server, as it is ended: wind_down(), then what its `async with` block does at its end."""

    async def wind_down(self, end: End) -> None:
        """Answer still, for as long as `end` takes. Returns when it is to be closed."""

    def hurry(self) -> None:
        """Wait for nothing any more: neither before it closes, nor for what is under way."""


class Child:
    """A child, as its parent has it: `module` is what it runs, `name` what people call it, and
    `settings` are JSON values. It has `patience` seconds to end, and the listening `sockets`.
    `position` is told to one that takes another's place: see addresses.steer(). One that `is_first`
    is told so at its first start, and not when it is started again.
    """

    def __init__(
        self,
        name: str,
        module: str,
        settings: Mapping[str, Any],
        patience: float,
        sockets: Mapping[str, socket.socket] | None = None,
        position: int | None = None,
        *,
        is_first: bool = False,
    ) -> None:
        self._name = name
        self._module = module
        self._patience = patience
        self._sockets = {name: one.fileno() for name, one in (sockets or {}).items()}
        self._told = {"settings": settings, "sockets": self._sockets, "position": position}
        self._is_first = is_first
        self._hurrying = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._does_its_work = asyncio.Event()

    async def start(self) -> None:
        """Start it, and wait until it is ready, or waits for what it needs. Raises SettingsError.

        keep_running() notices when such a one is ready.
        """
        self._does_its_work.clear()
        level = logging.getLevelName(logging.getLogger().level).lower()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", self._module, level),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=tuple(self._sockets.values()),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        told = self._told | {"is_first": self._is_first}
        self._process.stdin.write(json.dumps(told).encode() + b"\n")
        try:
            answer = (await _within(_START, self._process.stdout.readline())).decode().strip()
        except TimeoutError:
            self._kill()
            answer = f"{self._name} was not ready after {_START * _TURN:.0f} s"
        self._is_first = False
        if answer == "ready":
            self._does_its_work.set()
        elif answer != "waiting":
            raise SettingsError(answer or f"{self._name} ended while it was starting")

    @property
    def is_ready(self) -> bool:
        """Whether it does its work, as far as is known."""
        return self._does_its_work.is_set()

    async def until_ready(self) -> None:
        """Wait until it does its work, for as long as keep_running() watches it."""
        await self._does_its_work.wait()

    async def keep_running(self) -> None:
        """Start it again whenever it ends, until cancelled."""
        while True:
            status = await self._end()
            _log.error("%s ended (status %d) and is started again", self._name, status)
            await asyncio.sleep(_PAUSE)
            try:
                await self.start()
            except (PolicydError, OSError) as error:
                _log.error("%s does not start: %s", self._name, error)

    async def _end(self) -> int:
        """Wait for its end, and bring it about where it hangs. Returns its status."""
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            while sign := await _within(_SILENCE, self._process.stdout.readline()):
                if sign != b"waiting\n":
                    self._does_its_work.set()
            return await _within(_SILENCE, self._process.wait())
        except TimeoutError:
            _log.error("%s hangs and is killed", self._name)
            self._kill()
        return await self._process.wait()

    async def stop(self, end: End = End.NOW, patience: float | None = None) -> None:
        """End it, and wait until it has finished what it does, as far as the patience goes."""
        process = self._process
        if process is None or process.returncode is not None or process.stdin is None:
            return
        if end is End.NOW:
            process.stdin.close()
        else:
            self._tell(end.value)
        ending = asyncio.create_task(process.wait())
        try:
            seconds = self._patience if patience is None else patience
            turns = math.ceil(seconds / _TURN) + _MARGIN
            await _within(turns, self._ended_or_hurried(ending))
            if not ending.done():
                await _within(_HURRIED, asyncio.shield(ending))
        except TimeoutError:
            _log.error("%s does not stop and is killed", self._name)
            self._kill()
            await ending

    async def _ended_or_hurried(self, ending: asyncio.Task[int]) -> None:
        hurrying = asyncio.ensure_future(self._hurrying.wait())
        await asyncio.wait({ending, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()

    def hurry(self) -> None:
        """Have it wait for nothing any more, where it is being stopped or will be."""
        self._hurrying.set()
        self._tell("hurry")

    def _tell(self, line: str) -> None:
        process = self._process
        if process is None or process.returncode is not None or process.stdin is None:
            return
        if not process.stdin.is_closing():
            process.stdin.write(line.encode() + b"\n")

    def _kill(self) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.kill()


async def _within(
    turns: int, work: Coroutine[Any, Any, _Result] | asyncio.Future[_Result]
) -> _Result:
    """What `work` comes to. Raises TimeoutError where that takes more than `turns` of our own."""
    task = asyncio.ensure_future(work)
    try:
        # One more, as what came while we stood still in the last one is only read after it.
        for _ in range(turns + 1):
            done, _ = await asyncio.wait({task}, timeout=_TURN)
            if done:
                return task.result()
        raise TimeoutError
    finally:
        task.cancel()


class Parent(Generic[_Settings]):
    """The parent, as a child has it. `async with Parent(load) as parent:` gives the `settings`,
    which `load` makes of JSON values; what PolicydError ends the block is told to the parent.

    SIGTERM is what the parent says with "drain", and a second one "hurry": a service manager sends
    it to all processes at once. Without `ends_by_itself` it does nothing, as this child has to
    outlive the others.
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
        # Ctrl-C reaches the whole group; the parent tells its children itself.
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        loop.add_signal_handler(
            signal.SIGTERM, self._terminate if self._ends_by_itself else lambda: None
        )
        # It is for the parent, who replaces its children one by one.
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
        """Tell the parent that the start is over; and while `does_its_work` says no, that this one
        waits for what it needs."""
        self._does_its_work = does_its_work
        _say("ready" if does_its_work() else "waiting")
        # A parent that stands still reads nothing. The pipe fills, and to wait for it would stop
        # this child too: a sign of life that finds no room is one too many.
        os.set_blocking(sys.stdout.fileno(), False)

    def listening(self, name: str) -> socket.socket | None:
        """The listening socket that the parent has given under this name."""
        number = self._sockets.get(name)
        return None if number is None else socket.socket(fileno=number)

    async def serve(self, server: Serving) -> None:
        """Let `server`, which runs, do so until it is to be closed."""
        self._hurry = server.hurry

        async def wind_down() -> None:
            await server.wind_down(await asyncio.shield(self._ending))

        await self._work_on(wind_down())

    async def gone_during(self, *work: Coroutine[Any, Any, None]) -> None:
        """Do all of `work` until the parent goes, or wants this child to end."""

        async def wanted() -> None:
            await asyncio.shield(self._ending)

        await self._work_on(wanted(), *work)

    async def _work_on(self, *work: Coroutine[Any, Any, None]) -> None:
        """Do all of `work` until the parent goes, or one of it is done."""
        # It goes on after this: a parent may want us to hurry as we end.
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
        """Hear what the parent says, until it has gone."""
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
    # A parent that is gone hears nothing, and the closed input ends this child.
    with suppress(BrokenPipeError, BlockingIOError):
        os.write(sys.stdout.fileno(), line.encode() + b"\n")
