"""Request bodies: how many bytes of them are held at once, and in how many threads they are read.

A bound on each body is none on all of them. Small ones are free: a listener's connections bound
them already, and a client that holds large ones keeps none of them out.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

from policyd.errors import BodiesFull

_Result = TypeVar("_Result")
SMALL = 64 * 1024
"""Bytes of a body, as sent or decompressed, that are held and read for any client."""
AT_ONCE = 256 * 1024
"""Bytes of a body, decompressed too, up to which reading is quicker than handing it to a thread."""
THREADS = 4
"""Bodies that are read at once, where that takes long: they take turns at the interpreter."""


class Bodies:
    """All bodies that a process holds: up to `memory` bytes."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._turns = asyncio.Semaphore(THREADS)
        # Threads of their own: those that wait for the database must not hold up decisions.
        self._threads = ThreadPoolExecutor(THREADS, "bodies")
        self.held = 0
        """Bytes, those that are kept free for what a body decompresses to among them."""

    def hold(self) -> "Held":
        """Begin to hold a body."""
        return Held(self)

    def take(self, size: int) -> None:
        """Hold `size` bytes more. Raises BodiesFull."""
        if size > 0 and self.held + size > self._memory:
            raise BodiesFull(
                "as many request bodies are held as may be. Try again; if it lasts, raise "
                "--body-memory"
            )
        self.held += size

    async def do(
        self,
        held: "Held",
        size: int,
        decoded: int,
        work: Callable[..., _Result],
        *arguments: Any,
    ) -> _Result:
        """Do `work`, which reads `size` bytes that may decompress to `decoded`.

        It is done in a thread where it takes longer than handing it to one. Raises BodiesFull.
        """
        if max(size, decoded) <= AT_ONCE:
            return work(*arguments)
        async with self._turns:
            held.grow(size, decoded)
            loop = asyncio.get_running_loop()
            try:
                return await loop.run_in_executor(self._threads, work, *arguments)
            finally:
                held.grow(size)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Held:
    """One body, as far as it is held. Use it as a context manager."""

    __slots__ = ("_bodies", "_size")

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._size = 0

    def grow(self, size: int, decoded: int = 0) -> None:
        """It is `size` bytes now, and may decompress to `decoded`. Raises BodiesFull."""
        counted = (size if size > SMALL else 0) + (decoded if decoded > SMALL else 0)
        self._bodies.take(counted - self._size)
        self._size = counted

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.grow(0)
