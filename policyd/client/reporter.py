"""Outcomes on their way to policyd: queued, sent in batches, and kept while policyd is away.

No request waits for its outcome, so report() only queues it. One call at a time carries a batch,
which stays in the queue until policyd has answered. A batch that fails for now is sent again, with
growing pauses: policyd knows outcomes by their decision's ID, so one that it has already changes
nothing. The queue is bounded, and outcomes beyond that are lost, counted and logged.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

import grpc

from policyd.client import forking
from policyd.client.statuses import Failed, Meaning
from policyd.command.log_throttle import Throttle

log = logging.getLogger(__name__)

MAX_WAITING = 20_000
"""Outcomes that may wait, at most."""
MAX_OUTCOME = 4096
"""Bytes that an outcome may have. Those of a gateway have a few hundred."""
MAX_BATCH = 1000
"""Outcomes in one call: as many as policyd takes."""
MAX_BATCH_BYTES = 1024 * 1024
"""Bytes of outcomes in one call."""
_INTERVAL = 0.1
"""Seconds that the first outcome of a batch waits for others."""
_MAX_PAUSE = 5.0
"""Seconds between two tries at most, while policyd is away."""
_CLOSING_TIME = 2.0
"""Seconds that close() takes at most."""
_OLD_POLICYD_PAUSE = 60.0
"""Seconds until an older policyd, which takes no outcomes, is tried again after an update."""
_LOG_INTERVAL = 10.0
"""Seconds between two log lines about losses."""

_Outcome = TypeVar("_Outcome")


class Reporter(Generic[_Outcome]):
    """Hands batches of outcomes to `send`, one call at a time. `send` returns why some were not
    taken, one text for each, or raises Failed. `size` gives the bytes of an outcome.

    Belongs to the event loop that it is first used in. While no outcome waits it has no task.
    """

    def __init__(
        self,
        send: Callable[[list[_Outcome]], Awaitable[Sequence[str]]],
        size: Callable[[_Outcome], int],
    ) -> None:
        self._send = send
        self._size = size
        self._waiting: deque[_Outcome] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._full = asyncio.Event()
        self._closing = asyncio.Event()
        self._losses = _Losses()
        self._silent_until: float | None = None
        """When to try again after policyd turned out to be an older one: see _fall_silent()."""

    @property
    def lost(self) -> int:
        """Outcomes so far that policyd will not get."""
        return self._losses.count

    def lose(self, cause: str) -> None:
        """Count an outcome that is lost."""
        self._losses.add(1, cause)

    def report(self, outcome: _Outcome) -> None:
        """Queue an outcome. It returns at once and never fails."""
        if self._silent_until is not None and time.monotonic() < self._silent_until:
            return
        if len(self._waiting) >= MAX_WAITING:
            self._losses.add(1, "policyd has not taken any for too long")
        elif self._size(outcome) > MAX_OUTCOME:
            self._losses.add(1, f"it is over {MAX_OUTCOME} bytes")
        elif forking.is_broken():
            self._losses.add(1, forking.INHERITED)
        elif self._closing.is_set():
            self._losses.add(1, "the client of policyd was closed")
        else:
            self._enqueue(outcome)

    def _enqueue(self, outcome: _Outcome) -> None:
        self._waiting.append(outcome)
        if len(self._waiting) >= MAX_BATCH:
            self._full.set()
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all())

    def take(self) -> list[_Outcome]:
        """Take all outcomes out of the queue, including those that are being sent."""
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting

    async def close(self) -> None:
        """Send the outcomes that wait, for up to 2 s. Those left, and later ones, are lost."""
        self._closing.set()
        self._full.set()
        if sending := self._sending:
            await asyncio.wait({sending}, timeout=_CLOSING_TIME)
            sending.cancel()
            await asyncio.wait({sending})
        if self._waiting:
            self._losses.add(len(self._waiting), "policyd did not take them before the end")
            self._waiting.clear()

    async def _send_all(self) -> None:
        failures = 0
        while self._waiting:
            await self._pause(failures)
            # They stay in the queue until policyd has them. Only this task removes any.
            batch = self._batch()
            is_over = await self._try(batch)
            failures = 0 if is_over else failures + 1
            if is_over:
                self._forget(len(batch))
        self._sending = None

    def _batch(self) -> list[_Outcome]:
        batch: list[_Outcome] = []
        size = 0
        for outcome in self._waiting:
            size += self._size(outcome)
            if len(batch) == MAX_BATCH or size > MAX_BATCH_BYTES:
                break
            batch.append(outcome)
        return batch

    def _forget(self, number: int) -> None:
        for _ in range(min(number, len(self._waiting))):
            self._waiting.popleft()
        if len(self._waiting) < MAX_BATCH and not self._closing.is_set():
            self._full.clear()

    async def _pause(self, failures: int) -> None:
        """Wait for more outcomes to join the batch, or for policyd to come back."""
        until, seconds = self._full, _INTERVAL
        if failures:
            until = self._closing
            seconds = min(_INTERVAL * 2**failures, _MAX_PAUSE) * random.uniform(0.5, 1)  # noqa: S311  # no secret
            if self._closing.is_set():
                await asyncio.sleep(_INTERVAL)
        with suppress(TimeoutError):
            await asyncio.wait_for(until.wait(), seconds)

    async def _try(self, batch: list[_Outcome]) -> bool:
        """Send a batch. Returns whether it is done with: policyd has it, or it is lost."""
        try:
            rejected = await self._send(batch)
        except Failed as problem:
            # For example, policyd's log is full. It is not the size of the batch, which is small
            # enough. Reporting an outcome again changes nothing.
            if problem.meaning is not Meaning.FINAL:
                return False
            if problem.code is grpc.StatusCode.UNIMPLEMENTED:
                self._fall_silent()
            else:
                self._losses.add(len(batch), f"{problem.code.name}: {problem.details}")
        except Exception as error:  # noqa: BLE001  # Whatever the error, the next batch may pass.
            self._losses.add(len(batch), repr(error))
        else:
            for cause in rejected:
                self._losses.add(1, cause)
        return True

    def _fall_silent(self) -> None:
        if self._silent_until is None:
            log.warning(
                "this policyd takes no outcomes of requests, so its log will not show "
                "them: update policyd"
            )
        self._silent_until = time.monotonic() + _OLD_POLICYD_PAUSE
        self._waiting.clear()


class _Losses:
    """Counts the outcomes that are lost, and logs that now and then."""

    def __init__(self) -> None:
        self.count = 0
        self._throttle = Throttle(_LOG_INTERVAL)

    def add(self, number: int, cause: str) -> None:
        self.count += number
        if self._throttle.is_due():
            log.error("outcomes of requests are lost (%d so far): %s", self.count, cause)
