"""Distinguishes SQLite's own writes to a database's file from those of another program.

In WAL mode only checkpoints write to the file itself, and SQLite counts them in FILE-shm. If the
file was written to while those counts stayed the same, another program did it: an operator has
copied a backup into it, say, and FILE-wal no longer fits it.

The counts are read through SQLite's own descriptor of FILE-shm. Opening another one would not do:
when it is closed, the process loses the locks that SQLite has on that file.
"""

import os
import struct
from contextlib import suppress
from typing import NamedTuple

_SALT = (32, 8)
_DONE = (96, 4)
_BEGUN = (128, 4)
"""The place and length of each in FILE-shm: https://www.sqlite.org/walformat.html."""
_DESCRIPTORS = "/proc/self/fd"


class Written(NamedTuple):
    """When a file was last written to, and how large it was then."""

    at_ns: int
    size: int


class Counts(NamedTuple):
    """SQLite's counts of checkpoints in FILE-shm."""

    salt: bytes
    done: int
    begun: int

    @property
    def is_under_way(self) -> bool:
        """Whether a checkpoint writes now, or was interrupted."""
        return self.done != self.begun


class Checkpoints:
    """Follows one file while SQLite has it open. Belongs to one thread at a time."""

    def __init__(self) -> None:
        self._written: Written | None = None
        self._counts: Counts | None = None

    def begin(self, written: Written, counts: Counts | None) -> None:
        """Begin with the file as SQLite has just opened it."""
        self._written, self._counts = written, counts

    def explain(self, before: Counts | None, written: Written, after: Counts | None) -> bool:
        """Whether checkpoints can have written the file as it is now.

        The counts are from `before` and `after` the file was looked at. None: they cannot be read
        on this system, and every write counts as explained.
        """
        known, self._written = self._written, written
        counts, self._counts = self._counts, after
        if written == known or counts is None or before is None or after is None:
            return True
        is_same = counts == before == after and not after.is_under_way
        if is_same:
            # So that the write stays unexplained at every later look.
            self._written, self._counts = known, counts
        return not is_same


def find_descriptor(inode: tuple[int, int] | None) -> int | None:
    """A descriptor that this process has of the file. None: it has none, or the system does not
    say."""
    with suppress(OSError):
        for name in os.listdir(_DESCRIPTORS):
            if _is_of(int(name), inode):
                return int(name)
    return None


def counts(descriptor: int | None, inode: tuple[int, int] | None) -> Counts | None:
    """The counts, read through this descriptor. None: it is no longer the file's."""
    if descriptor is None or not _is_of(descriptor, inode):
        return None
    try:
        salt, done, begun = (os.pread(descriptor, n, at) for at, n in (_SALT, _DONE, _BEGUN))
        # In the machine's byte order: only processes of one machine share the file.
        return Counts(salt, *struct.unpack("=I", done), *struct.unpack("=I", begun))
    except (OSError, struct.error):
        return None


def _is_of(descriptor: int, inode: tuple[int, int] | None) -> bool:
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == inode
