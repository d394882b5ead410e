"""A request's body as it comes over ASGI: piece by piece, and held within a bound."""

from collections.abc import Awaitable, Callable
from typing import Any

from policyd.descriptor.body_memory import Held
from policyd.descriptor.pieces import Pieces

Receive = Callable[[], Awaitable[dict[str, Any]]]


class ClientGone(Exception):
    """The client left before its request was complete."""


class Incoming:
    """A body that comes by `receive`. `more` tells whether there is more of it, and `came` how many
    bytes of it have come."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.more = True
        self.came = 0

    async def piece(self) -> bytes:
        """The next of it. Raises ClientGone."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        self.more = message.get("more_body", False)
        piece = bytes(message.get("body", b""))
        self.came += len(piece)
        return piece

    async def take(self, body: Pieces, limit: int, held: Held) -> None:
        """Add to `body` what follows it, until that is complete or longer than `limit`.

        Raises ClientGone or BodiesFull.
        """
        while self.more and len(body) <= limit:
            body.add(await self.piece())
            held.grow(len(body))
