"""Child processes of a server, as their parent sees them: started, watched, restarted and ended.

A child is a new process, never a fork: gRPC does not survive one. Both sides talk in lines, over
the child's standard input and output:

    parent to child   first the settings and what else it is told, as JSON, so that they show in no
                      list of processes; later "drain" or "replace", see End, and "hurry"
    child to parent   "ready", or "waiting" while it lacks what it needs, or else the reason why it
                      does not start; then, once a second, "alive" or "waiting"

A child ends when its input closes, so not even a parent that is killed leaves children behind. One
that is silent for _SILENCE turns is taken to hang, and is killed and started again. See parent.py
for the child's side.
"""

import asyncio
import json
import logging
import math
import socket
import sys
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from enum import Enum
from typing import Any, Protocol, TypeVar

from policyd.command.process import log_arguments
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
"""Turns without a sign of life until a child is killed. A sign should come every second."""
_MARGIN = 3
"""Turns beyond what a child may take to end, until it is killed."""
_HURRIED = 3
"""Turns that a child has to end once it is told to hurry."""

_Result = TypeVar("_Result")


class End(Enum):
    """How a server ends. The values are what a parent tells its children."""

    DRAIN = "drain"
    """Report that it is not ready, answer requests for a while all the same, then close."""
    REPLACE = "replace"
    """Another worker has taken its place: have clients connect there, then close."""
    NOW = "now"
    """Close at once. In each case, requests under way are finished."""


class Serving(Protocol):
    """A server that can be ended: by wind_down(), and then by leaving its `async with` block."""

    async def wind_down(self, end: End) -> None:
        """Go on answering for as long as `end` takes. Returns when the server is to be closed."""

    def hurry(self) -> None:
        """Stop waiting, both before it closes and for requests under way."""


class Child:
    """A child, as its parent sees it. It runs `module`, and log lines call it `name`.

    `settings` are JSON values, and `sockets` the listening sockets that it inherits. It has
    `patience` seconds to end. A child that takes another's place is given a `position`: see
    address.steer(). `is_first` is passed on at its first start only, and not when it is restarted.
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
        """Start it, and wait until it is ready, or says that it waits for what it needs.

        In the second case keep_running() notices when it is ready. Raises SettingsError.
        """
        self._does_its_work.clear()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "policyd.command.start", self._module, *log_arguments()),
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
        """Whether it does its work, by its last sign of life."""
        return self._does_its_work.is_set()

    async def until_ready(self) -> None:
        """Wait until it does its work, for as long as keep_running() watches it."""
        await self._does_its_work.wait()

    async def keep_running(self) -> None:
        """Start it again whenever it ends, until cancelled."""
        while True:
            status = await self._end()
            self._does_its_work.clear()
            _log.error("%s ended (status %d) and is started again", self._name, status)
            await asyncio.sleep(_PAUSE)
            try:
                await self.start()
            except (PolicydError, OSError) as error:
                _log.error("%s does not start: %s", self._name, error)

    async def _end(self) -> int:
        """Wait until it ends, and kill it if it hangs. Returns its exit status."""
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
        """End it, and wait for `patience` seconds, by default its own. Then it is killed."""
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
        """Have it stop waiting, now or when it is being stopped."""
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
    """The result of `work`. Raises TimeoutError where that takes more than `turns` turns."""
    task = asyncio.ensure_future(work)
    try:
        # One turn more: what came while this process stood still in the last one is read after it.
        for _ in range(turns + 1):
            done, _ = await asyncio.wait({task}, timeout=_TURN)
            if done:
                return task.result()
        raise TimeoutError
    finally:
        task.cancel()
