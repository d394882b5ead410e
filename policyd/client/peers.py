"""The policyds that a client may ask: which connection a call takes, and which one it takes next.

A call takes the first connection whose peer answers and that is not busy, so that evaluations still
travel together, or else the least busy one. Without an answer it takes another at once:

- A peer that was not reached, or would not decide for now, is tried again later.
- A peer that would not decide, but where another may, is not tried again, nor is its address.
- A failure that every policyd would repeat ends the call.

When all connections were tried, the call pauses, longer each time, until its deadline. The error is
then the failure that says most: that a policyd would not decide outweighs that one was not reached.
"""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message
from grpc import StatusCode

from policyd.client.statuses import Failed, Meaning
from policyd.client.transport import Method, Transport

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)

BUSY = 4
"""Calls under way, beyond which a connection counts as busy."""
_FIRST_PAUSE, _MAX_PAUSE = 0.02, 0.25
"""Seconds between two rounds of all connections, before jitter, at first and at most."""
_SHORTEST = 0.01
"""Seconds that must be left for another try to be made."""
_MARGIN = 0.5
"""Seconds beyond a deadline until a call is given up that gRPC itself should have ended."""


class Peers:
    """Asks over `connections`, of which any may answer. Belongs to their event loop."""

    def __init__(self, connections: Sequence[Transport]) -> None:
        self._connections = list(connections)
        # The first connection is used most, and should not be the same one in all clients.
        random.shuffle(self._connections)

    async def ask(
        self,
        method: Method[_Request, _Response],
        request: _Request,
        seconds: float,
        *,
        is_patient: bool = False,
        failure: Callable[[_Response], Failed | None] | None = None,
    ) -> _Response:
        """The answer, which comes within `seconds`.

        `failure` finds a failure in what came as an answer, such as a batch of errors. See
        Transport.ask() for `is_patient`. Raises Failed.
        """
        asking = _Asking(self._connections, time.monotonic() + seconds)
        try:
            # gRPC's own threads end calls at their deadline. This one holds without them.
            async with asyncio.timeout(seconds + _MARGIN):
                return await self._ask(asking, method, request, is_patient, failure)
        except TimeoutError:
            raise asking.late(is_patient) from None

    async def _ask(
        self,
        asking: "_Asking",
        method: Method[_Request, _Response],
        request: _Request,
        is_patient: bool,
        failure: Callable[[_Response], Failed | None] | None,
    ) -> _Response:
        while True:
            connection = asking.next()
            try:
                answer = await connection.ask(method, request, asking.left, is_patient=is_patient)
                if failure is None or (problem := failure(answer)) is None:
                    return answer
            except Failed as failed:
                problem = failed
                if is_patient and failed.code is StatusCode.DEADLINE_EXCEEDED:
                    problem = _late(failed.details, is_patient)
            await asking.go_on(connection, problem)

    async def can_reach(self, seconds: float) -> bool:
        """Whether any answers within `seconds`."""
        return await _any(one.answers(seconds) for one in self._connections)

    async def can_decide(self, seconds: float) -> bool:
        """Whether any answers within `seconds`, and does not say that it gives no decisions."""
        return await _any(one.decides(seconds) for one in self._connections)

    async def close(self) -> None:
        """Close all connections. Calls under way are cancelled."""
        await asyncio.gather(*(one.close() for one in self._connections))


async def _any(looks: Iterable[Coroutine[Any, Any, bool]]) -> bool:
    """Whether any of these is true. The others are cancelled."""
    running = [asyncio.ensure_future(one) for one in looks]
    try:
        for look in asyncio.as_completed(running):
            if await look:
                return True
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return False


def _late(details: str | None, is_patient: bool) -> Failed:
    """The failure of a call whose time is up. If policyd may have waited for a revision, it was
    reached: that is no outage."""
    meaning = Meaning.PASSING if is_patient else Meaning.NOT_REACHED
    return Failed(StatusCode.DEADLINE_EXCEEDED, details, meaning)


def _rank(connection: Transport) -> tuple[bool, int]:
    """The connection with the lowest rank is tried, and of equals the first."""
    return connection.is_away, max(connection.load, BUSY)


class _Asking:
    """The tries of one call."""

    __slots__ = ("_connections", "_deadline", "_pause", "_problem", "_tried", "_unwilling")

    def __init__(self, connections: list[Transport], deadline: float) -> None:
        self._connections = connections
        self._deadline = deadline
        self._pause = _FIRST_PAUSE
        self._tried: tuple[Transport, ...] = ()
        self._unwilling: tuple[str, ...] = ()
        """Addresses that would not decide."""
        self._problem: Failed | None = None

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return max(self._deadline - time.monotonic(), 0)

    def next(self) -> Transport:
        """The connection to try."""
        left = [
            one
            for one in self._connections
            if one not in self._tried and one.address not in self._unwilling
        ]
        return min(left, key=_rank)

    async def go_on(self, connection: Transport, problem: Failed) -> None:
        """Wait until the next try is due. Raises the failure that says most, if there is none."""
        self._remember(problem)
        assert self._problem is not None
        if problem.meaning is Meaning.FINAL:
            raise problem
        self._tried = (*self._tried, connection)
        if problem.meaning is Meaning.ELSEWHERE:
            self._unwilling = (*self._unwilling, connection.address)
        others = [one for one in self._connections if one.address not in self._unwilling]
        if not others or self.left <= _SHORTEST:
            raise self._problem
        if any(one not in self._tried for one in others):
            return
        pause = self._pause * random.uniform(0.5, 1)  # noqa: S311  # no secret
        if self.left <= pause + _SHORTEST:
            raise self._problem
        await asyncio.sleep(pause)
        self._pause = min(2 * self._pause, _MAX_PAUSE)
        self._tried = ()

    def late(self, is_patient: bool) -> Failed:
        """The failure that says most, where a connection has not ended a try in time."""
        self._remember(_late("no answer came in time", is_patient))
        assert self._problem is not None
        return self._problem

    def _remember(self, problem: Failed) -> None:
        """Keep the failure that says most. That one policyd would not decide outweighs that another
        was not reached; of outages, that the time is up says least."""
        before = self._problem
        if before is None or (
            before.is_outage
            and not (problem.is_outage and problem.code.name == "DEADLINE_EXCEEDED")
        ):
            self._problem = problem
