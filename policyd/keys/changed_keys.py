"""Which keys changed, in as little memory as their table takes: all keys may change at once."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

from policyd.engine.settings import KeyChange
from policyd.keys.settings_by_digest import SettingsByDigest


class ChangedKeys(Collection[KeyChange]):
    """Changes of keys: those that are in force, and the digests that no longer are."""

    def __init__(self) -> None:
        self.in_force = SettingsByDigest()
        self.gone: defaultdict[int, list[bytes]] = defaultdict(list)
        """Digests by their first byte, as SettingsByDigest.take_over() takes them."""

    def add(self, changes: Iterable[KeyChange]) -> None:
        """Add these."""
        for change in changes:
            if change.settings is None:
                self.drop(change.digest)
            else:
                self.in_force[change.digest] = change.settings

    def drop(self, digest: bytes) -> None:
        """Add that this digest is no longer in force."""
        if digest in self.in_force:
            del self.in_force[digest]
        self.gone[digest[0]].append(digest)

    def __iter__(self) -> Iterator[KeyChange]:
        for digests in self.gone.values():
            for digest in digests:
                yield KeyChange(digest, None)
        for digest, settings in self.in_force.pairs():
            yield KeyChange(digest, settings)

    def __len__(self) -> int:
        return len(self.in_force) + sum(map(len, self.gone.values()))

    def __contains__(self, change: object) -> bool:
        return any(one == change for one in self)
