"""Child processes of policyd: started, watched, restarted and ended together with their parent.

Each is a new process that reads its settings from its standard input, so they show in no process
list, says "ready", then once a second that it lives, and ends when its input closes: not even a
killed parent leaves children behind.
"""

import asyncio
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from policyd.errors import PolicydError, SettingsError
from policyd.settings import ServerSettings, dump_settings, load_settings

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

_Result = TypeVar("_Result")


class Child:
    """A child, as its parent has it: `module` is what it runs, `name` what people call it."""

    def __init__(self, name: str, module: str, settings: ServerSettings) -> None:
        self._name = name
        self._module = module
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._does_its_work = asyncio.Event()

    async def start(self) -> None:
        """Start it, and wait until it is ready, or waits for what it needs. Raises SettingsError.

        keep_running() notices when such a one is ready.
        """
        level = logging.getLevelName(logging.getLogger().level).lower()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", self._module, level),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(dump_settings(self._settings)).encode() + b"\n")
        try:
            answer = (await _within(_START, self._process.stdout.readline())).decode().strip()
        except TimeoutError:
            self._process.kill()
            answer = f"{self._name} was not ready after {_START * _TURN:.0f} s"
        if answer == "ready":
            self._does_its_work.set()
        elif answer != "waiting":
            raise SettingsError(answer or f"{self._name} ended while it was starting")

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
        except TimeoutError:
            _log.error("%s hangs and is killed", self._name)
            self._process.kill()
        return await self._process.wait()

    async def stop(self) -> None:
        """End it, and wait until it has finished what it does, up to the grace period."""
        process = self._process
        if process is None or process.returncode is not None or process.stdin is None:
            return
        process.stdin.close()
        try:
            await _within(math.ceil(self._settings.grace / _TURN) + 5, process.wait())
        except TimeoutError:
            _log.error("%s does not stop and is killed", self._name)
            process.kill()
            await process.wait()


async def _within(turns: int, work: Coroutine[Any, Any, _Result]) -> _Result:
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


class Parent:
    """The parent, as a child has it. `async with Parent() as parent:` gives the `settings`; what
    PolicydError ends the block is told to the parent.

    Without `ends_by_itself`, SIGTERM does nothing: a service manager sends it to all processes at
    once, and this one has to outlive the others.
    """

    settings: ServerSettings

    def __init__(self, *, ends_by_itself: bool = True) -> None:
        self._ends_by_itself = ends_by_itself

    async def __aenter__(self) -> Self:
        self._reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        protocol = asyncio.StreamReaderProtocol(self._reader)
        await loop.connect_read_pipe(lambda: protocol, sys.stdin)
        self.settings = load_settings(json.loads(await self._reader.readline()))
        self._stopping = asyncio.Event()
        # Ctrl-C reaches the whole group; the parent tells its children itself.
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        loop.add_signal_handler(
            signal.SIGTERM, self._stopping.set if self._ends_by_itself else lambda: None
        )
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

    async def gone_during(self, *work: Coroutine[Any, Any, None]) -> None:
        """Do all of `work` until the parent goes, or wants this child to end."""
        until = [self._reader.read(), self._stopping.wait(), self._beat(), *work]
        tasks = [asyncio.create_task(one) for one in until]
        done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        for task in done:
            task.result()

    async def _beat(self) -> None:
        """Tell the parent that the event loop still turns."""
        while True:
            await asyncio.sleep(1)
            _say("alive" if self._does_its_work() else "waiting")


def _say(line: str) -> None:
    # A parent that is gone hears nothing, and the closed input ends this child.
    with suppress(BrokenPipeError, BlockingIOError):
        os.write(sys.stdout.fileno(), line.encode() + b"\n")
