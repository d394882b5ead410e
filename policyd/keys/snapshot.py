"""The settings of all API keys as they last were, in a file that the workers of one server share.

A worker that starts while the database is away decides by it. It holds only what deciding needs:
digests and settings, and no key, name or token.

While the settings stay the same, only the head of the file is renewed, in place: it says when the
database was last followed. When settings change, a worker writes a new file under another name and
renames it, so a reader finds the old one or the new one, whole. One worker writes at a time, and
none replaces a file of newer settings. See snapshot_format.py for the bytes, and snapshot_keeper.py
for when the file is written.
"""

import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from policyd.engine.settings import ServerDefaults
from policyd.errors import SnapshotUnusable
from policyd.keys.settings_by_digest import SettingsByDigest
from policyd.keys.snapshot_format import (
    FUTURE,
    HEAD_SIZE,
    Head,
    pieces,
    read_head,
    read_settings,
    sealed,
)

RENEW = 30.0
"""Seconds after which the head of an unchanged file is renewed, as the database is followed."""
_MODE = 0o600


class Snapshot(NamedTuple):
    """What a file holds."""

    head: Head
    settings: SettingsByDigest
    """Including those of secrets that have ended."""
    defaults: ServerDefaults | None
    """The server's defaults, as administrators applied them. None: none were applied."""


class SnapshotFile:
    """The snapshot at `path`, which the workers of one server share. Every method may block."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def head(self) -> Head | None:
        """The head of the file. None: there is no file, or its head is not whole."""
        try:
            with self._opened(os.O_RDONLY) as descriptor:
                return read_head(descriptor)
        except (OSError, SnapshotUnusable):
            return None

    def read(self, identity: str | None, place: str, max_age: float) -> Snapshot:
        """The snapshot of the database `identity` at `place`, no more than `max_age` seconds old.

        Raises SnapshotUnusable, also where it is of another database or older.
        """
        try:
            with self._opened(os.O_RDONLY) as descriptor:
                _check_mode(descriptor)
                head = read_head(descriptor)
                _check(head, identity, place, max_age)
                return Snapshot(head, *read_settings(descriptor, head))
        except FileNotFoundError:
            raise SnapshotUnusable("there is none") from None
        except OSError as error:
            raise SnapshotUnusable(f"it cannot be read ({error.strerror})") from None

    def is_behind(self, head: Head) -> bool:
        """Whether the file should be written, or its head renewed, to be as `head` says."""
        found = self.head()
        if found is not None and found.is_newer_than(head):
            return False
        return (
            found is None
            or not found.is_of(head)
            # In either direction: a clock that was once ahead must not keep the file as it is.
            or abs(head.followed_at - found.followed_at) > RENEW
        )

    def keep(
        self,
        head: Head,
        settings: SettingsByDigest,
        defaults: ServerDefaults | None = None,
    ) -> None:
        """Write the file, or only renew its head where that is enough. Raises OSError.

        Where another process does so at the same time, nothing is done.
        """
        with self._locked() as is_ours:
            if not is_ours:
                return
            found = self.head()
            if found is not None and found.is_newer_than(head):
                return  # Another worker knows newer settings.
            if found is None or not found.is_of(head):
                self._write(head, settings, defaults)
            else:
                self._renew(found, head.followed_at)

    def _write(
        self, head: Head, settings: SettingsByDigest, defaults: ServerDefaults | None
    ) -> None:
        draft = self._path.with_name(f"{self._path.name}.tmp")
        checksum = hashlib.sha256()
        size = 0
        # A process that was killed may have left its draft.
        draft.unlink(missing_ok=True)
        try:
            with open(draft, "xb", opener=_private) as file:
                file.write(bytes(HEAD_SIZE))
                for piece in pieces(settings, defaults):
                    checksum.update(piece)
                    size += file.write(piece)
                whole = msgspec.structs.replace(
                    head, keys=len(settings), size=size, checksum=checksum.hexdigest()
                )
                file.flush()
                os.pwrite(file.fileno(), sealed(whole), 0)
                os.fsync(file.fileno())
            draft.replace(self._path)
        except OSError:
            with suppress(OSError):
                draft.unlink()  # A full disk needs the room.
            raise
        _sync_folder(self._path.parent)

    def _renew(self, found: Head, followed_at: float) -> None:
        renewed = msgspec.structs.replace(found, followed_at=followed_at)
        with self._opened(os.O_WRONLY) as descriptor:
            os.pwrite(descriptor, sealed(renewed), 0)

    @contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        descriptor = os.open(self._path, flags)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Yields whether this process may write, as no other does."""
        name = self._path.with_name(f"{self._path.name}.lock")
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT, _MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
        finally:
            os.close(descriptor)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, _MODE)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_mode(descriptor: int) -> None:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SnapshotUnusable("others may write to it: delete it, and it is made anew")


def _check(head: Head, identity: str | None, place: str, max_age: float) -> None:
    if not head.is_readable:
        raise SnapshotUnusable("it is of another version of policyd")
    if head.identity != identity or head.place != place:
        raise SnapshotUnusable("it is of another database")
    age = time.time() - head.followed_at
    if age < -FUTURE:
        raise SnapshotUnusable(
            f"it is {-age:.0f} s from the future, so how old it is cannot be known: see to the "
            "machine's clock"
        )
    if age > max_age:
        raise SnapshotUnusable(
            f"the database was last followed {age:.0f} s ago, which is more than "
            f"--snapshot-max-age allows ({max_age:.0f} s)"
        )
