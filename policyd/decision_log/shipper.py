"""The shipper carries entries from the spool to their destination: the store, or for a gateway that
decides by itself, policyd.

The destination takes each chunk of a file at once with how far the file is shipped. See
decision_log/spool for why nothing is lost, and store/log.py for why nothing is stored again.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Protocol

from policyd.decision_log.spool import Chunk, SpoolReader
from policyd.errors import PositionMoved

_log = logging.getLogger(__name__)
_CHUNK = 2**20
"""Bytes of the spool in one transaction."""
PAUSE = 0.2
"""Seconds between two looks at the spool, where it gets few entries."""
_BUSY_PAUSE = 1.0
"""Seconds between two looks, where the spool gets many entries."""
_BUSY = 200
"""Entries in one look, up to which they count as few."""


def pause_after(shipped: int) -> float:
    """Seconds until the next look at the spool, after one that shipped `shipped` entries.

    A transaction costs as much as dozens of entries, and the more entries it has, the less each of
    them costs: of a decision with its outcome on SQLite, 600 take half as long each as 100.
    """
    return PAUSE if shipped <= _BUSY else _BUSY_PAUSE


class Destination(Protocol):
    """Where entries go. Every method may block, and raises StoreUnavailable."""

    def positions(self, spool: str) -> dict[str, int]:
        """How far each file of the spool with this identity has been shipped."""

    def append(self, spool: str, chunk: Chunk) -> int:
        """Take the chunk's entries, all or none, and note how far the file is shipped. Returns how
        many could be read; the others count as lost. Raises PositionMoved."""

    def forget(self, spool: str, files: Iterable[str]) -> None:
        """Forget the positions of files that are gone for good."""

    def lose(self, lost: Mapping[str, int]) -> None:
        """Note how many entries each process has lost in all."""

    def lost_by(self, processes: Iterable[str]) -> dict[str, int]:
        """How many entries each of the processes has lost, as the destination has it."""


class Shipper:
    """Ships from `spool` to `destination`. Every method may block.

    Whenever it ends, or is killed, the next shipper goes on from what the destination has: no entry
    is stored more than once, and no file is deleted before the destination has all of it.
    """

    def __init__(self, destination: Destination, spool: SpoolReader) -> None:
        self._destination = destination
        self._spool = spool
        self._is_resumed = False
        self._gone: set[str] = set()
        self._told: dict[str, int] = {}

    def ship(self) -> int:
        """Ship all entries that wait. Returns how many. Raises StoreUnavailable.

        Make one call at a time.
        """
        return self._ship() if self._spool.lock() else 0

    def _ship(self) -> int:
        try:
            shipped = self._ship_entries()
        except PositionMoved as error:
            _log.warning("shipping goes on from the destination's position in the spool: %s", error)
            self._is_resumed = False
            shipped = self._ship_entries()
        self._delete_finished()
        self._ship_losses()
        return shipped

    def _ship_entries(self) -> int:
        spool = self._spool.identity()
        if not self._is_resumed:
            self._gone |= self._spool.resume(self._destination.positions(spool))
            self._is_resumed = True
        shipped = 0
        for chunk in self._spool.chunks(_CHUNK):
            shipped += self._destination.append(spool, chunk)
            self._spool.done(chunk)
        return shipped

    def _delete_finished(self) -> None:
        """Delete the files of which the destination has all. It is asked again first, as its
        database may have been restored from a backup since. Positions are forgotten once the files
        are gone."""
        spool = self._spool.identity()
        finished = self._spool.finished()
        if any(finished.values()):
            stored = self._destination.positions(spool)
            if any(stored.get(name, 0) != end for name, end in finished.items()):
                self._is_resumed = False
            finished = {name: end for name, end in finished.items() if stored.get(name, 0) == end}
        gone = self._spool.delete(finished)
        self._gone |= {name for name in gone if finished[name]}
        if self._gone:
            self._destination.forget(spool, self._gone)
            self._gone.clear()

    def _ship_losses(self) -> None:
        losses = self._spool.losses()
        if losses != self._told:
            self._destination.lose(losses)
            self._told = losses
        if ended := self._spool.ended():
            stored = self._destination.lost_by(ended) if ended & losses.keys() else {}
            if any(stored.get(name, 0) < losses.get(name, 0) for name in ended):
                self._told = {}
            self._spool.forget_losses(stored)
