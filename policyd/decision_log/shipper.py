"""The shipper carries entries from the spool to the store, and retires old ones there.

Each chunk of a file is one transaction, which also commits how far the file is shipped. See
decision_log/spool for why nothing is lost, and store/log.py for why nothing is stored again.
"""

import logging
import time
from collections.abc import Callable, Sequence
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
"""Seconds between two notes to the store that this spool is still in use."""
_Entry = Record | Outcome | RefusedKey | RefusedKeyCount
_decode = msgspec.json.Decoder(_Entry).decode


def _forget(_: Sequence[object]) -> None:
    pass


class Shipper:
    """Ships from `spool` to `store`. Every method may block.

    Whenever it ends, or is killed, the next shipper goes on from what the store has: no entry is
    stored more than once, and no file is deleted before the store has all of it.
    """

    def __init__(
        self, store: Store, spool: SpoolReader, note: Callable[[Sequence[object]], None] = _forget
    ) -> None:
        """`note` is told of the entries that the store has been given."""
        self._note = note
        self._store = store
        self._spool = spool
        self._is_resumed = False
        self._gone: set[str] = set()
        self._told: dict[str, int] = {}
        self._kept_at = float("-inf")

    def ship(self) -> int:
        """Ship all entries that there are. Returns how many. Raises StoreUnavailable.

        Make one call at a time. The background worker's threads see to that, also at its end.
        """
        return self._ship() if self._spool.lock() else 0

    def _ship(self) -> int:
        try:
            shipped = self._ship_entries()
        except PositionMoved as error:
            _log.warning("shipping goes on from the database's position in the spool: %s", error)
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
            self._note(entries)
            shipped += len(entries)
        return shipped

    def _delete_finished(self) -> None:
        """Delete the files that the store has all of. The store is asked again before, as it may
        have been restored from a backup since. Positions are forgotten once the files are gone."""
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
        """Delete some decisions that the log need not keep any longer. Returns how many; 0: that
        was all. Raises StoreUnavailable.
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
        """Give back some of the space that retire() has freed. Returns how many pages; 0: that was
        all. Raises StoreUnavailable.
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
