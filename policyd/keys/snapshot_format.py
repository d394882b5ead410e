"""The form of a snapshot's file: a head of 512 bytes, then the settings.

    head      JSON, a line feed, the JSON's SHA-256 in hexadecimal, a line feed, then spaces
    settings  pieces, each with its length in 4 bytes, then MessagePack. The first one has the
              server's defaults, if any were applied; the others up to 500 keys: the different
              settings, and each key's digest and ID with the number of its settings, and when the
              digest ends. The previous format lacks the first piece and the ends

The head says of which database and revision the settings are, in which form they are written, and
when the database was last followed; it holds the length and the SHA-256 of all pieces together.
A disk writes the head in one go, so it can be renewed in place while the settings stay.

The checksums tell a file that is torn, cut or damaged from a whole one. They are no signature: only
the file's owner may write to it, and whatever program can write to it decides.
"""

import hashlib
import os
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import reduce
from itertools import islice
from typing import BinaryIO

import msgspec

from policyd.engine.settings import KeySettings, ServerDefaults, Setting, Settings
from policyd.errors import SnapshotUnusable
from policyd.keys.settings_by_digest import SettingsByDigest

HEAD_SIZE = 512
"""Bytes of the head. A disk writes that many at once, or none of them."""
PIECE = 500
"""Keys of one piece. Between two pieces other threads have a turn."""
_PAUSE = 0.0001
"""Seconds between two pieces."""
_BLOCK = 1 << 20
"""Bytes that are read at once to see whether a file is whole."""
FUTURE = 60.0
"""Seconds that a clock may have gone back since the file was written."""
_FORMAT = 3
_FIELDS = [(field.name, field.type) for field in fields(KeySettings)]
_FIELDS += Setting.__annotations__.items()
_FIELDS += [(field.name, field.type) for field in fields(ServerDefaults)]
# The modules that define the types are no part of the form.
_MODULES = ("policyd.engine.settings.", "policyd.engine.states.")
_KINDS = [
    (name, reduce(lambda text, one: text.replace(one, ""), _MODULES, str(kind)))
    for name, kind in _FIELDS
]
_FORM = hashlib.sha256(repr(_KINDS).encode()).hexdigest()[:16]
"""Which fields the settings of a key have. A version with other fields could read them wrong."""
_OLD = (2, "7cc5acb6cb733617")
"""The previous format and form, which are read, too: their digests have no end."""
_LENGTH = struct.Struct(">I")
_TRIES = 3
"""How often reading a head is tried, as another process may be renewing it."""
_Shared = tuple[Settings, tuple[str, ...]]
"""What keys share: their policies' settings, and the places that they accept."""
_Key = tuple[bytes, str, int, float | None]
_Piece = tuple[list[_Shared], list[_Key]]
_OldPiece = tuple[list[_Shared], list[tuple[bytes, str, int]]]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Piece).decode
_decode_old = msgspec.msgpack.Decoder(_OldPiece).decode
_decode_defaults = msgspec.msgpack.Decoder(ServerDefaults | None).decode


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What the settings of a snapshot are: of which database, at which revision, and from when."""

    identity: str
    """The database's identity."""
    place: str
    """A digest of the database's address: see snapshot_keeper.place_of()."""
    revision: int
    epoch: str = ""
    """Distinguishes two states of a database at one revision. "": the database has no epochs."""
    followed_at: float
    """When the database was last followed, in seconds of the wall clock."""
    keys: int = 0
    size: int = 0
    checksum: str = ""
    """The SHA-256 of the bytes after the head."""
    form: str = _FORM
    format: int = _FORMAT

    @property
    def is_readable(self) -> bool:
        """Whether this version reads the form that the settings are written in."""
        return (self.format, self.form) in ((_FORMAT, _FORM), _OLD)

    def is_newer_than(self, other: "Head") -> bool:
        """Whether the same database was followed later than `other` says. A time in the future, by
        a clock that was wrong, does not count as newer."""
        is_same = (self.identity, self.place) == (other.identity, other.place)
        return is_same and other.followed_at < self.followed_at <= time.time() + FUTURE

    def is_of(self, other: "Head") -> bool:
        """Whether both are of the same database, revision and form."""
        names = ("identity", "place", "epoch", "revision", "form", "format")
        return all(getattr(self, name) == getattr(other, name) for name in names)


_decode_head = msgspec.json.Decoder(Head).decode


def pieces(settings: SettingsByDigest, defaults: ServerDefaults | None) -> Iterator[bytes]:
    """The bytes that follow the head."""
    yield _sized(_encode(defaults))
    rows = settings.pairs()
    while some := list(islice(rows, PIECE)):
        yield _sized(_encode(_piece(some)))
        # Decisions come first: without a pause this thread would have the interpreter again before
        # those that wait for it.
        time.sleep(_PAUSE)


def _sized(content: bytes) -> bytes:
    return _LENGTH.pack(len(content)) + content


def _piece(rows: Iterable[tuple[bytes, KeySettings]]) -> _Piece:
    numbers: dict[_Shared, int] = {}
    keys = [
        (
            digest,
            one.key_id,
            numbers.setdefault((one.policies, one.accept), len(numbers)),
            one.until,
        )
        for digest, one in rows
    ]
    return list(numbers), keys


def sealed(head: Head) -> bytes:
    """The HEAD_SIZE bytes of a head, with its checksum."""
    content = msgspec.json.encode(head)
    sealed = content + b"\n" + hashlib.sha256(content).hexdigest().encode() + b"\n"
    if len(sealed) > HEAD_SIZE:
        raise ValueError("a snapshot's head is too long")
    return sealed.ljust(HEAD_SIZE)


def read_head(descriptor: int) -> Head:
    """The head of an open file. Raises SnapshotUnusable."""
    for _ in range(_TRIES):
        content, _, rest = os.pread(descriptor, HEAD_SIZE, 0).partition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() == rest.strip():
            try:
                return _decode_head(content)
            except msgspec.MsgspecError:
                raise SnapshotUnusable("it is of another version of policyd") from None
        time.sleep(0.01)
    raise SnapshotUnusable("it is damaged")


def read_settings(descriptor: int, head: Head) -> tuple[SettingsByDigest, ServerDefaults | None]:
    """What follows the head in an open file. Raises SnapshotUnusable."""
    with open(descriptor, "rb", closefd=False) as file:
        _check_whole(file, head)
        file.seek(HEAD_SIZE)
        found = _cut(file)
        defaults = None
        try:
            if head.format != _FORMAT:
                settings = _settings(map(_read_old, found))
            else:
                defaults = _decode_defaults(next(found))
                settings = _settings(map(_decode, found))
        except (msgspec.MsgspecError, struct.error, IndexError, ValueError, StopIteration):
            raise SnapshotUnusable("it is of another version of policyd") from None
    if len(settings) != head.keys:
        raise SnapshotUnusable("it is damaged")
    return settings, defaults


def _check_whole(file: BinaryIO, head: Head) -> None:
    file.seek(HEAD_SIZE)
    checksum = hashlib.sha256()
    size = 0
    while some := file.read(_BLOCK):
        checksum.update(some)
        size += len(some)
    if size != head.size or checksum.hexdigest() != head.checksum:
        raise SnapshotUnusable("it is damaged")


def _settings(found: Iterable[_Piece]) -> SettingsByDigest:
    settings = SettingsByDigest()
    for different, keys in found:
        numbers = [settings.number(*one) for one in different]
        for digest, key_id, number, until in keys:
            settings.put(digest, key_id, numbers[number], until)
        time.sleep(_PAUSE)
    settings.settle()
    return settings


def _read_old(piece: bytes) -> _Piece:
    different, keys = _decode_old(piece)
    return different, [(*key, None) for key in keys]


def _cut(file: BinaryIO) -> Iterator[bytes]:
    while head := file.read(_LENGTH.size):
        (length,) = _LENGTH.unpack(head)
        yield file.read(length)
