"""The settings in memory, made ready for followers: recent changes, and snapshots.

A follower whose state the recent changes reach back to gets those changes. Any other gets a
snapshot, which is made from the table in memory. So no follower costs the database anything,
however many come back at once after policyd was restarted.

Each message is made when it is first sent, between two turns of the event loop, and kept for other
followers: all that are sent the same thing are sent the same bytes.
"""

import asyncio
import weakref
from collections.abc import Callable, Iterator
from itertools import chain

from policyd.engine.settings import KeyChanges, ServerDefaults
from policyd.keys import key_table
from policyd.keys.key_table import KeyTable
from policyd.services import local_messages
from policyd.services.local_messages import State

_RECENT = 10_000
"""Keys of recent changes that are kept. The newest change is kept whatever its size."""
_SOON = 5.0
"""Seconds without a look at the database after which it counts as away."""


class Part:
    """Something to send: a change, or a snapshot. It leads to `state`."""

    def __init__(
        self, state: State, messages: Iterator[bytes], *, is_snapshot: bool = False
    ) -> None:
        self.state = state
        self.is_snapshot = is_snapshot
        self._messages = messages
        self._made: list[bytes] = []

    def message(self, number: int) -> bytes | None:
        """The message of this number, from 0. None: it was the last. Ask for them in order."""
        if number == len(self._made):
            made = next(self._messages, None)
            if made is None:
                return None
            self._made.append(made)
        return self._made[number]


def _as_applied(defaults: ServerDefaults | None) -> ServerDefaults | None:
    return defaults


class KeyFeed:
    """What the followers of `table` are sent. `identity` returns that of its database, `defaults`
    the defaults in force here, given those that administrators applied. Belongs to one event loop.
    """

    def __init__(
        self,
        table: KeyTable,
        identity: Callable[[], str],
        defaults: Callable[[ServerDefaults | None], ServerDefaults | None] = _as_applied,
    ) -> None:
        self._defaults = defaults
        self._table = table
        self._identity = identity
        self._recent: dict[State, tuple[Part, int]] = {}
        """Each change and its size, by the state before it; oldest first."""
        self._kept = 0
        self._newest: State | None = None
        """The state that the recent changes lead to."""
        self._snapshots: weakref.WeakValueDictionary[bool, Part] = weakref.WeakValueDictionary()
        self._news = asyncio.Event()
        table.on_apply = self._applied

    @property
    def database(self) -> str:
        """The identity of the database that the settings are of. "": no settings are known yet."""
        return self._identity() if self._table.is_known else ""

    @property
    def state(self) -> State:
        """The settings that are in force here."""
        return State(self._table.revision, self._table.epoch)

    @property
    def staleness(self) -> float:
        """Seconds since the source last gave or confirmed the settings."""
        return self._table.staleness()

    @property
    def news(self) -> asyncio.Event:
        """Set once there is something new to send."""
        return self._news

    def wake(self) -> None:
        """Have every follower look for something to send."""
        self._news.set()
        self._news = asyncio.Event()

    def next_part(
        self,
        has: State | None,
        told_at: float,
        in_force: State | None = None,
        *,
        may_be_snapshot: bool = True,
    ) -> Part | None:
        """What to send to a follower that was sent the settings `has`, or reported that it has
        them, at `told_at`, by key_table.seconds(). It decides by those `in_force`, which differ
        while it holds back what it was sent. None: nothing, for now."""
        if not self._table.is_known or has == self.state:
            return None
        if has is None:
            return self._snapshot(put_back=False) if may_be_snapshot else None
        if has in self._recent:
            return self._recent[has][0]
        revision = has.revision if in_force is None else max(has.revision, in_force.revision)
        if not may_be_snapshot or not self._is_newer(revision, told_at):
            return None
        return self._snapshot(put_back=revision >= self.state.revision)

    def end_of(self, has: State) -> bytes | None:
        """What to send first to a follower that has these settings, if they are in force here: the
        defaults. Those that come from this policyd's own settings have no revision, and may differ
        from those of the policyd that was followed before."""
        return self._end() if self._table.is_known and has == self.state else None

    def _end(self) -> bytes:
        defaults = self._defaults(self._table.defaults)
        return local_messages.complete(self.database, self.state, defaults)

    def _is_newer(self, revision: int, told_at: float) -> bool:
        """Whether the settings here are surely newer than those of this revision, which this table
        does not know.

        A table that lags behind the database must not put older settings in the place of newer
        ones. Once it has looked at the database after the follower reported what it has, and still
        does not know that, the database does not have it, or no longer has it.
        """
        if key_table.seconds() - self.staleness > told_at:
            return True
        # The database is away. A lower revision is most likely of the same history, and older.
        return revision < self.state.revision and self.staleness > _SOON

    def _snapshot(self, *, put_back: bool) -> Part:
        made = self._snapshots.get(put_back)
        # A snapshot that is being sent will do for other followers, too, with the changes after it.
        # It may be of a lower revision than a follower's own: the follower then holds it back until
        # the changes have passed that, unless the database was put back.
        if made is None or not self._reaches(made.state):
            pairs = self._table.copy().pairs()
            messages = chain(local_messages.snapshot(pairs, put_back=put_back), [self._end()])
            made = self._snapshots[put_back] = Part(self.state, messages, is_snapshot=True)
        return made

    def _reaches(self, state: State) -> bool:
        return state == self.state or state in self._recent

    def _applied(self, changes: KeyChanges) -> None:
        """Note changes that are about to come into force in the table."""
        before, after = self.state, State(changes.revision, changes.epoch)
        if before == after and self._table.is_known:
            return
        if changes.everything or before != self._newest:
            self._recent.clear()
            self._kept = 0
        if not changes.everything:
            self._keep(before, after, changes)
        self._newest = after
        self.wake()

    def _keep(self, before: State, after: State, changes: KeyChanges) -> None:
        defaults = self._defaults(changes.defaults)
        end = local_messages.complete(self.database, after, defaults)
        change = Part(after, chain(local_messages.changes(changes.changed), [end]))
        size = 1 + len(changes.changed)  # A change of the defaults has no keys.
        self._recent[before] = (change, size)
        self._kept += size
        while self._kept > _RECENT and len(self._recent) > 1:
            self._kept -= self._recent.pop(next(iter(self._recent)))[1]
