"""Threads for a server's calls to the store, with deadlines: some for each purpose.

The store blocks. A purpose that callers can fill, such as administration, must not hold up another,
such as following the settings, so each purpose has its own StoreThreads. A thread that does not
come back in time is given up: its caller gets an error, and the thread ends by itself, later or
never. No thread keeps the process from ending.
"""

import asyncio
import math
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, ParamSpec, TypeVar

from policyd.command import deadline
from policyd.errors import StoreBusy, StoreUnavailable

_Result = TypeVar("_Result")
_Parameters = ParamSpec("_Parameters")

_SPARE = 2
"""Calls that may hang, beyond those that run at once, before further ones fail immediately."""
_MARGIN = 1.0
"""Seconds beyond the deadline until a thread is given up: the driver ends most calls by itself."""


class StoreThreads:
    """Runs calls to the store for one purpose: `at_once` run, and up to `waiting` wait for a turn.

    Each may run for `seconds`, and wait as long; with None, only the store's own bounds apply.
    Belongs to one event loop.
    """

    def __init__(
        self, purpose: str, seconds: float | None, *, at_once: int = 1, waiting: int = 4
    ) -> None:
        self._purpose = purpose
        self._seconds = seconds
        self._most = at_once
        self._waiting = waiting
        self._turns = asyncio.Semaphore(at_once)
        self._queued = 0
        self._given_up = 0
        self._latest: _Call | None = None

    async def run(
        self,
        call: Callable[_Parameters, _Result],
        *arguments: _Parameters.args,
        **options: _Parameters.kwargs,
    ) -> _Result:
        """Run `call` in a thread, and return what it returns. Raises what it raises, and
        StoreUnavailable or StoreBusy.

        Where the caller is cancelled, the call goes on, and keeps its turn until it ends or its
        time is over.
        """
        await self._turn()
        if self._given_up >= self._most + _SPARE:
            self._turns.release()
            raise StoreUnavailable(
                f"the database cannot be used: {self._given_up} calls for {self._purpose} still "
                "hang in it"
            )
        result: _Result = await self._begin(partial(call, *arguments, **options))
        return result

    def silence(self) -> float:
        """Seconds since the latest call began, or last had an answer from the database: see
        deadline.renew(). Infinity where none has begun."""
        if self._latest is None or self._latest.deadline is None:
            return math.inf
        return self._latest.deadline.age()

    async def _turn(self) -> None:
        if self._turns.locked() and self._queued >= self._waiting:
            raise self._busy()
        self._queued += 1
        try:
            async with asyncio.timeout(self._seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise self._busy() from None
        finally:
            self._queued -= 1

    def _busy(self) -> StoreBusy:
        return StoreBusy(
            f"too many calls for {self._purpose} wait for the database already: try again later"
        )

    def _begin(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        call = self._latest = _Call(loop)
        if self._seconds is not None:
            call.timer = loop.call_later(self._seconds + _MARGIN, self._give_up, call)
        name = f"store: {self._purpose}"
        thread = threading.Thread(target=self._work, args=(call, work), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._end(call, None, StoreUnavailable(f"the database cannot be asked: {error}"))
        return call.answer

    def _work(self, call: "_Call", work: Callable[[], Any]) -> None:
        result, error = None, None
        try:
            result = work() if self._seconds is None else self._within(call, work)
        except BaseException as raised:  # noqa: BLE001  # It is the caller's.
            error = raised
        with suppress(RuntimeError):  # The loop has ended, and every caller with it.
            call.loop.call_soon_threadsafe(self._end, call, result, error)

    def _end(self, call: "_Call", result: Any, error: BaseException | None) -> None:
        if call.is_given_up:
            self._given_up -= 1
            return
        if call.timer is not None:
            call.timer.cancel()
        self._turns.release()
        call.tell(result, error)

    def _within(self, call: "_Call", work: Callable[[], Any]) -> Any:
        assert self._seconds is not None
        with deadline.within(self._seconds) as call.deadline:
            return work()

    def _give_up(self, call: "_Call") -> None:
        if call.deadline is not None and (left := call.deadline.remaining()) > 0:
            # It was renewed meanwhile.
            call.timer = call.loop.call_later(left + _MARGIN, self._give_up, call)
            return
        call.is_given_up = True
        self._given_up += 1
        self._turns.release()
        call.tell(None, StoreUnavailable(f"the database cannot be used: {deadline.OVERDUE}"))


class _Call:
    """A call that runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.answer: asyncio.Future[Any] = loop.create_future()
        self.timer: asyncio.TimerHandle | None = None
        self.deadline: deadline.Deadline | None = None
        """What ends the call, if it has begun; its thread may renew this."""
        self.is_given_up = False

    def tell(self, result: Any, error: BaseException | None) -> None:
        """Give the caller the result, if it still waits."""
        if self.answer.done():
            return
        if error is None:
            self.answer.set_result(result)
        else:
            self.answer.set_exception(error)
