"""The spool: a folder of append-only files, where log entries are safe until the store has them.

One worker writes one file at a time and holds a lock on it. What one write() has taken survives the
worker's end, kill -9 included, as the kernel has it then; it does not survive the machine's. The
shipper deletes a file that the store has all of and nobody locks any more.

    {process}-{number}.jsonl   a line of JSON for each entry
    {process}.lost             how many entries the process could not keep
    shipper.lock               held by the one process that ships
    database                   which database the entries belong to
"""

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from policyd.errors import LogFull, LogUnwritable, NoRoom, SettingsError
from policyd.private_files import make_file, make_folder

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

_SEGMENT = 8 * 2**20
"""Bytes after which a new file is begun."""
_SEGMENTS = 8
"""Files that the spool holds at least before it is full."""
_LOOK = 1.0
"""Seconds between two looks at what all workers together have written."""
_SPARES = 4
"""Descriptors that are kept for looking and for a new file, where the process has no other left."""
_NO_FILES = frozenset({errno.EMFILE, errno.ENFILE})
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_DIGITS = 20


def prepare(folder: Path, database: str) -> None:
    """Make the folder, for the entries of this database. Raises SettingsError."""
    make(folder)
    mark = folder / "database"
    try:
        known = known_database(folder)
        if known == database:
            return
        if known is not None:
            _check_unused(folder)
        draft = folder / f"database.{os.getpid()}.tmp"
        make_file(draft)
        draft.write_text(database, encoding="utf-8")
        draft.replace(mark)
    except OSError as error:
        raise _unusable(folder, error) from None


def make(folder: Path) -> None:
    """Make the folder. Raises SettingsError, which is NoRoom where the disk is full."""
    try:
        make_folder(folder)
    except OSError as error:
        raise _unusable(folder, error) from None


def known_database(folder: Path) -> str | None:
    """Which database the folder's entries belong to; None where that is not known yet.

    Raises SettingsError.
    """
    try:
        # Empty: the disk was full when it was to be written.
        return (folder / "database").read_text(encoding="utf-8") or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(folder, error) from None


def _check_unused(folder: Path) -> None:
    """Raises SettingsError where the entries of another database wait, or could any moment."""
    if any(file.stat().st_size for file in folder.glob("*.jsonl")):
        raise SettingsError(
            f"--spool {folder} holds entries of another database, which that one has not got "
            "yet: run policyd with that database, or give --spool another folder"
        )
    reader = SpoolReader(folder)
    try:
        if not reader.lock():
            raise SettingsError(
                f"--spool {folder} is in use by a policyd with another database: "
                "give --spool another folder"
            )
    finally:
        reader.close()


def _unusable(folder: Path, error: OSError) -> SettingsError:
    if error.errno in _NO_ROOM:
        return NoRoom(f"--spool {folder} cannot be made: {error.strerror}. Make room on its disk")
    return SettingsError(
        f"--spool {folder} cannot be used: {error.strerror}. Give it a folder that policyd may "
        "write to, on a local disk"
    )


def _open_folder(folder: Path) -> int:
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _unusable(folder, error) from None


def _lock(descriptor: int) -> bool:
    """Take the file's lock, unless another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class SpoolWriter:
    """Writes the entries of one process. `limit` is the bytes of the whole folder.

    Raises SettingsError where the folder cannot be used. Where its disk is full, it begins its
    files as soon as there is room.
    """

    def __init__(self, folder: Path, process: str, limit: int) -> None:
        self._path = folder
        self._folder = -1
        self._process = process
        self._limit = limit
        self._segment_size = max(min(_SEGMENT, limit // _SEGMENTS), 1)
        self._number = 0
        self._segment = -1
        self._size = 0
        self._is_torn = True
        """Whether there is no file to go on with."""
        self._used = 0
        self._looked_at = 0.0
        self._lost = 0
        self._losses = -1
        self._told = 0
        """How many of those that are lost are written."""
        self._spares: _Spares
        self._is_blind = False
        """Whether the last look failed."""
        self._problem: OSError | None = None
        """Why there was no new file when one was due."""
        try:
            self._begin()
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise _unusable(folder, error) from None
            _log.error("no decision can be logged yet: %s", _unusable(folder, error))

    def write(self, lines: bytes) -> None:
        """Write all of it or nothing. Raises LogFull or LogUnwritable."""
        if self._segment < 0:
            self._begin_late()
        now = time.monotonic()
        if now - self._looked_at > _LOOK or self._used + len(lines) > self._limit:
            self._look(now)
        if self._size >= self._segment_size or self._is_torn:
            self._rotate()
        if self._is_torn:
            raise _unwritable("begin a new file", self._problem)
        if self._used + len(lines) > self._limit:
            raise LogFull(
                "the decision log is full (--spool-limit), as the database does not take it: "
                "see to the database, or serve with --log-full drop"
            )
        self._append(lines)

    def is_fuller_than(self, share: float) -> bool:
        """Whether more than this share of the limit is used. Raises OSError."""
        if self._segment >= 0:
            self._look(time.monotonic())
        return self._used > share * self._limit

    def drop(self, entries: int) -> None:
        """Count entries that are not kept: in memory, until the disk has room for the count."""
        self._lost += entries
        with suppress(OSError):
            self._write_losses()

    def tell_losses(self) -> None:
        """Write the count that the disk had no room for, if it has now."""
        with suppress(OSError):
            if self._segment < 0:
                self._begin()
            elif self._told != self._lost:
                self._write_losses()

    def close(self) -> None:
        """Leave the files to the shipper."""
        self.tell_losses()
        if self._folder >= 0:
            self._spares.close()
        for descriptor in (self._segment, self._losses, self._folder):
            if descriptor >= 0:
                os.close(descriptor)

    def _begin(self) -> None:
        """Make what is not there yet of the folder and the files. Raises OSError: a full disk may
        take some of it, and the rest another time."""
        if self._folder < 0:
            make_folder(self._path)
            self._folder = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
            self._spares = _Spares(self._folder)
        self._write_losses()
        self._begin_segment()

    def _begin_late(self) -> None:
        """As the disk was full at first. Raises LogFull or LogUnwritable."""
        try:
            self._begin()
        except OSError as error:
            raise _unwritable("begin a file", error) from None
        _log.info("there is room for the decision log now")

    def _write_losses(self) -> None:
        """Write how many are lost. Before any is, so that it has its place on a disk that is full
        later. Raises OSError."""
        if self._folder < 0:
            return
        if self._losses < 0:
            self._losses = self._create(f"{self._process}.lost")
        os.pwrite(self._losses, b"%0*d" % (_DIGITS, self._lost), 0)
        self._told = self._lost

    def _append(self, lines: bytes) -> None:
        written = 0
        try:
            while written < len(lines):
                written += os.write(self._segment, lines[written:] if written else lines)
        except OSError as error:
            self._take_back(written)
            raise _unwritable("be written", error) from None
        self._size += written
        self._used += written

    def _take_back(self, written: int) -> None:
        """Half a batch must not be read as one."""
        with suppress(OSError):
            os.ftruncate(self._segment, self._size)
        # The shipper can make room by deleting this file. And it may have read the half batch: it
        # would look for what follows behind that.
        self._is_torn = self._is_torn or written > 0
        if self._size or self._is_torn:
            self._rotate()

    def _look(self, now: float) -> None:
        """See how much all workers have written. At the limit, at most a few times a second."""
        if now - self._looked_at > _LOOK / 10:
            self._looked_at = now
            try:
                found = self._spares.lend(lambda: _segments(self._folder))
            except OSError as error:
                # What this process writes is counted all the same, and decisions go on.
                if not self._is_blind:
                    _log.error("the spool cannot be looked through: %s", _cause(error))
                self._is_blind = True
            else:
                self._used = sum(size for _, size in found)
                self._is_blind = False
            if not os.fstat(self._segment).st_nlink:
                # Somebody has deleted it, and nobody would ever read what is written there.
                self._is_torn = True

    def _rotate(self) -> None:
        before, is_empty = self._segment, not self._size
        try:
            self._spares.lend(self._begin_segment)
        except OSError as error:
            self._problem = error
            return  # The old one goes on, and write() says what is wrong.
        if is_empty:
            # On a full disk there may be many, and a shipper without a store deletes none.
            with suppress(OSError):
                os.unlink(self._segment_name(self._number - 1), dir_fd=self._folder)
        os.close(before)

    def _begin_segment(self) -> None:
        self._segment = self._create(self._segment_name(self._number + 1))
        self._number += 1
        self._size, self._is_torn = 0, False

    def _segment_name(self, number: int) -> str:
        return f"{self._process}-{number:08d}.jsonl"

    def _create(self, name: str) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
        if name.endswith(".lost"):
            flags &= ~os.O_APPEND
        while True:
            descriptor = os.open(name, flags, 0o600, dir_fd=self._folder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # The shipper may have come between, and taken it for one that nobody writes any more.
            if os.fstat(descriptor).st_nlink:
                return descriptor
            os.close(descriptor)


class _Spares:
    """Descriptors in reserve: given up for a moment where the process has used up all others."""

    def __init__(self, folder: int) -> None:
        self._folder = folder
        self._kept: list[int] = []
        self._fill()

    def lend(self, work: Callable[[], _Result]) -> _Result:
        """Do `work`, which opens a file. Raises what it raises."""
        try:
            return work()
        except OSError as error:
            if error.errno not in _NO_FILES or not self._kept:
                raise
            os.close(self._kept.pop())
            return work()
        finally:
            if len(self._kept) < _SPARES:
                self._fill()

    def close(self) -> None:
        """Give all of them up."""
        while self._kept:
            os.close(self._kept.pop())

    def _fill(self) -> None:
        with suppress(OSError):  # Then there are fewer for now.
            while len(self._kept) < _SPARES:
                self._kept.append(os.dup(self._folder))


def _unwritable(what: str, error: OSError | None) -> LogFull:
    kind = LogFull if error is not None and error.errno in _NO_ROOM else LogUnwritable
    return kind(f"the decision log cannot {what}: {_cause(error)}")


def _cause(error: OSError | None) -> str:
    """What is wrong, and what is to be done about it."""
    if error is not None and error.errno in _NO_FILES:
        return (
            f"{error.strerror}. Raise the limit of open files (ulimit -n; LimitNOFILE= of a "
            "systemd unit), or lower --max-connections"
        )
    why = f" ({error.strerror})" if error is not None else ""
    return f"see to the folder and the disk that --spool names{why}, or serve with --log-full drop"


def _segments(folder: int) -> list[tuple[str, int]]:
    """The names and sizes of the files with entries, by name."""
    found = []
    with os.scandir(folder) as files:
        for file in files:
            if file.name.endswith(".jsonl"):
                with suppress(FileNotFoundError):
                    found.append((file.name, os.stat(file.name, dir_fd=folder).st_size))
    return sorted(found)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole lines of one file."""

    name: str
    lines: list[bytes]
    end: int
    """Where the next chunk begins."""
    is_last: bool
    """Whether that has yet to be written."""


class SpoolReader:
    """Reads what all processes have written, once it has the folder's lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = _open_folder(folder)
        self._shipping = -1
        self._ends: dict[str, int] = {}

    def lock(self) -> bool:
        """Become the one that ships, unless another process is."""
        if self._shipping < 0:
            flags = os.O_WRONLY | os.O_CREAT
            descriptor = os.open("shipper.lock", flags, 0o600, dir_fd=self._folder)
            if not _lock(descriptor):
                os.close(descriptor)
                return False
            self._shipping = descriptor
        return True

    def chunks(self, size: int) -> Iterator[Chunk]:
        """What is not read yet, in pieces of about `size` bytes. Files read to their end go.

        A file that grows meanwhile has its turn again in the next round.
        """
        for name, _ in _segments(self._folder):
            while chunk := self._chunk(name, size):
                yield chunk
                if chunk.is_last:
                    break

    def done(self, chunk: Chunk) -> None:
        """The store has it."""
        self._ends[chunk.name] = chunk.end

    def losses(self) -> dict[str, int]:
        """How many entries each process has lost, of those that lost any."""
        found = {}
        for name in self._loss_files():
            with suppress(FileNotFoundError, ValueError), self._opened(name) as descriptor:
                found[name.removesuffix(".lost")] = int(os.pread(descriptor, _DIGITS, 0))
        return {process: lost for process, lost in found.items() if lost}

    def forget_losses(self, known: dict[str, int]) -> None:
        """Delete the counts of processes that have ended, where the store has the same ones."""
        for name in self._loss_files():
            with suppress(FileNotFoundError, ValueError), self._opened(name) as descriptor:
                if _lock(descriptor):
                    lost = int(os.pread(descriptor, _DIGITS, 0) or b"0")
                    if lost == known.get(name.removesuffix(".lost"), 0):
                        os.unlink(name, dir_fd=self._folder)

    def close(self) -> None:
        """Let another process ship."""
        for descriptor in (self._shipping, self._folder):
            if descriptor >= 0:
                os.close(descriptor)

    def _chunk(self, name: str, size: int) -> Chunk | None:
        start = self._ends.get(name, 0)
        with suppress(FileNotFoundError), self._opened(name) as descriptor:
            # In this order: what nobody writes any more is read to its end.
            is_left = _lock(descriptor)
            content = os.pread(descriptor, size, start)
            whole = content[: content.rfind(b"\n") + 1]
            if whole:
                is_last = not is_left and len(content) < size
                return Chunk(name, whole[:-1].split(b"\n"), start + len(whole), is_last)
            if is_left:
                # Half a line at the end belongs to a decision that was never answered.
                os.unlink(name, dir_fd=self._folder)
                self._ends.pop(name, None)
        return None

    def _loss_files(self) -> list[str]:
        with os.scandir(self._folder) as files:
            return [file.name for file in files if file.name.endswith(".lost")]

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        descriptor = os.open(name, os.O_RDONLY, dir_fd=self._folder)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
