"""The shipper: carries the spool's entries to the store, with their price, and retires old ones."""

import logging
import time
from datetime import timedelta

import msgspec

from policyd.decision_log.pricing import cost
from policyd.decision_log.record import Outcome, Record, moment
from policyd.decision_log.refused_key import RefusedKey, RefusedKeyCount
from policyd.decision_log.spool import Chunk, SpoolReader
from policyd.errors import PositionMoved
from policyd.store import Step, Store

_log = logging.getLogger(__name__)
_CHUNK = 2**20
"""Bytes of the spool in one transaction."""
_KEEP = 24 * 3600.0
"""Seconds between two times that the store is told that this spool is still there."""
_Entry = Record | Outcome | RefusedKey | RefusedKeyCount
_decode = msgspec.json.Decoder(_Entry).decode


class Shipper:
    """Ships from `spool` to `store`. Everything may block.

    Whatever it has done when it ends, in the middle or killed, the next one goes on from what the
    store has: nothing is shipped twice, and no file goes that the store has not got all of.
    """

    def __init__(self, store: Store, spool: SpoolReader) -> None:
        self._store = store
        self._spool = spool
        self._is_resumed = False
        self._gone: set[str] = set()
        self._told: dict[str, int] = {}
        self._kept_at = float("-inf")

    def ship(self) -> int:
        """Carry over what there is. Returns how many entries. Raises StoreUnavailable.

        One call at a time: the threads for shipping see to that, also when policyd ends.
        """
        return self._ship() if self._spool.lock() else 0

    def _ship(self) -> int:
        try:
            shipped = self._ship_entries()
        except PositionMoved as error:
            _log.warning("the spool is shipped from where the database has it up to: %s", error)
            self._is_resumed = False
            shipped = self._ship_entries()
        self._delete_finished()
        self._ship_losses()
        return shipped

    def _ship_entries(self) -> int:
        spool = self._spool.identity()
        if not self._is_resumed:
            self._gone |= self._spool.resume(self._store.positions.read(spool))
            self._is_resumed = True
        shipped = 0
        for chunk in self._spool.chunks(_CHUNK):
            entries = _entries(chunk)
            step = Step(spool, chunk.name, chunk.start, chunk.end)
            unreadable = len(chunk.lines) - len(entries)
            self._store.log.append(entries, step, unreadable=unreadable)
            self._spool.done(chunk)
            shipped += len(entries)
        return shipped

    def _delete_finished(self) -> None:
        """Delete the files that the store has all of; it is asked once more, as it may be another
        one by now. Only when they are gone are their positions forgotten."""
        spool = self._spool.identity()
        finished = self._spool.finished()
        if any(finished.values()):
            stored = self._store.positions.read(spool)
            if any(stored.get(name, 0) != end for name, end in finished.items()):
                self._is_resumed = False
            finished = {name: end for name, end in finished.items() if stored.get(name, 0) == end}
        gone = self._spool.delete(finished)
        self._gone |= {name for name in gone if finished[name]}
        if self._gone:
            self._store.positions.forget(spool, self._gone)
            self._gone.clear()

    def _ship_losses(self) -> None:
        losses = self._spool.losses()
        if losses != self._told:
            self._store.log.lose(losses)
            self._told = losses
        if ended := self._spool.ended():
            stored = self._store.log.lost_by(ended) if ended & losses.keys() else {}
            if any(stored.get(name, 0) < losses.get(name, 0) for name in ended):
                self._told = {}
            self._spool.forget_losses(stored)

    def retire(self, keep: timedelta, max_rows: int) -> int:
        """Delete some of what the log need not keep any longer. Returns how many; 0: that was all.

        Raises StoreUnavailable.
        """
        if not self._spool.lock():
            return 0
        if time.monotonic() - self._kept_at > _KEEP:
            self._store.positions.keep(self._spool.identity())
            self._kept_at = time.monotonic()
        return self._store.log.retire(keep, max_rows)

    def standstill(self) -> str:
        """Why retention does less than its settings ask for; "" where it does not.

        Raises StoreUnavailable.
        """
        return self._store.log.standstill().reason

    def give_back(self) -> int:
        """Give back some of the space that this has freed. Returns how many pages; 0: that was all.

        Raises StoreUnavailable.
        """
        return self._store.log.give_back() if self._spool.lock() else 0


def _entries(chunk: Chunk) -> list[_Entry]:
    entries = []
    for line in chunk.lines:
        try:
            entries.append(_priced(_decode(line)))
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            _log.error("an entry in the spool cannot be read and is lost: %s", error)
    return entries


def _priced(entry: _Entry) -> _Entry:
    if not isinstance(entry, Outcome) or entry.input_tokens is None:
        return entry
    dollars = cost(
        entry.model,
        entry.input_tokens,
        entry.output_tokens or 0,
        entry.cached_tokens or 0,
        entry.cache_write_tokens or 0,
        moment(entry.decision_id),
    )
    return msgspec.structs.replace(entry, cost_nano=dollars)
