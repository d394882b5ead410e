"""The gateways that follow a worker's settings to decide by themselves."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from policyd.errors import TooManyGateways
from policyd.keys import key_table
from policyd.services.local_messages import Greeting, State

MOST = 1000
"""Gateway processes that may follow one worker."""


@dataclass(slots=True)
class Follower:
    """A gateway process that follows the settings."""

    id: str
    host: str
    version: str
    sent: State | None
    """The settings that it has, or will have once it has read all that it was sent. None: none."""
    sent_at: float
    """When `sent` was noted, by key_table.seconds()."""
    in_force: State | None
    """The settings that it decides by, as it reported. None: none yet."""

    def has_been_sent(self, state: State) -> None:
        """Note that all up to this state was sent."""
        self.sent, self.sent_at = state, key_table.seconds()


class Followers:
    """The followers of one worker. Belongs to one event loop."""

    def __init__(self) -> None:
        self._following: list[Follower] = []
        self._left: set[str] = set()
        self.news = asyncio.Event()
        """Set when one joins, leaves, or decides by other settings. Its reader clears it."""

    def __len__(self) -> int:
        return len(self._following)

    @contextmanager
    def joined(self, greeting: Greeting, has: State | None) -> Iterator[Follower]:
        """Count a gateway among the followers meanwhile. Raises TooManyGateways."""
        if len(self._following) >= MOST:
            raise TooManyGateways(
                f"{MOST} gateway processes follow this worker of policyd already: ask another, or "
                "run more (--workers)"
            )
        follower = Follower(
            *(greeting.id, greeting.host, greeting.version, has, key_table.seconds(), has)
        )
        self._following.append(follower)
        self._left.discard(follower.id)
        self.news.set()
        try:
            yield follower
        finally:
            self._following.remove(follower)
            if all(one.id != follower.id for one in self._following):
                self._left.add(follower.id)
            self.news.set()

    def tell(self, follower: Follower, in_force: State | None) -> None:
        """Note which settings a follower decides by, as it reported."""
        if follower.in_force != in_force:
            follower.in_force = in_force
            self.news.set()

    def present(self) -> list[Follower]:
        """Those with settings in force, each process once."""
        found = {one.id: one for one in self._following if one.in_force is not None}
        return list(found.values())

    def left(self) -> set[str]:
        """The IDs of those that have left since forget()."""
        return set(self._left)

    def forget(self, left: set[str]) -> None:
        """Forget that these have left, as the store knows it now."""
        self._left -= left
