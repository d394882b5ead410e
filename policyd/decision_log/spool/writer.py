"""The spool as a worker writes it: whole batches of lines, within the limit, or an error."""

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from policyd.command.log_settings import Sync
from policyd.command.private_files import NO_ROOM, make_folder
from policyd.decision_log.spool.folder import DIGITS, lock, segments, unusable
from policyd.decision_log.spool.problems import cause, unwritable
from policyd.decision_log.spool.spares import Spares
from policyd.decision_log.spool.syncing import Unsynced
from policyd.decision_log.spool.system import System
from policyd.errors import LogFull

_log = logging.getLogger(__name__)

_SEGMENT = 8 * 2**20
"""Bytes after which a new file is begun."""
_SEGMENTS = 8
"""Segments that the spool's limit has room for, at least."""
_LOOK = 1.0
"""Seconds between two looks at how much all processes together have written."""
_TRIAL = b" " * 4096
"""What try_out() writes. It ends no line, so that no reader takes it for an entry."""


class SpoolWriter:
    """Writes the entries of one process. `limit` is how many bytes the whole folder may hold.

    Raises SettingsError where the folder cannot be used. A full disk does not raise: write() raises
    LogFull until there is room for the folder and its files.
    """

    def __init__(
        self,
        folder: Path,
        process: str,
        limit: int,
        sync: Sync = "never",
        system: System | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._system = system or System()
        self._clock = clock
        self._path = folder
        self._folder = -1
        self._process = process
        self._limit = limit
        self._segment_size = max(min(_SEGMENT, limit // _SEGMENTS), 1)
        self._number = 0
        self._segment = -1
        self._name = ""
        self._size = 0
        self._is_torn = True
        """Whether nothing more may be written to the segment."""
        self._used = 0
        self._looked_at = 0.0
        self._losses = -1
        self.lost = 0
        """Entries that drop() has counted."""
        self._told = 0
        """How many of them the disk has."""
        self._spares: Spares
        self._is_synced = sync != "never"
        self._unsynced: Unsynced | None = None
        self.written = 0
        """Bytes that this process has written so far."""
        self._is_blind = False
        """Whether the last look at the folder failed."""
        self._problem: OSError | None = None
        """Why there was no new file when one was due."""
        self._start()

    def _start(self) -> None:
        try:
            self._open()
            self._begin_losses()
            self._begin_segment()
        except OSError as error:
            if error.errno not in NO_ROOM:
                self.close()
                raise unusable(self._path, error) from None
            _log.error("the spool has no room yet: %s", cause(error))

    def write(self, lines: bytes) -> None:
        """Write all of the lines or none. Raises LogFull or LogUnwritable."""
        self._make_ready(len(lines))
        self._append(lines)

    def is_doubtful(self) -> bool:
        """Whether the next entry may not find room, or a file to be written to."""
        self._look(self._clock())
        return self._is_torn or self._used + len(_TRIAL) > self._limit

    def try_out(self) -> None:
        """Write something, and take it back. Raises LogFull or LogUnwritable."""
        self._make_ready(len(_TRIAL))
        self._append(_TRIAL)
        self._size -= len(_TRIAL)
        self._used -= len(_TRIAL)
        self.written -= len(_TRIAL)
        try:
            self._system.ftruncate(self._segment, self._size)
        except OSError as error:
            self._is_torn = True
            raise unwritable("be written", error) from None

    def _make_ready(self, length: int) -> None:
        """Make sure that a file can take `length` bytes. Raises LogFull or LogUnwritable."""
        now = self._clock()
        if now - self._looked_at > _LOOK or self._used + length > self._limit:
            self._look(now)
        if self._size >= self._segment_size or self._is_torn:
            self._rotate()
        if self._is_torn:
            raise unwritable("begin a new file", self._problem)
        if self._used + length > self._limit:
            raise LogFull(
                "the decision log is full (--spool-limit), as the database does not take it: "
                "see to the database, or serve with --log-full drop"
            )

    def sync(self) -> None:
        """Sync what was written. Call it from any thread, one call at a time. Raises OSError."""
        if self._unsynced is not None:
            self._unsynced.sync()

    def leave_segment(self) -> None:
        """Write no more to this segment: its sync has failed, and a second one would not report
        that again."""
        self._is_torn = True

    def is_fuller_than(self, share: float) -> bool:
        """Whether more than this share of the limit is used."""
        self._look(self._clock())
        return self._used > share * self._limit

    def drop(self, entries: int) -> None:
        """Count entries that are lost."""
        self.lost += entries
        self.tell_losses()

    def tell_losses(self) -> None:
        """Write losses that are not on the disk yet, if it takes them now."""
        if self.lost == self._told:
            return
        with suppress(OSError):  # Then the next call writes them.
            self._open()
            if self._losses < 0 or not self._system.fstat(self._losses).st_nlink:
                self._spares.lend(self._begin_losses)
            self._system.pwrite(self._losses, b"%0*d" % (DIGITS, self.lost), 0)
            self._told = self.lost

    def close(self) -> None:
        """Leave the files to the shipper."""
        if self._folder >= 0:
            self._spares.close()
        if self._unsynced is not None:
            self._unsynced.close()
            self._segment = -1
        for descriptor in (self._segment, self._losses, self._folder):
            if descriptor >= 0:
                self._system.close(descriptor)
        self._segment = self._losses = self._folder = -1

    def _open(self) -> None:
        """Open the folder, and make it where the disk was too full for it. Raises OSError."""
        if self._folder >= 0:
            return
        make_folder(self._path)
        self._folder = self._system.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        self._spares = Spares(self._folder, self._system)
        if self._is_synced:
            self._unsynced = Unsynced(self._folder, self._system)

    def _append(self, lines: bytes) -> None:
        written = 0
        try:
            while written < len(lines):
                part = lines[written:] if written else lines
                written += self._system.write(self._segment, part)
        except OSError as error:
            self._take_back(written)
            raise unwritable("be written", error) from None
        self._size += written
        self._used += written
        self.written += written

    def _take_back(self, written: int) -> None:
        """Remove half a batch, which must not be read as a whole one."""
        with suppress(OSError):
            self._system.ftruncate(self._segment, self._size)
        # A new segment follows, so that the shipper can make room by deleting this one. It may also
        # have read the half batch, and would look for more behind it.
        self._is_torn = self._is_torn or written > 0
        if self._size or self._is_torn:
            self._rotate()

    def _look(self, now: float) -> None:
        """Look how much all processes have written: at the limit, up to ten times a second."""
        if now - self._looked_at > _LOOK / 10:
            self._looked_at = now
            try:
                self._open()
                found = self._spares.lend(lambda: segments(self._folder, self._system))
                is_gone = self._segment >= 0 and not self._system.fstat(self._segment).st_nlink
            except OSError as error:
                # Decisions go on: what this process itself writes is still counted.
                if not self._is_blind:
                    _log.error("the spool cannot be looked through: %s", cause(error))
                self._is_blind = True
            else:
                self._used = sum(size for _, size in found)
                self._is_blind = False
                # Another program has deleted the segment, so no shipper would ever read it.
                self._is_torn = self._is_torn or is_gone

    def _rotate(self) -> None:
        before, name, is_empty = self._segment, self._name, not self._size
        try:
            self._open()
            self._spares.lend(self._begin_segment)
        except OSError as error:
            self._problem = error
            return  # The old segment stays in use, if it can, and write() reports the problem.
        if before < 0:
            return
        if is_empty:
            # On a full disk there may be many empty segments, and while the store is away the
            # shipper deletes none.
            with suppress(OSError):
                self._system.unlink(name, dir_fd=self._folder)
        if self._unsynced is None:
            self._system.close(before)

    def _begin_segment(self) -> None:
        if self._losses < 0:
            self._begin_losses()
        self._segment, self._name = self._create("jsonl", os.O_APPEND)
        self._size, self._is_torn = 0, False
        if self._unsynced is not None:
            self._unsynced.begin(self._segment)

    def _begin_losses(self) -> None:
        """Make the file that counts losses, at its full size, as the disk may be full later."""
        descriptor, _ = self._create("lost", 0)
        try:
            self._system.pwrite(descriptor, b"%0*d" % (DIGITS, 0), 0)
        except OSError:
            self._system.close(descriptor)
            raise
        if self._losses >= 0:
            self._system.close(self._losses)
        self._losses = descriptor

    def _create(self, kind: str, more: int) -> tuple[int, str]:
        """A new file, locked, and its name. No file has had that name before."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | more
        while True:
            name = f"{self._process}-{self._number + 1:08d}.{kind}"
            descriptor = self._system.open(name, flags, 0o600, dir_fd=self._folder)
            self._number += 1
            try:
                # Before it was locked, the shipper may have taken it for one that is left, and
                # deletes it now or later. The lock may never be free, so another file is made.
                if lock(self._system, descriptor) and self._system.fstat(descriptor).st_nlink:
                    return descriptor, name
            except OSError:
                self._system.close(descriptor)
                raise
            self._system.close(descriptor)
