"""What entries of a gateway's spool claim, and whether that is possible.

A gateway with the local token is trusted with the settings of all keys and with what it decided.
Impossible entries are rejected all the same: a wrong clock, a damaged disk or a stolen token must
not log decisions in next year, or of keys that never existed.
"""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from policyd.decision_log.record import Outcome, Record, is_decision_id
from policyd.decision_log.refused_key import RefusedKeyCount
from policyd.store import Store
from policyd.store.destination import Entry, NoteShipped, StoreDestination

_MINUTE = 60.0
_DAY = timedelta(days=1)
"""How far ahead the clock may have been by which the first key was made."""
_UNREADABLE = "they cannot be read"
_UNKNOWN_KEY = "they are of an API key that the database never had"
_UNTIMELY = (
    "they are of a time in the future, or before the first API key: is the gateway's clock right?"
)


class GatewayDestination(StoreDestination):
    """The store as the destination of a gateway's spool. Every method may block.

    `clock` is the worker's, in seconds since 1970; entries may be `ahead` seconds and a minute
    ahead of it. The log keeps decisions for `keep` seconds.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float],
        ahead: float,
        keep: float,
        note: NoteShipped | None = None,
    ) -> None:
        super().__init__(store, note)
        self._clock = clock
        self._ahead = ahead + _MINUTE
        self._keep = keep
        self._first_key: datetime | None = None
        """When the database's first key was made. None: not read yet, or there is none."""
        self.reason = ""
        """Why entries were last rejected."""

    def _tell_unreadable(self, lost: int, problem: Exception) -> None:
        self.reason = _UNREADABLE

    def _select(self, entries: list[Entry]) -> list[Entry]:
        earliest, latest = self._earliest(), self._clock() + self._ahead
        timely = [one for one in entries if _is_timely(one, earliest, latest)]
        known = self._store.keys.known(_keys(timely))
        taken = [one for one in timely if not isinstance(one, Record) or one.key_id in known]
        if len(timely) < len(entries):
            self.reason = _UNTIMELY
        if len(taken) < len(timely):
            self.reason = _UNKNOWN_KEY
        return taken

    def _earliest(self) -> float:
        """The earliest possible time of an entry, in seconds since 1970."""
        self._first_key = self._first_key or self._store.keys.first_created()
        would_go = self._clock() - self._keep
        if self._first_key is None:
            return would_go
        return min((self._first_key - _DAY).timestamp(), would_go)


def _keys(entries: Iterable[Entry]) -> set[str]:
    # PostgreSQL cannot be asked for a text with a NUL, and no key has such an ID.
    return {one.key_id for one in entries if isinstance(one, Record) and "\0" not in one.key_id}


def _is_timely(entry: Entry, earliest: float, latest: float) -> bool:
    if isinstance(entry, RefusedKeyCount):
        return earliest <= entry.minute * _MINUTE <= latest
    identity = entry.decision_id if isinstance(entry, Outcome) else entry.id
    return is_decision_id(identity) and earliest <= int(identity[:12], 16) / 1000 <= latest
