"""The settings of many keys by the digest of their secrets, small in memory, and in parts.

A worker decides on its event loop, so no single step of the loop may go through all keys: not a
copy, not a change of many keys, not the freeing of a table that was replaced, not a run of the
garbage collector.

- An entry is bytes: the number of the settings, which keys with equal ones share; when the secret
  ends, if it does; and the key's ID. The garbage collector does not look into bytes, so a
  collection takes as long with a million keys as with none; and a key takes 180 bytes.
- Entries are divided into PARTS parts by the first byte of the digest, which spreads them evenly.
  Each part is a dict of its own, and what goes through all keys can pause between two of them.
- A copy shares its parts with the original, until one of the two changes a part, which it copies
  first. So a copy costs next to nothing, and many changes can be made in a copy, over many turns,
  that then takes the original's place in one turn.
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
"""How many of the entries that were looked up last are kept as KeySettings."""
_SPARE = 4096
"""Settings that may be kept, at least, though no key has them any more: see is_wasteful."""

Kind = tuple[Settings, tuple[str, ...]]
"""What keys share: their policies' settings, and the places that they accept."""


class _Kinds:
    """The different settings of a table and its copies. A number always means the same ones."""

    def __init__(self) -> None:
        self._kinds: list[Kind] = []
        self._numbers: dict[Kind, int] = {}
        self.in_use = 0
        """How many there were when each of them was last known to be some key's."""
        self.read = lru_cache(_READ)(self.settings)

    def __len__(self) -> int:
        return len(self._kinds)

    def number(self, kind: Kind) -> int:
        found = self._numbers.get(kind)
        if found is None:
            KeySettings("", *kind)  # Checks the settings, once for all keys that share them.
            found = len(self._kinds)
            self._kinds.append(kind)
            self._numbers[kind] = found
        return found

    def kind(self, entry: bytes) -> Kind:
        number: int = _NUMBER.unpack_from(entry)[0]
        return self._kinds[number & ~_ENDS]

    def renumbered(self, entry: bytes, others: "_Kinds") -> bytes:
        """`entry`, which has a number of `others`, with the number that means the same here."""
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
    """The settings by the 32 bytes of the digest, in no order. Threads may share a table that none
    of them changes."""

    def __init__(self, settings: Mapping[bytes, KeySettings] | None = None) -> None:
        self._parts: list[dict[bytes, bytes]] = [{} for _ in range(PARTS)]
        self._own = bytearray(b"\1" * PARTS)
        """1 for each part that this table shares with no other."""
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
        """The same as items(), for a caller that goes through all keys: none of them is cached."""
        for part in self._parts:
            for digest, entry in part.items():
                yield digest, self._kinds.settings(entry)

    def number(self, policies: Settings, accept: tuple[str, ...]) -> int:
        """The number of these settings, for put()."""
        return self._kinds.number((policies, accept))

    def put(self, digest: bytes, key_id: str, number: int, until: float | None) -> None:
        """Put in a key that has the settings of this number, and whose secret ends at `until`."""
        if until is None:
            entry = _NUMBER.pack(number) + key_id.encode()
        else:
            entry = _NUMBER.pack(number | _ENDS) + _END.pack(until) + key_id.encode()
        self._changing(digest[0])[digest] = entry

    def copy(self) -> "SettingsByDigest":
        """The same settings. Later changes of either table do not change the other."""
        made = SettingsByDigest.__new__(SettingsByDigest)
        made._parts = self._parts.copy()
        self._own = bytearray(PARTS)
        made._own = bytearray(PARTS)
        made._kinds = self._kinds
        return made

    def take_over(
        self, changed: "SettingsByDigest", gone: Mapping[int, Iterable[bytes]]
    ) -> Iterator[None]:
        """Take the keys in `changed`, and drop the digests in `gone`, which are by part. This does
        one part at a time, for a caller that pauses between two."""
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
        """Free all memory that `kept` does not share, one part at a time, for a caller that pauses
        between two. This table is of no use after that."""
        for number, part in enumerate(kept._parts):
            if self._parts[number] is not part:
                self._parts[number] = part
                yield

    @property
    def is_wasteful(self) -> bool:
        """Whether most of the different settings may belong to no key any more. Then make a new
        table: settings that change all the time would fill the memory."""
        return len(self._kinds) > 2 * self._kinds.in_use + _SPARE

    def settle(self) -> None:
        """Note that each of the different settings is some key's, as the table is new."""
        self._kinds.in_use = len(self._kinds)

    def _changing(self, number: int) -> dict[bytes, bytes]:
        if not self._own[number]:
            self._parts[number] = self._parts[number].copy()
            self._own[number] = 1
        return self._parts[number]
