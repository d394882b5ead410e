"""An administrator: what the commands do to keys, defaults, the audit trail and the log, over the
database itself or over AdminService of a running server. Each command is written once, for both."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from policyd.engine.settings import ApiKey, ServerDefaults, Settings
from policyd.errors import DecisionNotFound, KeyNotFound
from policyd.keys import api_key
from policyd.keys.audit import Action, AuditRecord
from policyd.keys.settings import Applied, DeclaredKey

if TYPE_CHECKING:
    from policyd.decision_log.record import Record
    from policyd.store import LogFilter, Store

_PAGE = 1000
Status = dict[str, float | str | None]
"""The state of the log, by the names that `policyd logs status` prints."""


class Administrator(Protocol):
    """What commands ask of either. Each method may raise PolicydError."""

    def create(
        self,
        name: str,
        policies: Settings,
        accept: tuple[str, ...],
        expires_at: datetime | None,
    ) -> tuple[ApiKey, str]:
        """Make a key. Returns its settings and its secret."""

    def all_keys(self, *, show_revoked: bool = False) -> list[ApiKey]:
        """All keys, oldest first."""

    def get(self, key_id: str) -> ApiKey:
        """The key with this ID. Raises KeyNotFound."""

    def named(self, name: str) -> ApiKey:
        """The key of this name that is not revoked. Raises KeyNotFound, and InvalidArgument where
        several have it."""

    def update(self, key_id: str, changes: Mapping[str, Any]) -> ApiKey:
        """Change a key, as Keys.update() does."""

    def rotate(self, key_id: str, keep: timedelta) -> tuple[ApiKey, str]:
        """Give a key a new secret. Returns its settings and the secret."""

    def revoke(self, key_id: str) -> ApiKey:
        """Revoke a key for good."""

    def defaults(self) -> ServerDefaults | None:
        """The defaults that were applied to the database; None if none were."""

    def apply(
        self,
        declared: Sequence[DeclaredKey],
        defaults: ServerDefaults | None,
        *,
        prune: bool,
        dry_run: bool,
    ) -> Applied:
        """Make keys and defaults what is declared, as Store.apply() does."""

    def audit(
        self, key_id: str, action: str, since: datetime | None, limit: int
    ) -> list[AuditRecord]:
        """The newest records of the audit trail, as Audit.list() gives them."""

    def page(self, wanted: "LogFilter", *, after: str = "", limit: int = 50) -> "list[Record]":
        """A page of the log, newest first, as Log.page() gives it."""

    def decision(self, decision_id: str) -> "Record":
        """One decision of the log. Raises DecisionNotFound."""

    def status(self) -> Status:
        """The state of the log."""

    def shipped(self, spool: str) -> dict[str, int]:
        """How many bytes of each segment of a spool are shipped, where this is known. `spool` is
        its identity."""

    def time(self) -> datetime:
        """The present time, or that of the newest decision, by the clock that times decisions."""

    def note_export(self, what: Mapping[str, Any]) -> None:
        """Record an export of the log in the audit trail."""


def find(administrator: Administrator, named: str) -> ApiKey:
    """The key with this ID, else the one with this name that is not revoked.

    Raises KeyNotFound, and InvalidArgument where several have the name, as in old databases.
    """
    try:
        return administrator.get(named)
    except KeyNotFound:
        pass
    try:
        return administrator.named(named)
    except KeyNotFound:
        raise KeyNotFound(
            f"no API key has the ID {named[:64]!r}, and none that is not revoked has this name: "
            "policyd keys list shows which there are"
        ) from None


def find_id(administrator: Administrator, named: str) -> str:
    """The ID of the key that find() finds; "" for "". An ID need not belong to a known key, as the
    log may outlive its keys."""
    if not named or api_key.is_id(named):
        return named
    try:
        return find(administrator, named).id
    except KeyNotFound:
        if named.startswith(api_key.ID_PREFIX):
            return named
        raise


class OfStore:
    """An administrator of the database of `store`. The audit trail names the `actor`."""

    def __init__(self, store: "Store", actor: str) -> None:
        self._store = store
        self._actor = actor

    def create(
        self,
        name: str,
        policies: Settings,
        accept: tuple[str, ...],
        expires_at: datetime | None,
    ) -> tuple[ApiKey, str]:
        """See Administrator."""
        create = self._store.keys.create
        return create(name, policies, accept, expires_at=expires_at, by=self._actor)

    def all_keys(self, *, show_revoked: bool = False) -> list[ApiKey]:
        """See Administrator."""

        def page(after: str) -> list[ApiKey]:
            return self._store.keys.list(after=after, limit=_PAGE, show_revoked=show_revoked)

        return list(_all(page))

    def get(self, key_id: str) -> ApiKey:
        """See Administrator."""
        return self._store.keys.get(key_id)

    def named(self, name: str) -> ApiKey:
        """See Administrator."""
        return self._store.keys.find(name)

    def update(self, key_id: str, changes: Mapping[str, Any]) -> ApiKey:
        """See Administrator."""
        return self._store.keys.update(key_id, changes, by=self._actor)

    def rotate(self, key_id: str, keep: timedelta) -> tuple[ApiKey, str]:
        """See Administrator."""
        return self._store.keys.rotate(key_id, keep, by=self._actor)

    def revoke(self, key_id: str) -> ApiKey:
        """See Administrator."""
        return self._store.keys.revoke(key_id, by=self._actor)

    def defaults(self) -> ServerDefaults | None:
        """See Administrator."""
        return self._store.defaults()

    def apply(
        self,
        declared: Sequence[DeclaredKey],
        defaults: ServerDefaults | None,
        *,
        prune: bool,
        dry_run: bool,
    ) -> Applied:
        """See Administrator."""
        apply = self._store.apply
        return apply(declared, defaults, prune=prune, dry_run=dry_run, by=self._actor)

    def audit(
        self, key_id: str, action: str, since: datetime | None, limit: int
    ) -> list[AuditRecord]:
        """See Administrator."""
        return self._store.audit.list(key_id=key_id, action=action, since=since, limit=limit)

    def page(self, wanted: "LogFilter", *, after: str = "", limit: int = 50) -> "list[Record]":
        """See Administrator."""
        return self._store.log.page(wanted, after=after, limit=limit)

    def decision(self, decision_id: str) -> "Record":
        """See Administrator."""
        if self._store.refused_keys.sample(decision_id):
            raise DecisionNotFound(
                "this request's API key was refused, so no policy was asked: see policyd logs "
                "refused"
            )
        return self._store.log.get(decision_id)

    def status(self) -> Status:
        """See Administrator."""
        found = self._store.log.status()
        # Imported late: with --server, no SQL is loaded.
        from policyd.store.workers import furthest_off

        running = self._store.workers.list()
        host, offset = furthest_off(running) or (None, None)
        gateways = sum(one.is_gateway for one in running)
        stands = self._store.log.standstill()
        return {
            "decisions": found.decisions,
            "lost": found.lost,
            "oldest": found.oldest.isoformat(timespec="milliseconds") if found.oldest else None,
            "refused_keys": self._store.refused_keys.total(),
            "clock_offset": None if offset is None else offset.total_seconds(),
            "clock_host": host,
            "workers": len(running) - gateways,
            "gateways": gateways,
            "database_problem": self._store.why_unchangeable() or None,
            "retention_standstill": stands.reason or None,
            "retention_waiting": stands.waiting,
        }

    def shipped(self, spool: str) -> dict[str, int]:
        """See Administrator."""
        return self._store.positions.read(spool) if spool else {}

    def time(self) -> datetime:
        """See Administrator."""
        return self._store.time()

    def note_export(self, what: Mapping[str, Any]) -> None:
        """See Administrator."""
        self._store.audit.add(Action.LOG_EXPORT, self._actor, dict(what))


def _all(page: Callable[[str], list[ApiKey]]) -> Iterator[ApiKey]:
    after = ""
    while found := page(after):
        yield from found
        after = found[-1].id


def newest_first(
    administrator: Administrator, wanted: "LogFilter", after: str = ""
) -> "Iterator[Record]":
    """All wanted decisions, newest first; with `after`, those older than the one with this ID."""
    while page := administrator.page(wanted, after=after, limit=_PAGE):
        yield from page
        after = page[-1].id


def arrived_since(
    administrator: Administrator, wanted: "LogFilter", back: timedelta
) -> "list[Record]":
    """The wanted decisions from `back` ago until now, newest first."""
    # By the clock that decisions are timed by: this machine's may be wrong, and would show none.
    since = administrator.time() - back
    since = max(since, wanted.since) if wanted.since else since
    return list(newest_first(administrator, replace(wanted, since=since)))
