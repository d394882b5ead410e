"""What several pages look up in the store."""

from datetime import datetime, timedelta

from policyd.store import LogFilter, Store

_MAX_KEYS = 1000
"""Keys that a filter offers to choose from."""


def key_names(store: Store) -> dict[str, str]:
    """The names of the keys by ID, oldest first, revoked ones too."""
    return {key.id: key.name for key in store.keys.list(limit=_MAX_KEYS, show_revoked=True)}


def holds_samples(store: Store, oldest: datetime | None) -> bool:
    """Whether the log, of which `oldest` is the begin, holds what `policyd demo` made up: that is
    where such a log begins."""
    if oldest is None:
        return False
    first = store.log.page(LogFilter(until=oldest + timedelta(seconds=1)), limit=1)
    return any(record.sample for record in first)
