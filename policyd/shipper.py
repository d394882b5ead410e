"""The shipper: carries the spool's entries to the store, with their price, and retires old ones."""

import logging
import secrets
import threading
from datetime import timedelta

import msgspec

from policyd.pricing import cost
from policyd.record import Outcome, Record, moment
from policyd.spool import Chunk, SpoolReader
from policyd.store import Store
from policyd.store.database import now

_log = logging.getLogger(__name__)
_CHUNK = 2**20
"""Bytes of the spool in one transaction."""
_decode = msgspec.json.Decoder(Record | Outcome).decode


class Shipper:
    """Ships from `spool` to `store`. Everything may block."""

    def __init__(self, store: Store, spool: SpoolReader) -> None:
        self._store = store
        self._spool = spool
        self._id = f"shipper-{secrets.token_hex(6)}"
        self._unreadable = 0
        # When policyd ends, what was begun goes on beside what ships the rest.
        self._shipping = threading.Lock()

    def ship(self) -> int:
        """Carry over what there is. Returns how many entries. Raises StoreUnavailable."""
        with self._shipping:
            return self._ship() if self._spool.lock() else 0

    def _ship(self) -> int:
        shipped = 0
        for chunk in self._spool.chunks(_CHUNK):
            entries = self._entries(chunk)
            self._store.log.append(entries)
            self._spool.done(chunk)
            shipped += len(entries)
        self._ship_losses()
        return shipped

    def retire(self, keep: timedelta, max_rows: int) -> None:
        """Delete what the log need not keep any longer. Raises StoreUnavailable."""
        if self._spool.lock() and (retired := self._store.log.expire(now() - keep, max_rows)):
            _log.info("%d decisions of the log were old enough to go", retired)

    def _entries(self, chunk: Chunk) -> list[Record | Outcome]:
        entries = []
        for line in chunk.lines:
            try:
                entries.append(_priced(_decode(line)))
            except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
                self._unreadable += 1
                _log.error("an entry in the spool cannot be read and is lost: %s", error)
        return entries

    def _ship_losses(self) -> None:
        losses = self._spool.losses()
        if self._unreadable:
            losses[self._id] = self._unreadable
        if losses:
            self._store.log.lose(losses)
        self._spool.forget_losses(losses)


def _priced(entry: Record | Outcome) -> Record | Outcome:
    if isinstance(entry, Record) or entry.input_tokens is None:
        return entry
    dollars = cost(
        entry.model,
        entry.input_tokens,
        entry.output_tokens or 0,
        entry.cached_tokens or 0,
        moment(entry.decision_id),
    )
    return msgspec.structs.replace(entry, cost_nano=dollars)
