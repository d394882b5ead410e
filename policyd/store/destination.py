"""The store as the destination of a spool: entries are read, priced and committed with the
position."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from policyd.decision_log.pricing import cost
from policyd.decision_log.record import Outcome, Record, moment
from policyd.decision_log.refused_key import RefusedKey, RefusedKeyCount
from policyd.decision_log.spool import Chunk
from policyd.store import Step, Store

_log = logging.getLogger(__name__)
Entry = Record | Outcome | RefusedKey | RefusedKeyCount
_decode = msgspec.json.Decoder(Entry).decode


NoteShipped = Callable[[Sequence[object]], None]
"""Called with entries that were shipped to the store."""


class StoreDestination:
    """A Destination of decision_log/shipper.py."""

    def __init__(self, store: Store, note: NoteShipped | None = None) -> None:
        self._store = store
        self._note = note

    def positions(self, spool: str) -> dict[str, int]:
        """See Destination."""
        return self._store.positions.read(spool)

    def append(self, spool: str, chunk: Chunk) -> int:
        """See Destination."""
        entries, problem = _entries(chunk)
        if problem is not None:
            self._tell_unreadable(len(chunk.lines) - len(entries), problem)
        entries = self._select(entries)
        step = Step(spool, chunk.name, chunk.start, chunk.end)
        self._store.log.append(entries, step, unreadable=len(chunk.lines) - len(entries))
        if self._note is not None:
            self._note(entries)
        return len(entries)

    def _select(self, entries: list[Entry]) -> list[Entry]:
        """The entries that go to the store. The others count as lost."""
        return entries

    def _tell_unreadable(self, lost: int, problem: Exception) -> None:
        _log.error("%d entries in the spool cannot be read and are lost: %s", lost, problem)

    def forget(self, spool: str, files: Iterable[str]) -> None:
        """See Destination."""
        self._store.positions.forget(spool, files)

    def lose(self, lost: Mapping[str, int]) -> None:
        """See Destination."""
        self._store.log.lose(lost)

    def lost_by(self, processes: Iterable[str]) -> dict[str, int]:
        """See Destination."""
        return self._store.log.lost_by(processes)


def _entries(chunk: Chunk) -> tuple[list[Entry], Exception | None]:
    """The entries that can be read, and why the first of the others cannot."""
    entries: list[Entry] = []
    problem: Exception | None = None
    for line in chunk.lines:
        try:
            entries.append(_priced(_decode(line)))
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError) as error:
            problem = problem or error
    return entries, problem


def _priced(entry: Entry) -> Entry:
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
    # It was just read, and no other code knows it yet, so it can be changed without a copy.
    msgspec.structs.force_setattr(entry, "cost_nano", dollars)
    return entry
