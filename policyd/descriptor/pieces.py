"""A body in pieces: few, and none so large that other work waits while it is copied."""

from collections.abc import Iterator

PIECE = 64 * 1024
"""The fewest bytes of a piece, except the last: a client may send a body byte by byte."""
_MOST = 4 * PIECE
"""The most bytes of a piece that is passed on."""


class Pieces:
    """A body, or as much of it as has come."""

    __slots__ = ("_last", "_pieces", "_size")

    def __init__(self, body: bytes = b"") -> None:
        self._pieces = [body] if body else []
        self._last = bytearray()
        self._size = len(body)

    def add(self, data: bytes) -> None:
        """Append what came next."""
        self._size += len(data)
        if not self._last and len(data) >= PIECE:
            self._pieces.append(data)
            return
        self._last += data
        if len(self._last) >= PIECE:
            self._pieces.append(bytes(self._last))
            self._last.clear()

    def __len__(self) -> int:
        """How many bytes it has."""
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            if len(piece) <= _MOST:
                yield piece
            else:
                yield from (piece[at : at + _MOST] for at in range(0, len(piece), _MOST))
        if self._last:
            yield bytes(self._last)

    def whole(self) -> bytes:
        """All of it, in one piece."""
        if len(self._pieces) == 1 and not self._last:
            return self._pieces[0]
        return b"".join([*self._pieces, self._last])
