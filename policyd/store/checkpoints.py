"""Tells SQLite's own writes to a database's file from those of a program that copies into it.

In WAL mode only checkpoints write to the file itself, and they count what they do in FILE-shm. So
where it was written to while those counts stayed, it was not SQLite: a backup was copied into it,
perhaps, and what is in FILE-wal does not fit it any more.

The counts are read by SQLite's own descriptor. Another one would not do: as it is closed, the
process would lose the locks that SQLite has on that file.
"""

import os
import struct
from contextlib import suppress
from typing import NamedTuple

_SALT = (32, 8)
_DONE = (96, 4)
_BEGUN = (128, 4)
"""Where and how long they are in FILE-shm: https://www.sqlite.org/walformat.html."""
_DESCRIPTORS = "/proc/self/fd"


class Written(NamedTuple):
    """When a file was last written to, and how large it was then."""

    at_ns: int
    size: int


class Counts(NamedTuple):
    """What FILE-shm says of checkpoints."""

    salt: bytes
    done: int
    begun: int

    @property
    def is_under_way(self) -> bool:
        """Whether a checkpoint writes now, or was cut off while it did."""
        return self.done != self.begun


class Checkpoints:
    """Follows one file, as long as SQLite has it open. Belongs to one thread at a time."""

    def __init__(self) -> None:
        self._written: Written | None = None
        self._counts: Counts | None = None

    def begin(self, written: Written, counts: Counts | None) -> None:
        """This is how SQLite has just opened it."""
        self._written, self._counts = written, counts

    def explain(self, before: Counts | None, written: Written, after: Counts | None) -> bool:
        """Whether checkpoints can have written the file as it is now. The counts are from before
        and after it was looked at; None: they cannot be read here, and everything is explained."""
        known, self._written = self._written, written
        counts, self._counts = self._counts, after
        if written == known or counts is None or before is None or after is None:
            return True
        is_same = counts == before == after and not after.is_under_way
        if is_same:
            # It stays unexplained, however often it is looked at.
            self._written, self._counts = known, counts
        return not is_same


def find_descriptor(inode: tuple[int, int] | None) -> int | None:
    """A descriptor that this process has of the file; None: there is none, or no way to tell."""
    with suppress(OSError):
        for name in os.listdir(_DESCRIPTORS):
            if _is_of(int(name), inode):
                return int(name)
    return None


def counts(descriptor: int | None, inode: tuple[int, int] | None) -> Counts | None:
    """What the file says by this descriptor, if that is still the file's."""
    if descriptor is None or not _is_of(descriptor, inode):
        return None
    try:
        salt, done, begun = (os.pread(descriptor, n, at) for at, n in (_SALT, _DONE, _BEGUN))
        # As the machine has them: only processes of this one share the file.
        return Counts(salt, *struct.unpack("=I", done), *struct.unpack("=I", begun))
    except (OSError, struct.error):
        return None


def _is_of(descriptor: int, inode: tuple[int, int] | None) -> bool:
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == inode
