"""One stream of settings as its follower reads it: what comes into force, and how old it is.

The law of ages. Settings are as old as the time since the last heartbeat that counts, by a clock
that goes on while the machine is suspended. How old policyd's own settings were then is policyd's
affair, as for gateways that ask it: an outage of its database changes no decision. A heartbeat
counts only

- where it names the very revision and epoch that are in force here. So neither a policyd that knows
  less, nor one whose changes do not come through, makes settings fresh that have changed since.
- as far as it was not late: one that took longer than the quickest of its stream makes settings
  only as fresh as they were when it was sent. A stream that is later than SILENCE is given up.
- where it is not an old one: since the heartbeat that counted last, as much time has passed at
  policyd as here, or this machine's clock agrees with its time.

The law of order. Settings never go back by themselves. A snapshot is collected aside, and what was
in force stays so until it is complete. It is then taken where its revision is higher, or policyd
has seen that the database was put back. Otherwise this policyd lags behind another that was
followed before: its snapshot is kept aside with the changes that follow, until they have come
beyond what is in force here.
"""

import logging
import math
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

from policyd.client.key_pieces import Pieces, defaults_of
from policyd.command.worker_clock import WorkerClock
from policyd.engine.settings import KeyChanges
from policyd.keys import key_table
from policyd.keys.changed_keys import ChangedKeys
from policyd.keys.key_table import KeyTable
from policyd.v1 import local_pb2 as pb

_log = logging.getLogger(__name__)

SILENCE = 5.0
"""Seconds without a heartbeat after which a stream is given up, or by which one may be late."""
_SKEW = 5.0
"""Seconds by which policyd's clock and this machine's may differ."""
_LONG_AGO = 1e9
"""The age, in seconds, of settings that no heartbeat has confirmed."""

Expect = Callable[[str], Awaitable[None]]
"""Raises StreamFault unless the database with this identity is the one that is followed."""


class StreamFault(Exception):
    """A stream cannot be followed any longer. The message says why."""


class Pulse:
    """The time at policyd, as the heartbeats of all streams of a follower give it. `clock` is
    measured by it."""

    def __init__(self, clock: WorkerClock) -> None:
        self._clock = clock
        self._behind = -math.inf
        """policyd's time in the last heartbeat that counted, minus key_table.seconds() then."""

    def counts(self, at: float) -> bool:
        """Whether a heartbeat with this time, in seconds since 1970, is not an old one."""
        now, passed = time.time(), key_table.seconds()
        if at < self._behind + passed - _SKEW and at < now - _SKEW:
            return False
        self._behind = at - passed
        self._clock.measured(timedelta(seconds=now - at))
        return True


class KeyStream:
    """Reads one stream into `keys`. Belongs to the event loop of `keys`."""

    def __init__(self, keys: KeyTable, pulse: Pulse, expect: Expect) -> None:
        self._keys = keys
        self._pulse = pulse
        self._expect = expect
        self._pieces = Pieces()
        self._changes = ChangedKeys()
        self._aside: ChangedKeys | None = None
        """All settings of this policyd, while they are not taken. None where its settings are those
        in force here, with `_changes`."""
        self._is_put_back = False
        self._least_delay = math.inf
        self._as_of = -math.inf
        """When policyd sent the last heartbeat, by key_table.seconds() ..."""
        self._beat_revision = 0
        """... and the revision that was in force there."""
        self.behind = 0.0
        """Seconds since policyd last saw that its settings are those of its database."""
        self.database = ""
        """The identity of policyd's database; "" until a heartbeat has named it."""
        self.heard_at = key_table.seconds()
        """When the last heartbeat came, or the stream began, by key_table.seconds()."""

    async def take(self, message: pb.WatchKeysResponse) -> bool:
        """Take one message. Returns whether other settings are in force now. Raises StreamFault."""
        kind = message.WhichOneof("event")
        try:
            if kind == "heartbeat":
                await self._beat(message.heartbeat)
            elif kind == "snapshot":
                self._changes = ChangedKeys()
                self._aside, self._is_put_back = ChangedKeys(), message.snapshot.put_back
            elif kind == "keys":
                self._collect(message.keys)
            elif kind == "complete":
                return await self._complete(message.complete)
        except ValueError as error:
            raise StreamFault(f"it sends what this version cannot read ({error})") from None
        return False

    def _collect(self, piece: pb.KeyPiece) -> None:
        collected = self._changes if self._aside is None else self._aside
        collected.add(self._pieces.changes(piece))

    async def _complete(self, complete: pb.SettingsComplete) -> bool:
        if not self.database or complete.database != self.database:
            raise StreamFault("its settings are of another database than its heartbeats")
        keys = self._keys
        before = (keys.revision, keys.epoch) if keys.is_known else None
        now = (complete.revision, complete.epoch)
        defaults = defaults_of(complete)
        if self._aside is not None:
            if not (before is None or self._is_put_back or now == before or now[0] > before[0]):
                return False  # This policyd lags behind: see the law of order.
            as_of = self._fresh_as_of(complete.revision, is_put_back=self._is_put_back)
            if before is not None and self._is_put_back:
                _log.warning(
                    "the database was put back, as policyd tells: all settings are taken anew, at "
                    "revision %d after %d",
                    *(complete.revision, before[0]),
                )
            changed, self._aside, self._is_put_back = self._aside, None, False
            changes = KeyChanges(now[0], changed, True, now[1], defaults)
            await keys.apply(changes, as_of)
        else:
            if before is None or now[0] < before[0] or (now[0] == before[0] and now != before):
                raise StreamFault("its changes go back to an older revision")
            changed, self._changes = self._changes, ChangedKeys()
            changes = KeyChanges(now[0], changed, epoch=now[1], defaults=defaults)
            await keys.apply(changes, self._fresh_as_of(complete.revision))
        if now == before:
            # The defaults may differ all the same: a part of them is policyd's own settings, which
            # have no revision.
            keys.defaults = defaults
        return now != before

    def _fresh_as_of(self, revision: int, *, is_put_back: bool = False) -> float:
        """When policyd last had no newer settings than `revision`, by key_table.seconds()."""
        known = self._as_of if self._beat_revision <= revision else -math.inf
        now = key_table.seconds()
        if self._keys.is_known and not is_put_back:
            known = max(known, now - self._keys.staleness())
        return max(known, now - _LONG_AGO)

    async def _beat(self, heartbeat: pb.Heartbeat) -> None:
        now = self.heard_at = key_table.seconds()
        if not heartbeat.database:
            return  # policyd itself knows no settings yet.
        if heartbeat.database != self.database:
            await self._expect(heartbeat.database)
            self.database = heartbeat.database
        age, at = heartbeat.staleness_seconds, heartbeat.time
        if not (age >= 0 and math.isfinite(at)):
            raise ValueError("a heartbeat without a time")
        delay = now - at
        self._least_delay = min(self._least_delay, delay)
        late = delay - self._least_delay
        if late > SILENCE:
            raise StreamFault(f"its heartbeats come {late:.1f} s late")
        if not self._pulse.counts(at):
            return
        self.behind = age
        self._as_of, self._beat_revision = now - late, heartbeat.revision
        keys = self._keys
        if keys.is_known and (heartbeat.revision, heartbeat.epoch) == (keys.revision, keys.epoch):
            keys.confirm(self._as_of)
