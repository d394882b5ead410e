"""A stream of requests and responses that ends, for its caller, with policyd's own status.

Where policyd ends a stream while a request is on its way, sending that request fails, and gRPC's
asyncio client then puts INTERNAL in the place of policyd's own status: a gateway with a wrong token
would now and then be told of an internal error.
"""

import asyncio
from contextlib import suppress
from typing import Any

import grpc

_OF_GRPC = "Internal error from Core"
"""The details of the status that gRPC's client makes up."""
_SOON = 1.0
"""Seconds after it within which policyd's own status comes."""
_LOOK = 0.01
"""Seconds between two looks for it."""


class StreamCall:
    """The stream of `call`, a grpc.aio.StreamStreamCall. Belongs to one event loop."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._status: tuple[grpc.StatusCode, str] | None = None
        """The first status, which a later one replaces in `call`."""
        call.add_done_callback(self._note)

    async def write(self, request: object) -> None:
        """Send a request. A stream that has ended takes none, and read() tells how it ended."""
        with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
            await self._call.write(request)

    async def read(self) -> Any:
        """The next response; grpc.aio.EOF after the last. Raises AioRpcError."""
        try:
            return await self._call.read()
        except grpc.aio.AioRpcError as error:
            if error.details() != _OF_GRPC:
                raise
            code, details = await self._found()
            if code is grpc.StatusCode.OK:
                return grpc.aio.EOF
            metadata = error.initial_metadata(), error.trailing_metadata()
            raise grpc.aio.AioRpcError(code, *metadata, details) from None

    def cancel(self) -> None:
        """End the stream."""
        self._call.cancel()

    def _note(self, call: Any) -> None:
        if self._status is None:
            self._status = _at_once(call.code()), _at_once(call.details())

    async def _found(self) -> tuple[grpc.StatusCode, str]:
        """policyd's status, or gRPC's own where none of policyd's comes."""
        if self._status is not None and self._status[1] != _OF_GRPC:
            return self._status
        with suppress(TimeoutError):
            async with asyncio.timeout(_SOON):
                while await self._call.details() == _OF_GRPC:  # noqa: ASYNC110  # gRPC has no event.
                    await asyncio.sleep(_LOOK)
        return await self._call.code(), await self._call.details()


def _at_once(known: Any) -> Any:
    """What a coroutine that waits for nothing returns, without a turn of the event loop."""
    try:
        known.send(None)
    except StopIteration as returned:
        return returned.value
    raise RuntimeError("gRPC reports that a call has ended, and does not know its status")
