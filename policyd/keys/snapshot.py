"""The settings of all API keys as they last were, in a file: to decide by while the database is
away.

It holds digests and settings, so much as deciding needs, and no key, name or token. The head says
of which database and revision they are, and when the database was last followed; it is renewed in
place while that goes on. The rest is written anew, under another name first, when settings change.

Checksums tell a file that is torn, cut or damaged from a whole one. They are no signature: the file
is its owner's alone, and what may write to it may decide.
"""

import asyncio
import fcntl
import gc
import hashlib
import logging
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from itertools import islice
from pathlib import Path

import msgspec

from policyd.command.threads import StoreThreads
from policyd.engine.model import KeySettings
from policyd.errors import PolicydError
from policyd.keys.key_table import KeyTable

_log = logging.getLogger(__name__)

_Rows = list[tuple[bytes, KeySettings]]
_FORMAT = 1
_FORM = hashlib.sha256(
    repr([(field.name, str(field.type)) for field in fields(KeySettings)]).encode()
).hexdigest()[:16]
"""What a key's settings are made of. A version that knows other ones could read them wrong."""
_HEAD = 512
"""Bytes of the head. A disk writes so many at once, or none of them."""
_PIECE = 500
"""Keys that are written between two turns of other threads."""
_LENGTH = struct.Struct(">I")
_MODE = 0o600
_TRIES = 3
"""How often a head is read that is being renewed."""
_TURN = 0.5
"""Seconds between two looks at whether the file is as the settings are."""
_SHARE = 10
"""A pause lasts at least so many times as long as the writing before it took."""
_RENEW = 30.0
"""Seconds after which the head of an unchanged file says anew that the database is followed."""
_FUTURE = 60.0
"""Seconds that a clock may have gone back since the file was written."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Rows).decode


class SnapshotUnusable(PolicydError):
    """There is no snapshot to decide by. The message says why."""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot is of."""

    identity: str
    """Of the database."""
    place: str
    """A digest of where that is."""
    revision: int
    epoch: str = ""
    """What tells two states of a database at one revision apart, where it says so."""
    followed_at: float
    """When the database was last followed, in seconds of the wall clock."""
    keys: int = 0
    size: int = 0
    checksum: str = ""
    """Of the bytes that follow the head."""
    form: str = _FORM
    format: int = _FORMAT

    def is_newer_than(self, other: "Head") -> bool:
        """Whether the same database was followed later than `other` says. A clock that was wrong
        once, ahead of ours, makes none newer."""
        is_same = (self.identity, self.place) == (other.identity, other.place)
        return is_same and other.followed_at < self.followed_at <= time.time() + _FUTURE

    def is_of(self, other: "Head") -> bool:
        """Whether both are of the same database at the same revision, and in the same form."""
        names = ("identity", "place", "epoch", "revision", "form", "format")
        return all(getattr(self, name) == getattr(other, name) for name in names)


_decode_head = msgspec.json.Decoder(Head).decode


class SnapshotFile:
    """The snapshot at `path`, which the workers of one server share. Everything may block."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def head(self) -> Head | None:
        """The head of the file, None where there is no whole one."""
        try:
            with self._opened(os.O_RDONLY) as descriptor:
                return _read_head(descriptor)
        except (OSError, SnapshotUnusable):
            return None

    def read(
        self, identity: str | None, place: str, max_age: float
    ) -> tuple[Head, dict[bytes, KeySettings]]:
        """The snapshot, if it is of this database, and no more than `max_age` seconds old.

        Raises SnapshotUnusable.
        """
        try:
            with self._opened(os.O_RDONLY) as descriptor:
                _check_mode(descriptor)
                head = _read_head(descriptor)
                _check(head, identity, place, max_age)
                return head, _read_settings(descriptor, head)
        except FileNotFoundError:
            raise SnapshotUnusable("there is none") from None
        except OSError as error:
            raise SnapshotUnusable(f"it cannot be read ({error.strerror})") from None

    def is_behind(self, head: Head) -> bool:
        """Whether the file should be written or renewed, as `head` would have it."""
        found = self.head()
        if found is not None and found.is_newer_than(head):
            return False
        return (
            found is None
            or not found.is_of(head)
            # A clock that was wrong once, ahead of ours, must not keep the file as it is.
            or abs(head.followed_at - found.followed_at) > _RENEW
        )

    def keep(self, head: Head, settings: dict[bytes, KeySettings]) -> None:
        """Write the file, or renew its head where that is all. Raises OSError.

        Another process that does so at the same time is left to it.
        """
        with self._locked() as is_ours:
            if not is_ours:
                return
            found = self.head()
            if found is not None and found.is_newer_than(head):
                return  # Another worker knows newer settings.
            if found is None or not found.is_of(head):
                self._write(head, settings)
            else:
                self._renew(found, head.followed_at)

    def _write(self, head: Head, settings: dict[bytes, KeySettings]) -> None:
        draft = self._path.with_name(f"{self._path.name}.tmp")
        checksum = hashlib.sha256()
        size = 0
        # Left over by a process that was killed, it is begun anew.
        draft.unlink(missing_ok=True)
        try:
            with open(draft, "xb", opener=_private) as file:
                file.write(bytes(_HEAD))
                for piece in _pieces(settings):
                    checksum.update(piece)
                    size += file.write(piece)
                whole = msgspec.structs.replace(
                    head, keys=len(settings), size=size, checksum=checksum.hexdigest()
                )
                file.flush()
                os.pwrite(file.fileno(), _sealed(whole), 0)
                os.fsync(file.fileno())
            draft.replace(self._path)
        except OSError:
            with suppress(OSError):
                draft.unlink()  # A full disk wants the room.
            raise
        _sync_folder(self._path.parent)

    def _renew(self, found: Head, followed_at: float) -> None:
        renewed = msgspec.structs.replace(found, followed_at=followed_at)
        with self._opened(os.O_WRONLY) as descriptor:
            os.pwrite(descriptor, _sealed(renewed), 0)

    @contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        descriptor = os.open(self._path, flags)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Whether this process is the one that writes."""
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


class SnapshotKeeper:
    """Keeps `file` as the settings in `keys` are. `identity` tells of which database they are.

    Where `place` is. Belongs to one event loop; what blocks is done in threads.
    """

    def __init__(
        self, file: SnapshotFile, keys: KeyTable, identity: Callable[[], str], place: str
    ) -> None:
        self._file = file
        self._keys = keys
        self._identity = identity
        self._place = place
        self._threads = StoreThreads("the snapshot", None)
        self._kept: tuple[int, str] | None = None
        """The revision that the file was last seen to have, and its epoch."""
        self._looked_at = float("-inf")
        self._has_failed = False

    async def keep(self) -> None:
        """Keep the file, until cancelled."""
        while True:
            took = await self._turn() if self._is_due() else 0.0
            await asyncio.sleep(max(_TURN, _SHARE * took))

    def _is_due(self) -> bool:
        return self._keys.is_followed and (
            (self._keys.revision, self._keys.epoch) != self._kept
            or time.monotonic() - self._looked_at > _RENEW / 2
        )

    async def _turn(self) -> float:
        """Bring the file up to date. Returns how many seconds that took."""
        began = time.monotonic()
        try:
            await self._bring_up_to_date()
        except OSError as error:
            if not self._has_failed:
                _log.error(
                    "the snapshot of the settings cannot be written (%s), so that a worker that "
                    "starts while the database is away decides by older ones, or not at all",
                    error.strerror,
                )
            self._has_failed = True
        else:
            if self._has_failed:
                _log.info("the snapshot of the settings is written again")
            self._has_failed = False
        return time.monotonic() - began

    async def _bring_up_to_date(self) -> None:
        head = self._head()
        if await self._threads.run(self._file.is_behind, head):
            # Both of one moment: nothing changes them until the next await.
            head = self._head()
            settings = self._keys.copy()
            await self._threads.run(self._file.keep, head, settings)
        self._kept, self._looked_at = (head.revision, head.epoch), time.monotonic()

    def _head(self) -> Head:
        return Head(
            identity=self._identity(),
            place=self._place,
            revision=self._keys.revision,
            epoch=self._keys.epoch,
            followed_at=time.time() - self._keys.staleness(),
        )


def place_of(url: str) -> str:
    """A digest of where a database is: its URL without the user and the password."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    where = scheme.partition("+")[0] + "://" + authority.rpartition("@")[2] + slash + path
    return hashlib.sha256(where.encode()).hexdigest()[:16]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, _MODE)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pieces(settings: dict[bytes, KeySettings]) -> Iterator[bytes]:
    rows = iter(settings.items())
    while some := list(islice(rows, _PIECE)):
        content = _encode(some)
        yield _LENGTH.pack(len(content)) + content
        # Decisions come first: what waits for the interpreter has it now.
        time.sleep(0)


def _sealed(head: Head) -> bytes:
    content = msgspec.json.encode(head)
    sealed = content + b"\n" + hashlib.sha256(content).hexdigest().encode() + b"\n"
    if len(sealed) > _HEAD:
        raise ValueError("a snapshot's head is too long")
    return sealed.ljust(_HEAD)


def _read_head(descriptor: int) -> Head:
    for _ in range(_TRIES):
        content, _, rest = os.pread(descriptor, _HEAD, 0).partition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() == rest.strip():
            try:
                return _decode_head(content)
            except msgspec.MsgspecError:
                raise SnapshotUnusable("it is of another version of policyd") from None
        time.sleep(0.01)
    raise SnapshotUnusable("it is damaged")


def _check_mode(descriptor: int) -> None:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SnapshotUnusable("others may write to it: delete it, and it is made anew")


def _check(head: Head, identity: str | None, place: str, max_age: float) -> None:
    if (head.format, head.form) != (_FORMAT, _FORM):
        raise SnapshotUnusable("it is of another version of policyd")
    if head.identity != identity or head.place != place:
        raise SnapshotUnusable("it is of another database")
    age = time.time() - head.followed_at
    if age < -_FUTURE:
        raise SnapshotUnusable(
            f"it is {-age:.0f} s from the future, so how old it is cannot be known: see to the "
            "machine's clock"
        )
    if age > max_age:
        raise SnapshotUnusable(
            f"the database was last followed {age:.0f} s ago, which is more than "
            f"--snapshot-max-age allows ({max_age:.0f} s)"
        )


def _read_settings(descriptor: int, head: Head) -> dict[bytes, KeySettings]:
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(_HEAD)
        content = file.read(head.size + 1)
    if len(content) != head.size or hashlib.sha256(content).hexdigest() != head.checksum:
        raise SnapshotUnusable("it is damaged")
    settings: dict[bytes, KeySettings] = {}
    try:
        with _no_collection():
            for piece in _cut(content):
                settings.update(_decode(piece))
    except (msgspec.MsgspecError, struct.error):
        raise SnapshotUnusable("it is of another version of policyd") from None
    if len(settings) != head.keys:
        raise SnapshotUnusable("it is damaged")
    return settings


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without the garbage collector, which would look through millions of new values again and
    again, and find none to collect."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _cut(content: bytes) -> Iterator[memoryview]:
    view, start = memoryview(content), 0
    while start < len(view):
        (length,) = _LENGTH.unpack_from(view, start)
        start += _LENGTH.size
        yield view[start : start + length]
        start += length
