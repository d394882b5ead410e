"""When the disk has what was written to the spool, and so what a power cut may take.

    always     the disk has a decision before its answer leaves
    interval   the disk has it a second or so later
    never      the disk has it when the kernel writes it of its own accord, some 30 s later

A sync takes as long as the disk takes, so it runs in a thread of its own. Answers that come while
one runs cannot rely on it, and share the next: so one runs and one waits at most, however many
answers there are. A file whose sync has failed is no longer written, as the kernel may have thrown
away what the disk did not take, and a second sync would not report it again.
"""

import asyncio
import queue
import threading
from collections.abc import Callable

from policyd.decision_log.spool.system import System


class Unsynced:
    """The files of one writer of which the disk may not have all. Threads may share it."""

    def __init__(self, folder: int, system: System) -> None:
        self._folder = folder
        self._system = system
        self._lock = threading.Lock()
        self._current = -1
        self._left: list[int] = []
        self._has_new_file = False

    def begin(self, descriptor: int) -> None:
        """Note a new file for entries. The previous one is closed once it is synced."""
        with self._lock:
            if self._current >= 0:
                self._left.append(self._current)
            self._current = descriptor
            self._has_new_file = True

    def sync(self) -> None:
        """Have the disk take all that was written before this call. Raises OSError."""
        with self._lock:
            left, self._left = self._left, []
            current, has_new_file = self._current, self._has_new_file
            self._has_new_file = False
        try:
            if has_new_file:
                # Until the folder is synced, a power cut may take the file's name, and so the file.
                self._system.fsync(self._folder)
            for descriptor in (*left, current):
                if descriptor >= 0:
                    self._system.fdatasync(descriptor)
        except OSError:
            with self._lock:
                self._has_new_file |= has_new_file
            raise
        finally:
            for descriptor in left:
                self._system.close(descriptor)

    def close(self) -> None:
        """Close the files, synced or not."""
        with self._lock:
            for descriptor in (*self._left, self._current):
                if descriptor >= 0:
                    self._system.close(descriptor)
            self._left, self._current = [], -1


class SyncThread:
    """Does `work` in a thread, for the event loop. The thread keeps no process from ending."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turns: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._running: asyncio.Future[OSError | None] | None = None
        self._next: asyncio.Future[OSError | None] | None = None

    def request(self) -> asyncio.Future[OSError | None]:
        """The error, if any, of a run of `work` that begins after this call. Do not cancel it, as
        others may wait for the same run."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            threading.Thread(target=self._work_on, name="spool-sync", daemon=True).start()
        asked = self._next
        if asked is None:
            asked = self._next = self._loop.create_future()
            if self._running is None:
                self._begin()
        return asked

    def close(self) -> None:
        """Let the thread end after its present run of `work`."""
        self._turns.put(False)

    def _begin(self) -> None:
        self._running, self._next = self._next, None
        self._turns.put(True)

    def _work_on(self) -> None:
        assert self._loop is not None
        while self._turns.get():
            error = None
            try:
                self._work()
            except OSError as failed:
                error = failed
            try:
                self._loop.call_soon_threadsafe(self._end, error)
            except RuntimeError:
                return  # The loop is closed, so no caller waits any more.

    def _end(self, error: OSError | None) -> None:
        ended, self._running = self._running, None
        if ended is not None and not ended.done():
            ended.set_result(error)
        if self._next is not None:
            self._begin()
