"""The shipper: carries the spool's entries to the store, with their price, and retires old ones."""

import logging
import secrets
import threading
from datetime import timedelta

import msgspec

from policyd.pricing import cost
from policyd.record import Outcome, Record, moment
from policyd.refusal import Refusal, RefusalCount
from policyd.spool import Chunk, SpoolReader
from policyd.store import Store

_log = logging.getLogger(__name__)
_CHUNK = 2**20
"""Bytes of the spool in one transaction."""
_Entry = Record | Outcome | Refusal | RefusalCount
_decode = msgspec.json.Decoder(_Entry).decode


class Shipper:
    """Ships from `spool` to `store`. Everything may block."""

    def __init__(self, store: Store, spool: SpoolReader) -> None:
        self._store = store
        self._spool = spool
        self._id = f"shipper-{secrets.token_hex(6)}"
        self._unreadable = 0
        self._told: dict[str, int] = {}
        # When policyd ends, what was begun goes on beside what ships the rest.
        self._shipping = threading.Lock()

    def ship(self) -> int:
        """Carry over what there is. Returns how many entries. Raises StoreUnavailable."""
        with self._shipping:
            return self._ship() if self._spool.lock() else 0

    def _ship(self) -> int:
        shipped = 0
        for chunk in self._spool.chunks(_CHUNK):
            entries = _entries(chunk)
            self._store.log.append(entries)
            self._spool.done(chunk)
            self._unreadable += len(chunk.lines) - len(entries)
            shipped += len(entries)
        self._ship_losses()
        return shipped

    def retire(self, keep: timedelta, max_rows: int) -> int:
        """Delete some of what the log need not keep any longer. Returns how many; 0: that was all.

        Raises StoreUnavailable.
        """
        return self._store.log.retire(keep, max_rows) if self._spool.lock() else 0

    def standstill(self) -> str:
        """Why retention does less than its settings ask for; "" where it does not.

        Raises StoreUnavailable.
        """
        return self._store.log.standstill().reason

    def _ship_losses(self) -> None:
        losses = self._spool.losses()
        if self._unreadable:
            losses[self._id] = self._unreadable
        if losses != self._told:
            self._store.log.lose(losses)
            self._told = losses
        self._spool.forget_losses(losses)


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
