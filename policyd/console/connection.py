"""A browser's connection, by uvicorn's h11, which bounds a request's head.

Whoever connects need not be signed in, and each connection is a file of the process that also ships
the decision log: nobody holds one for nothing, or too many.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 200
PATIENCE = 10.0
"""Seconds between two looks whether a connection still waits for the same request."""


class Connection(H11Protocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seen: object = None
        """The request that was the last one at the last look."""
        self._look: asyncio.TimerHandle | None = None

    def connection_made(  # type: ignore[override]  # as uvicorn has it
        self, transport: asyncio.Transport
    ) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def _look_later(self) -> None:
        self._look = self.loop.call_later(PATIENCE, self._end_if_waiting)

    def _end_if_waiting(self) -> None:
        request: Any = self.cycle  # None before the first one
        is_waiting = request is None or request.response_complete or request.more_body
        if is_waiting and request is self._seen:
            self.transport.abort()
            return
        self._seen = request
        self._look_later()
