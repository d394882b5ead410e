"""Processes that read large bodies, as seen by their parent.

Reading keeps Python's interpreter to itself: in a thread, a large body would hold up every small
request of the process. So each reader is a process of its own, and the body goes to it through a
socket, piece by piece, between which the parent's other work goes on. See reader_process.py for the
other side, and for what the two say to each other.

Readers are few and start when they are needed. One that ends (for lack of memory, for example) or
hangs fails the body that it had: the next body gets a new reader.
"""

import asyncio
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress

from policyd.descriptor.identifiers import BodyAttributes
from policyd.descriptor.pieces import Pieces
from policyd.descriptor.reader_process import LENGTH, BodyContext, heading, read_answer
from policyd.errors import BodiesFull

_log = logging.getLogger(__name__)
READERS = 2
"""Bodies that are read at once: a very large one does not keep a large one waiting."""
PATIENCE = 30.0
"""Seconds that a body may wait for its turn, and may then take to be read. The largest takes less
than one where a core is free."""
_UNREAD = "a request body could not be read, as its reader failed. Try again"
_NO_TURN = "too many large request bodies wait to be read. Try again"
_MAX_ANSWER = 2**20
"""Bytes of an answer, which holds identifiers and names within bounds of their own."""
_Started = tuple[subprocess.Popen[bytes], socket.socket]
_CHILD = "policyd.command.start"
_COMMAND = (sys.executable, "-m", _CHILD, "policyd.descriptor.reader_process")


class BodyReaders:
    """Up to READERS processes, each of which reads one body at a time.

    Belongs to the event loop in which it is first used.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._turns = asyncio.Semaphore(READERS)
        self._starter = _starter()
        self._idle: list[_Reader] = []
        self._busy: set[_Reader] = set()

    async def read(
        self, begin: Callable[[], None], body: Pieces, about: BodyContext
    ) -> BodyAttributes:
        """The attributes of a body. `begin` is called once it is the body's turn.

        Raises BodiesFull where its turn does not come, or its reader ends or hangs, and what
        `begin` raises.
        """
        async with self._turn():
            begin()
            reader = self._next_idle() or await _Reader.start(self._starter)
            self._busy.add(reader)
            try:
                async with asyncio.timeout(self._patience):
                    attributes = await reader.read(body, about)
            except (TimeoutError, OSError, EOFError) as problem:
                reader.end()
                _log.error(
                    "the process that read a body of %d bytes %s: the request is answered 503",
                    len(body),
                    "hangs, and is killed" if isinstance(problem, TimeoutError) else "has ended",
                )
                raise BodiesFull(_UNREAD) from None
            except BaseException:
                reader.end()  # The rest of the body, or its answer, is still in the stream.
                raise
            else:
                self._idle.append(reader)
                return attributes
            finally:
                self._busy.discard(reader)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait until a reader is free for a body, and keep one for it. Raises BodiesFull."""
        try:
            async with asyncio.timeout(self._patience):
                await self._turns.acquire()
        except TimeoutError:
            raise BodiesFull(_NO_TURN) from None
        try:
            yield
        finally:
            self._turns.release()

    def _next_idle(self) -> "_Reader | None":
        while self._idle:
            reader = self._idle.pop()
            if reader.is_running:
                return reader
            reader.end()
        return None

    @property
    def processes(self) -> dict[int, bool]:
        """Those that run, by process ID: whether each has a body."""
        return {reader.process: reader in self._busy for reader in (*self._idle, *self._busy)}

    def close(self) -> None:
        """End all of them; what they read is not answered. A later body gets a new reader."""
        for reader in (*self._idle, *self._busy):
            reader.end()
        self._idle.clear()
        self._starter.shutdown(wait=False)
        self._starter = _starter()


def _starter() -> Executor:
    # It has no thread until a reader is to start.
    return ThreadPoolExecutor(1, "start of a reader")


class _Reader:
    """One process, and the connection to it."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        stream: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._process = process
        self._answers, self._bodies = stream

    @classmethod
    async def start(cls, starter: Executor) -> "_Reader":
        """Start one, in a thread of `starter`. Raises BodiesFull where the system has no room for
        it."""
        starting = starter.submit(_start)
        try:
            process, connection = await asyncio.wrap_future(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_end_unwanted)
            raise
        except (OSError, RuntimeError) as problem:  # There is no room, or no thread.
            _log.error("a process that reads bodies does not start: %s", problem)
            raise BodiesFull(_UNREAD) from None
        try:
            return cls(process, await asyncio.open_unix_connection(sock=connection))
        except BaseException:
            connection.close()
            _kill(process)
            raise

    @property
    def process(self) -> int:
        """Its process ID."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    async def read(self, body: Pieces, about: BodyContext) -> BodyAttributes:
        """The attributes of a body. Raises EOFError or OSError where the process ends."""
        self._bodies.write(heading(about, len(body)))
        for piece in body:
            self._bodies.write(piece)
            await self._bodies.drain()
        size = int.from_bytes(await self._answers.readexactly(LENGTH))
        if size > _MAX_ANSWER:
            raise EOFError
        return read_answer(await self._answers.readexactly(size))

    def end(self) -> None:
        """End it at once."""
        with suppress(RuntimeError):  # The loop may be closed already.
            self._bodies.transport.abort()  # What follows kills the reader, so it reads no more.
        _kill(self._process)


def _end_unwanted(starting: "Future[_Started]") -> None:
    """End a process whose request has ended meanwhile. The thread that started it calls this, as
    the event loop may have ended, too."""
    if starting.cancelled() or starting.exception() is not None:
        return
    process, connection = starting.result()
    connection.close()
    _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process at once, without waiting for the system, which may take its time."""
    process.kill()
    with suppress(RuntimeError):  # No thread can start: the next process's start reaps it.
        threading.Thread(target=_reap, args=(process,), name="ended reader", daemon=True).start()


def _reap(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        _log.error(
            "the process %d, which read bodies, was killed %g s ago and has not ended",
            *(process.pid, PATIENCE),
        )


def _start() -> _Started:
    """A new process, and our end of the connection that is its input and its output."""
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            end = theirs.fileno()
            return subprocess.Popen(_COMMAND, stdin=end, stdout=end), ours  # noqa: S603  # our own program
    except OSError:
        ours.close()
        raise
