"""A request's body as it comes over ASGI: piece by piece, and held within a bound."""

from collections.abc import Awaitable, Callable
from typing import Any

from policyd.descriptor.body_memory import Held
from policyd.descriptor.pieces import Pieces

Receive = Callable[[], Awaitable[dict[str, Any]]]


class ClientGone(Exception):
    """The client left before its request was complete."""


class Incoming:
    """A body that arrives through `receive`. `more` tells whether more of it is to come, and
    `received` how many bytes have come so far."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.more = True
        self.received = 0

    async def piece(self) -> bytes:
        """The next piece. Raises ClientGone."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        self.more = message.get("more_body", False)
        piece = bytes(message.get("body", b""))
        self.received += len(piece)
        return piece

    async def take(self, body: Pieces, limit: int, held: Held) -> None:
        """Add the pieces that follow to `body`, until it is complete or longer than `limit` bytes.

        Raises ClientGone or BodiesFull.
        """
        while self.more and len(body) <= limit:
            body.add(await self.piece())
            held.grow(len(body))
