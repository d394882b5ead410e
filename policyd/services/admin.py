"""AdminService: API keys and their settings, and the decision log.

The store blocks, so calls to it run in threads: _AT_ONCE of them for keys, and as many for the log,
whose calls may take longer. Further calls wait for a turn, up to _WAITING of them.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from policyd.command.deadline import TIMEOUT
from policyd.command.threads import StoreThreads
from policyd.engine.model import IDENTIFIERS, ApiKey, Mode, Override
from policyd.errors import InvalidArgument, KeyNotFound
from policyd.keys.key_table import KeyTable
from policyd.policies import ORIGINAL
from policyd.services import log_messages
from policyd.services.log_messages import timestamp
from policyd.store import LogStatus, Store
from policyd.store.retention import Standstill
from policyd.v1 import admin_pb2 as pb
from policyd.v1 import policy_pb2
from policyd.v1.admin_pb2_grpc import AdminServiceServicer

_Enum = TypeVar("_Enum", Mode, Override)
_PAGE = 100
_MAX_PAGE = 1000
_AT_ONCE = 4
_WAITING = 60
"""Calls for keys, or for the log, that may wait; further ones get RESOURCE_EXHAUSTED."""
_LONGER = 3
"""A call for the log may take so many times the database's time-out."""


class AdminServicer(AdminServiceServicer):
    """Manages the keys in `store`, and reads its decision log. `table` follows the keys."""

    def __init__(self, store: Store, table: KeyTable, timeout: float = TIMEOUT) -> None:
        self._store = store
        self._table = table
        self._keys = StoreThreads("API keys", timeout, at_once=_AT_ONCE, waiting=_WAITING)
        self._log = StoreThreads(
            "the decision log", timeout * _LONGER, at_once=_AT_ONCE, waiting=_WAITING
        )

    async def CreateApiKey(
        self, request: pb.CreateApiKeyRequest, context: Any
    ) -> pb.CreateApiKeyResponse:
        """See admin.proto."""
        wanted = _fields(request.api_key, ("name", "enforce_user_ids", "override_policy", "accept"))
        key, secret = await self._keys.run(self._store.keys.create, **wanted)
        return pb.CreateApiKeyResponse(api_key=_message(key), key=secret)

    async def ListApiKeys(
        self, request: pb.ListApiKeysRequest, context: Any
    ) -> pb.ListApiKeysResponse:
        """See admin.proto."""
        size = _page_size(request.page_size)
        try:
            keys = await self._keys.run(
                self._store.keys.list,
                after=request.page_token,
                limit=size + 1,
                show_revoked=request.show_revoked,
            )
        except KeyNotFound:
            raise InvalidArgument("page_token is not one that ListApiKeys gave") from None
        page = keys[:size]
        more = page[-1].id if len(keys) > size else ""
        return pb.ListApiKeysResponse(api_keys=map(_message, page), next_page_token=more)

    async def GetApiKey(self, request: pb.GetApiKeyRequest, context: Any) -> pb.GetApiKeyResponse:
        """See admin.proto."""
        key = await self._keys.run(self._store.keys.get, request.id)
        return pb.GetApiKeyResponse(api_key=_message(key))

    async def UpdateApiKey(
        self, request: pb.UpdateApiKeyRequest, context: Any
    ) -> pb.UpdateApiKeyResponse:
        """See admin.proto."""
        wanted = request.api_key
        changes = _fields(wanted, request.update_mask.paths)
        key = await self._keys.run(self._store.keys.update, wanted.id, changes, wanted.etag)
        return pb.UpdateApiKeyResponse(api_key=_message(key))

    async def RevokeApiKey(
        self, request: pb.RevokeApiKeyRequest, context: Any
    ) -> pb.RevokeApiKeyResponse:
        """See admin.proto."""
        key = await self._keys.run(self._store.keys.revoke, request.id, request.etag)
        return pb.RevokeApiKeyResponse(api_key=_message(key))

    async def ListDecisions(
        self, request: pb.ListDecisionsRequest, context: Any
    ) -> pb.ListDecisionsResponse:
        """See admin.proto."""
        size = _page_size(request.page_size)
        wanted = log_messages.log_filter(request)
        found = await self._log.run(
            self._store.log.page, wanted, after=request.page_token, limit=size + 1
        )
        page = found[:size]
        more = page[-1].id if len(found) > size else ""
        return pb.ListDecisionsResponse(
            decisions=map(log_messages.message, page), next_page_token=more
        )

    async def GetDecision(
        self, request: pb.GetDecisionRequest, context: Any
    ) -> pb.GetDecisionResponse:
        """See admin.proto."""
        record = await self._log.run(self._store.log.get, request.id)
        return pb.GetDecisionResponse(decision=log_messages.message(record))

    def _read_status(self) -> tuple[LogStatus, int, Standstill, tuple[str, timedelta] | None]:
        log = self._store.log
        furthest = self._store.workers.furthest_off()
        return log.status(), self._store.refused_keys.total(), log.standstill(), furthest

    def _followed(self) -> Any:
        if not self._table.is_known:
            return None
        return timestamp(datetime.now(UTC) - timedelta(seconds=self._table.staleness()))

    async def GetLogStatus(
        self, request: pb.GetLogStatusRequest, context: Any
    ) -> pb.GetLogStatusResponse:
        """See admin.proto."""
        status, refused, stands, furthest = await self._log.run(self._read_status)
        oldest = timestamp(status.oldest) if status.oldest else None
        host, offset = furthest or ("", None)
        return pb.GetLogStatusResponse(
            decisions=status.decisions,
            lost=status.lost,
            oldest_time=oldest,
            refused_keys=refused,
            clock_offset=None if offset is None else log_messages.duration(offset),
            clock_host=host,
            settings_followed_time=self._followed(),
            settings_from_snapshot=self._table.is_known and not self._table.is_followed,
            retention_standstill=stands.reason,
            retention_waiting=stands.waiting,
        )


def _page_size(wanted: int) -> int:
    if wanted < 0:
        raise InvalidArgument("page_size is a number of rows, 0 or more")
    return min(wanted or _PAGE, _MAX_PAGE)


def _fields(key: pb.ApiKey, paths: Iterable[str]) -> dict[str, Any]:
    readers: dict[str, Callable[[], Any]] = {
        "name": lambda: key.name,
        "enforce_user_ids": lambda: _mode(key.enforce_user_ids),
        "override_policy": lambda: _override(key.override_policy),
        "accept": lambda: tuple(key.accept) or IDENTIFIERS,
    }
    if unknown := sorted(set(paths) - set(readers)):
        raise InvalidArgument(f"{', '.join(unknown)} cannot be changed: {', '.join(readers)} can")
    found = {path: readers[path]() for path in paths}
    views = {"enforce_user_ids": "mode", "override_policy": "override"}
    original = {views[path]: found.pop(path) for path in views if path in found}
    return found | ({"policies": {ORIGINAL.name: original}} if original else {})


def _mode(number: int) -> Mode | None:
    return _one_of(Mode, number, "enforce_user_ids") if number else None


def _override(number: int) -> Override:
    return _one_of(Override, number, "override_policy") if number else Override.ANY


def _one_of(enumeration: type[_Enum], number: int, field: str) -> _Enum:
    try:
        return enumeration(number)
    except ValueError:
        raise InvalidArgument(f"{field} has no value {number}: see admin.proto") from None


def _message(key: ApiKey) -> pb.ApiKey:
    return pb.ApiKey(
        id=key.id,
        name=key.name,
        enforce_user_ids=policy_pb2.EnforceMode.ValueType(key.mode or 0),
        override_policy=pb.OverridePolicy.ValueType(key.override),
        accept=key.accept,
        create_time=timestamp(key.created_at),
        update_time=timestamp(key.updated_at),
        revoke_time=timestamp(key.revoked_at) if key.revoked_at else None,
        revision=key.revision,
        etag=key.etag,
    )
