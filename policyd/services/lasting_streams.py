"""A bound on streams that last, and their deadlines.

A stream that lasts takes a slot, of which there are a fixed number. Where all slots are taken, a
stream that waits for its gateway (for a request, or for it to take a response) makes room for a new
one: the one that has waited longest goes first. So a gateway that opens streams and sends nothing,
or reads nothing, keeps no other gateway out.

The status of a stream whose gateway reads nothing cannot be sent before the message that it does
not take, and gRPC has no other way to cut it. Such a stream ends with its connection. It has no
slot until then, but is counted, so that streams never take all calls of the listener.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from policyd.errors import GatewayTooSlow, PolicydError, TooManyGateways
from policyd.services.errors import abort

_ENDING = 4
"""For each slot, how many streams may wait for their status to be sent."""


class LastingStreams:
    """Up to `most` streams. `what` names, in an error, what gateways do by them. Belongs to one
    event loop."""

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self._held = 0
        self._ending = 0
        self._waiting: OrderedDict[asyncio.Task[Any], None] = OrderedDict()

    def __len__(self) -> int:
        return self._held

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold a slot for the running task's stream. Raises TooManyGateways."""
        if self._ending >= self._most * _ENDING:
            raise self._full()
        if self._held >= self._most and not self._make_room():
            raise self._full()
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark the running task's stream as waiting for its gateway. Raises TooManyGateways where
        it has to make room."""
        task = asyncio.current_task()
        assert task is not None
        self._waiting[task] = None
        try:
            yield
        except asyncio.CancelledError:
            if task in self._waiting:
                raise  # The gateway has gone, or the server stops.
            task.uncancel()
            raise self._full() from None
        finally:
            self._waiting.pop(task, None)

    async def end(self, context: Any, error: PolicydError) -> None:
        """End a stream that no longer has a slot, with the status for `error`."""
        self._ending += 1
        try:
            await abort(context, error)
        finally:
            self._ending -= 1

    def _make_room(self) -> bool:
        """End the stream that has waited longest. Its slot is free once its task has noticed."""
        if not self._waiting:
            return False
        self._waiting.popitem(last=False)[0].cancel()
        return True

    def _full(self) -> TooManyGateways:
        return TooManyGateways(
            f"{self._most} gateways {self._what} this worker of policyd already: try again, or run "
            "more workers (--workers)"
        )


async def next_request(requests: AsyncIterator[bytes], seconds: float) -> bytes | None:
    """The next request of a stream; None: the gateway sends no more. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        return await anext(aiter(requests), None)


async def write(context: Any, message: bytes, seconds: float) -> None:
    """Send a message to a gateway. Raises GatewayTooSlow where it does not take it in time."""
    try:
        async with asyncio.timeout(seconds):
            await context.write(message)
    except TimeoutError:
        raise GatewayTooSlow(f"the gateway has taken no message for {seconds:g} s") from None
