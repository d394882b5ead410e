"""Retirement: the one process that ships a spool deletes old decisions from the store."""

import time
from datetime import timedelta

from policyd.decision_log.spool import SpoolReader
from policyd.store import Store

_KEEP = 24 * 3600.0
"""Seconds between two notes to the store that this spool is still in use."""


class Retirement:
    """Retires decisions of `store`, where this process ships `spool`. Every method may block."""

    def __init__(self, store: Store, spool: SpoolReader) -> None:
        self._store = store
        self._spool = spool
        self._kept_at = float("-inf")

    def retire(self, keep: timedelta, max_rows: int) -> int:
        """Delete some decisions that are older than `keep`, or more than `max_rows`. Returns how
        many; 0: none are left. Raises StoreUnavailable.
        """
        if not self._spool.lock():
            return 0
        if time.monotonic() - self._kept_at > _KEEP:
            self._store.positions.keep(self._spool.identity())
            self._kept_at = time.monotonic()
        return self._store.log.retire(keep, max_rows)

    def standstill(self) -> str:
        """Why retention deletes less than its settings ask for; "": it does not.

        Raises StoreUnavailable.
        """
        return self._store.log.standstill().reason

    def give_back(self) -> int:
        """Give back some of the space that retire() has freed. Returns how many pages; 0: none are
        left. Raises StoreUnavailable.
        """
        return self._store.log.give_back() if self._spool.lock() else 0
