"""The settings of many keys by the digest of their secrets, small in memory, and in parts.

A worker decides between two turns of its event loop, so nothing that goes through all keys may be
one step of it: not a copy, not a change of many keys, not the end of a table that another has
replaced, not a look of the garbage collector.

- An entry is bytes: the number of the settings, which equal keys share, when the secret ends if it
  does, and the key's ID. The garbage collector goes through no bytes, so a collection takes as long
  with a million keys as with none; and a key takes 180 bytes.
- Entries stand in PARTS parts by the first byte of the digest, which spreads them evenly. Each part
  is a dict of its own, and what goes through all keys can pause between two of them.
- A copy shares its parts with the original, until one of both changes a part: then it copies that
  one first. So a copy costs next to nothing, and many changes can be made in a copy, over many
  turns, that then takes the original's place in one.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from functools import lru_cache

from policyd.engine.settings import KeySettings, Settings

PARTS = 256
_NUMBER = struct.Struct("<I")
_END = struct.Struct("<d")
_ENDS = 1 << 31
"""Set in the number of an entry that has an end."""
_READ = 4096
"""Entries that are kept as KeySettings, as they were looked up last."""
_SPARE = 4096
"""Settings that are kept though no key has them any more, at least: see is_wasteful."""

Kind = tuple[Settings, tuple[str, ...]]
"""What keys share: their policies' settings, and the places that they accept."""


class _Kinds:
    """The different settings of a table and its copies. A number stands for the same for ever."""

    def __init__(self) -> None:
        self._kinds: list[Kind] = []
        self._numbers: dict[Kind, int] = {}
        self.in_use = 0
        """How many there were when all of them were some key's."""
        self.read = lru_cache(_READ)(self.settings)

    def __len__(self) -> int:
        return len(self._kinds)

    def number(self, kind: Kind) -> int:
        found = self._numbers.get(kind)
        if found is None:
            KeySettings("", *kind)  # It raises what it raises for a key: here, once for all.
            found = len(self._kinds)
            self._kinds.append(kind)
            self._numbers[kind] = found
        return found

    def kind(self, entry: bytes) -> Kind:
        number: int = _NUMBER.unpack_from(entry)[0]
        return self._kinds[number & ~_ENDS]

    def renumbered(self, entry: bytes, others: "_Kinds") -> bytes:
        """The entry here that means what `entry` means by the numbers of `others`."""
        ends = _NUMBER.unpack_from(entry)[0] & _ENDS
        return _NUMBER.pack(self.number(others.kind(entry)) | ends) + entry[_NUMBER.size :]

    def settings(self, entry: bytes) -> KeySettings:
        policies, accept = self.kind(entry)
        start, until = _NUMBER.size, None
        if _NUMBER.unpack_from(entry)[0] & _ENDS:
            (until,) = _END.unpack_from(entry, start)
            start += _END.size
        return KeySettings(entry[start:].decode(), policies, accept, until)


class SettingsByDigest(MutableMapping[bytes, KeySettings]):
    """The settings by the 32 bytes of the digest, in no order. Threads may share one that none of
    them changes."""

    def __init__(self, settings: Mapping[bytes, KeySettings] | None = None) -> None:
        self._parts: list[dict[bytes, bytes]] = [{} for _ in range(PARTS)]
        self._own = bytearray(b"\1" * PARTS)
        """Which parts no copy has."""
        self._kinds = _Kinds()
        if settings:
            self.update(settings)

    def __getitem__(self, digest: bytes) -> KeySettings:
        return self._kinds.read(self._parts[digest[0]][digest])

    def get(self, digest: bytes, default: KeySettings | None = None) -> KeySettings | None:  # type: ignore[override]  # Mapping has two forms of it; one will do
        """The settings of the key with this digest."""
        entry = self._parts[digest[0]].get(digest)
        return default if entry is None else self._kinds.read(entry)

    def __setitem__(self, digest: bytes, settings: KeySettings) -> None:
        kind = self.number(settings.policies, settings.accept)
        self.put(digest, settings.key_id, kind, settings.until)

    def __delitem__(self, digest: bytes) -> None:
        del self._changing(digest[0])[digest]

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, bytes) and digest in self._parts[digest[0]]

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            yield from part

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def pairs(self) -> Iterator[tuple[bytes, KeySettings]]:
        """The same as items(), for a caller that goes through all keys: none of them is kept."""
        for part in self._parts:
            for digest, entry in part.items():
                yield digest, self._kinds.settings(entry)

    def number(self, policies: Settings, accept: tuple[str, ...]) -> int:
        """The number of these settings, for put()."""
        return self._kinds.number((policies, accept))

    def put(self, digest: bytes, key_id: str, number: int, until: float | None) -> None:
        """Put in a key that has the settings of this number."""
        if until is None:
            entry = _NUMBER.pack(number) + key_id.encode()
        else:
            entry = _NUMBER.pack(number | _ENDS) + _END.pack(until) + key_id.encode()
        self._changing(digest[0])[digest] = entry

    def copy(self) -> "SettingsByDigest":
        """The same settings. What changes here does not change there, nor the other way."""
        made = SettingsByDigest.__new__(SettingsByDigest)
        made._parts = self._parts.copy()
        self._own = bytearray(PARTS)
        made._own = bytearray(PARTS)
        made._kinds = self._kinds
        return made

    def take_over(
        self, changed: "SettingsByDigest", gone: Mapping[int, Iterable[bytes]]
    ) -> Iterator[None]:
        """Take these keys, and drop the digests in `gone`, by their parts. A part at a time, for
        a caller that pauses between two."""
        for number, changes in enumerate(changed._parts):
            dropped = gone.get(number, ())
            if not changes and not dropped:
                continue
            part = self._changing(number)
            for digest in dropped:
                part.pop(digest, None)
            for digest, entry in changes.items():
                part[digest] = self._kinds.renumbered(entry, changed._kinds)
            yield

    def let_go(self, kept: "SettingsByDigest") -> Iterator[None]:
        """Give all memory back that `kept` does not share, for a caller that pauses: a part at a
        time. This table is of no use after that."""
        for number, part in enumerate(kept._parts):
            if self._parts[number] is not part:
                self._parts[number] = part
                yield

    @property
    def is_wasteful(self) -> bool:
        """Whether most of the different settings may be of no key any more: settings that change
        all the time would fill the memory. Then make the table anew."""
        return len(self._kinds) > 2 * self._kinds.in_use + _SPARE

    def settle(self) -> None:
        """Note that each of the different settings is some key's, as the table was made anew."""
        self._kinds.in_use = len(self._kinds)

    def _changing(self, number: int) -> dict[bytes, bytes]:
        if not self._own[number]:
            self._parts[number] = self._parts[number].copy()
            self._own[number] = 1
        return self._parts[number]
