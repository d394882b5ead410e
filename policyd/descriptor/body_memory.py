"""Request bodies: how many bytes of them are held at once, and where they are read.

A bound on each body does not bound all of them together. Small ones are not counted: the limit of a
listener's connections bounds them already, and a client that holds large ones cannot keep them out.
"""

import asyncio
from functools import partial
from typing import Self

from policyd.command.allocator import give_memory_back
from policyd.descriptor.body import read_body
from policyd.descriptor.body_readers import BodyReaders
from policyd.descriptor.content_encoding import decoded_limit
from policyd.descriptor.identifiers import BodyAttributes
from policyd.descriptor.pieces import Pieces
from policyd.descriptor.reader_process import BodyContext
from policyd.errors import BodiesFull

SMALL = 64 * 1024
"""Bytes, as sent or decompressed, up to which a body is held and read without being counted."""
AT_ONCE = 256 * 1024
"""Bytes, as sent and decompressed, up to which a body is read here: other work waits meanwhile."""


_MUCH = 8 * 2**20
"""Where as many bytes were held, memory is given back to the system once none are."""
_SOON = 1.0
"""Seconds to wait before that: more bodies may be on their way."""


class Bodies:
    """All bodies that a process holds: up to `memory` bytes."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._readers = BodyReaders()
        self._most = 0
        self.held = 0
        """Bytes, including a reader's copies and what they may decompress to."""

    def hold(self) -> "Held":
        """Begin to hold a body."""
        return Held(self)

    def take(self, size: int) -> None:
        """Hold `size` bytes more, or fewer where it is negative. Raises BodiesFull."""
        if size > 0 and self.held + size > self._memory:
            raise BodiesFull(
                "policyd holds as many request bodies as it may. Try again; if it lasts, raise "
                "--body-memory"
            )
        self.held += size
        self._most = max(self._most, self.held)
        if self.held == 0 and self._most >= _MUCH:
            self._most = 0
            asyncio.get_running_loop().call_later(_SOON, self._settle)

    def _settle(self) -> None:
        # Where more bodies are held by now, memory is given back after they end.
        if self.held == 0:
            give_memory_back()

    async def read(
        self, held: "Held", size: int, body: Pieces, about: BodyContext
    ) -> BodyAttributes:
        """The attributes of `body`, where `held` has `size` bytes for it and those beside it.

        A large body is read by another process, which has a copy. Raises BodiesFull.
        """
        decoded = decoded_limit(len(body), about.limit) if about.content_encoding else 0
        if max(len(body), decoded) <= AT_ONCE:
            return read_body(body.whole(), *about)
        try:
            return await self._readers.read(
                partial(held.grow, size, len(body) + decoded), body, about
            )
        finally:
            held.grow(size)

    @property
    def readers(self) -> dict[int, bool]:
        """The processes that read large bodies, by process ID: whether each has a body."""
        return self._readers.processes

    def close(self) -> None:
        """End the processes that read large bodies."""
        self._readers.close()


class Held:
    """The bytes that are held for one body or message. Use it as a context manager."""

    __slots__ = ("_bodies", "_size")

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._size = 0

    def grow(self, size: int, reading: int = 0) -> None:
        """Hold `size` bytes for it now, and `reading` more to read it. Raises BodiesFull."""
        counted = (size if size > SMALL else 0) + (reading if reading > SMALL else 0)
        self._bodies.take(counted - self._size)
        self._size = counted

    # Written out: contextlib's base class has no __slots__ in Python 3.11, and so costs a __dict__.
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.grow(0)
