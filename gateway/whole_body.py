"""A large body that has come whole, and goes upstream piece by piece."""

import aiohttp
from aiohttp.abc import AbstractStreamWriter

from policyd.descriptor.pieces import Pieces


class WholeBody(aiohttp.payload.Payload):
    """A body whose sending holds up no other request. It may be sent again."""

    _autoclose = True

    def __init__(self, pieces: Pieces) -> None:
        super().__init__(None)
        self._pieces = pieces
        self._size = len(pieces)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """See aiohttp.payload.Payload."""
        return self._pieces.whole().decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """See aiohttp.payload.Payload."""
        await self.write_with_length(writer, None)

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        """Write it, piece by piece, as quickly as the upstream takes it."""
        for piece in self._pieces:
            await writer.write(piece)
