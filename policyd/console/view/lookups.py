"""What several pages look up in the store."""

from datetime import datetime, timedelta

from policyd.store import LogFilter, Store

_MAX_KEYS = 1000
"""Keys that a filter offers, at most."""


def key_names(store: Store) -> dict[str, str]:
    """The names of the keys by ID, oldest first, including revoked keys."""
    return {key.id: key.name for key in store.keys.list(limit=_MAX_KEYS, show_revoked=True)}


def unrevoked_keys(store: Store) -> dict[str, str]:
    """The names of the keys that are not revoked by ID, oldest first. Some may have expired."""
    return {key.id: key.name for key in store.keys.list(limit=_MAX_KEYS)}


def holds_samples(store: Store, oldest: datetime | None) -> bool:
    """Whether the log holds samples that `policyd demo` made up. It looks at the first second after
    `oldest`, the log's beginning, as a log with samples begins with them."""
    if oldest is None:
        return False
    first = store.log.page(LogFilter(until=oldest + timedelta(seconds=1)), limit=1)
    return any(record.sample for record in first)
