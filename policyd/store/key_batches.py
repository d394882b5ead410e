"""Changes to several API keys at once: all of them in one revision, or none."""

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from policyd.engine.settings import ApiKey
from policyd.errors import EtagMismatch
from policyd.keys.audit import Action
from policyd.keys.settings import Change, changed
from policyd.store import audit, key_rows, key_settings
from policyd.store.database import LONG, now
from policyd.store.keys import entry
from policyd.store.revisions import change

Chosen = Mapping[str, str]
"""The etag of each key by its ID."""


class KeyBatches:
    """Changes several API keys in the database of `engine`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def set_policies(self, chosen: Chosen, policies: Change, *, by: str = "") -> list[ApiKey]:
        """Change the policies of several keys in the same way. Returns the keys after that.

        A key that has these settings already stays as it is. Raises KeyNotFound, EtagMismatch or
        InvalidArgument; then no key was changed.
        """

        def row(current: ApiKey) -> dict[str, Any]:
            new = key_settings.row(changed(current.policies, policies))
            return {} if new == key_settings.row(current.policies) else new

        return self._change(chosen, row, Action.KEY_UPDATE, by)

    def revoke(self, chosen: Chosen, *, by: str = "") -> list[ApiKey]:
        """Revoke several keys for good. Returns the keys after that. Raises KeyNotFound or
        EtagMismatch; then no key was revoked."""
        return self._change(chosen, lambda _: {"revoked_at": now()}, Action.KEY_REVOKE, by)

    def _change(
        self, chosen: Chosen, row: Callable[[ApiKey], dict[str, Any]], action: Action, by: str
    ) -> list[ApiKey]:
        with change(self._engine, LONG) as (connection, revision):
            after: list[ApiKey] = []
            entries: list[audit.Entry] = []
            for key_id, etag in chosen.items():
                current = key_rows.read(connection, key_id, etag)
                if current.revoked_at:
                    raise EtagMismatch(f"{key_id} was revoked since it was read: leave it out")
                columns = row(current)
                if not columns:
                    after.append(current)
                    continue
                after.append(key_rows.write(connection, key_id, columns, revision))
                entries.append(entry(action, by, current, after[-1]))
            audit.add(connection, entries)
            if not entries:
                connection.rollback()
            return after
