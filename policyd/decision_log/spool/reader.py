"""The spool as the shipper reads it, and deletes what the store has."""

import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from policyd.command.private_files import NO_ROOM
from policyd.decision_log.spool.folder import DIGITS, lock, open_folder, segments
from policyd.decision_log.spool.system import System
from policyd.errors import SettingsError

_PIECE = 2**20
"""Bytes that are read of a file before it is deleted, to see whether it has more lines."""
_BEGINNING = 64
"""Bytes of an entry in which its ID is looked for."""
_ID = re.compile(rb'"([0-9a-f]{12})[0-9a-f]{20}"')
"""The ID of a decision, which begins with its millisecond, in the first bytes of an entry."""
_IDENTITY = re.compile(rb"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole lines of one file."""

    name: str
    lines: list[bytes]
    start: int
    end: int
    """Where the next chunk begins."""
    is_last: bool
    """Whether nothing follows it yet, and the file is still being written."""


class SpoolReader:
    """Reads what all processes have written, once it has the folder's lock.

    It begins where resume() says, and deletes only what the caller of delete() and forget_losses()
    states that the store has.
    """

    def __init__(self, folder: Path, system: System | None = None) -> None:
        self._system = system or System()
        self._folder = open_folder(folder, self._system)
        self._shipping = -1
        self._locking = threading.Lock()
        self._identity = ""
        self._ends: dict[str, int] = {}
        self._finished: set[str] = set()

    def lock(self) -> bool:
        """Become the process that ships, unless another one is. Threads may call it at once."""
        with self._locking:
            if self._shipping < 0:
                flags = os.O_WRONLY | os.O_CREAT
                descriptor = self._system.open("shipper.lock", flags, 0o600, dir_fd=self._folder)
                if not lock(self._system, descriptor):
                    self._system.close(descriptor)
                    return False
                self._shipping = descriptor
            return True

    def identity(self) -> str:
        """The identity of this folder, made at the first call. Only the process that ships may call
        it."""
        if not self._identity:
            self._identity = self.known_identity() or self._new_identity()
        return self._identity

    def resume(self, ends: Mapping[str, int]) -> set[str]:
        """Go on from the store's positions. Returns the files that have one and are gone."""
        names = set(self._names())
        self._ends = {name: end for name, end in ends.items() if name in names}
        self._finished.clear()
        return ends.keys() - names

    def chunks(self, size: int) -> Iterator[Chunk]:
        """The entries not read yet, in chunks of about `size` bytes.

        A file that grows meanwhile is read further at the next call.
        """
        names = self._names()
        self._finished |= self._ends.keys() - set(names)
        for name in names:
            while chunk := self._chunk(name, size):
                yield chunk
                if chunk.is_last:
                    break

    def done(self, chunk: Chunk) -> None:
        """Note that the store has the chunk."""
        self._ends[chunk.name] = chunk.end

    def finished(self) -> dict[str, int]:
        """The files that no process writes any more and that were read to their end: each with its
        end."""
        return {name: self._ends.get(name, 0) for name in self._finished}

    def delete(self, ends: Mapping[str, int]) -> set[str]:
        """Delete the files that end where the store's positions say. Returns those that are gone,
        and stay so even if the power fails."""
        gone = set()
        for name, end in ends.items():
            if self._delete(name, end):
                gone.add(name)
                self._finished.discard(name)
                self._ends.pop(name, None)
        if gone:
            self._system.fsync(self._folder)
        return gone

    def losses(self) -> dict[str, int]:
        """How many entries each process has lost; one that lost none is left out."""
        found: dict[str, int] = {}
        for name in self._loss_files():
            with suppress(FileNotFoundError), self._opened(name) as descriptor:
                lost = _number(self._system.pread(descriptor, DIGITS, 0))
                found[_process(name)] = max(lost, found.get(_process(name), 0))
        return {process: lost for process, lost in found.items() if lost}

    def ended(self) -> set[str]:
        """The processes that have ended and left a count of losses behind."""
        found = set()
        for name in self._loss_files():
            with suppress(FileNotFoundError), self._opened(name) as descriptor:
                if lock(self._system, descriptor):
                    found.add(_process(name))
        return found

    def forget_losses(self, known: Mapping[str, int]) -> None:
        """Delete the counts of processes that have ended, where the store has as many."""
        for name in self._loss_files():
            with suppress(FileNotFoundError), self._opened(name) as descriptor:
                if lock(self._system, descriptor):
                    # Read once it is locked: before that, the process may still count.
                    lost = _number(self._system.pread(descriptor, DIGITS, 0))
                    if lost <= known.get(_process(name), 0):
                        self._system.unlink(name, dir_fd=self._folder)

    def waiting(self) -> tuple[int, float]:
        """Bytes that are not shipped yet, as far as the store's positions are known, and when the
        oldest of them was decided or written, in seconds since 1970."""
        size, oldest = 0, time.time()
        for name, end in segments(self._folder, self._system):
            start = self._ends.get(name, 0)
            if end > start:
                size += end - start
                with suppress(FileNotFoundError):
                    oldest = min(oldest, self._began(name, start))
        return size, oldest

    def _began(self, name: str, start: int) -> float:
        with self._opened(name) as descriptor:
            found = _ID.search(self._system.pread(descriptor, _BEGINNING, start))
            if found:
                return int(found[1], 16) / 1000
            return self._system.fstat(descriptor).st_mtime

    def left(self) -> int:
        """Bytes of entries in files that no process writes any more."""
        found = 0
        for name, size in segments(self._folder, self._system):
            with suppress(FileNotFoundError), self._opened(name) as descriptor:
                found += size if lock(self._system, descriptor) else 0
        return found

    def close(self) -> None:
        """Let another process ship."""
        for descriptor in (self._shipping, self._folder):
            if descriptor >= 0:
                self._system.close(descriptor)

    def _names(self) -> list[str]:
        return [name for name, _ in segments(self._folder, self._system)]

    def _chunk(self, name: str, size: int) -> Chunk | None:
        start = self._ends.get(name, 0)
        with suppress(FileNotFoundError), self._opened(name) as descriptor:
            # Locked before it is read: what is read of a file that is left is then its end.
            is_left = lock(self._system, descriptor)
            content = self._system.pread(descriptor, size, start)
            whole = _whole(content, size)
            if whole:
                is_last = not is_left and len(content) < size
                lines = whole.removesuffix(b"\n").split(b"\n")
                return Chunk(name, lines, start, start + len(whole), is_last)
            if is_left:
                self._finished.add(name)
        return None

    def _delete(self, name: str, end: int) -> bool:
        """Whether the file is gone. It stays if a process writes it, or if it has more lines."""
        try:
            with self._opened(name) as descriptor:
                # Locked before it is read: a process that has just made it may write until then.
                if not lock(self._system, descriptor):
                    return False
                if _whole(self._system.pread(descriptor, _PIECE, end), _PIECE):
                    return False
                # Half a line at the end belongs to a decision that was never answered.
                self._system.unlink(name, dir_fd=self._folder)
        except FileNotFoundError:
            pass
        return True

    def known_identity(self) -> str:
        """The identity of this folder; "" where no process has shipped from it yet."""
        with suppress(FileNotFoundError), self._opened("identity") as descriptor:
            found = _IDENTITY.fullmatch(self._system.pread(descriptor, 64, 0))
            return found[0].decode() if found else ""
        return ""

    def _new_identity(self) -> str:
        identity = secrets.token_hex(8)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            descriptor = self._system.open("identity", flags, 0o600, dir_fd=self._folder)
            try:
                self._system.write(descriptor, identity.encode())
                self._system.fsync(descriptor)
            finally:
                self._system.close(descriptor)
            self._system.fsync(self._folder)
        except OSError as error:
            # The disk is full. Shipping makes room: this time under an identity that is not kept.
            if error.errno not in NO_ROOM:
                raise
        return identity

    def _loss_files(self) -> list[str]:
        return [one for one in self._system.listdir(self._folder) if one.endswith(".lost")]

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        descriptor = self._system.open(name, os.O_RDONLY, dir_fd=self._folder)
        try:
            yield descriptor
        finally:
            self._system.close(descriptor)


def left(folder: Path) -> int:
    """Bytes of entries that wait for the next start, as no process writes or ships them."""
    try:
        reader = SpoolReader(folder)
    except SettingsError:
        return 0  # No process has started here yet.
    try:
        return reader.left() if reader.lock() else 0
    finally:
        reader.close()


def _whole(content: bytes, size: int) -> bytes:
    """The whole lines at the beginning of `content`. A full piece without the end of a line is no
    entry: it is taken as a line that cannot be read, and so skipped."""
    whole = content[: content.rfind(b"\n") + 1]
    return whole or (content if len(content) == size else b"")


def _process(name: str) -> str:
    """The process whose losses the file with this name counts."""
    return name.partition("-")[0]


def _number(digits: bytes) -> int:
    """The count of losses. Incomplete digits were never written as a whole, and count as 0."""
    return int(digits) if digits.isdigit() else 0
