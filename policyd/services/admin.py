"""AdminService: API keys, their settings, the server's defaults, the audit trail and the decision
log.

The store blocks, so calls to it run in threads: _AT_ONCE of them for keys, and as many for the log,
whose calls may take longer. Further calls wait for a turn, up to _WAITING of them.
"""

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import unquote

from policyd.command.deadline import TIMEOUT
from policyd.command.threads import StoreThreads
from policyd.descriptor import message_fields
from policyd.errors import InvalidArgument, KeyNotFound
from policyd.keys.audit import Action
from policyd.keys.key_table import KeyTable
from policyd.services import key_messages, log_messages
from policyd.services.log_messages import timestamp
from policyd.store import LogStatus, Store, Worker
from policyd.store.retention import Standstill
from policyd.store.workers import furthest_off
from policyd.v1 import admin_pb2 as pb
from policyd.v1.admin_pb2_grpc import AdminServiceServicer

_PAGE = 100
_MAX_PAGE = 1000
_AT_ONCE = 4
_WAITING = 60
"""Calls for keys, or for the log, that may wait; further ones get RESOURCE_EXHAUSTED."""
_LONGER = 3
"""A call for the log may take this many times the database's time-out."""


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
        wanted = request.api_key
        create = partial(
            self._store.keys.create,
            wanted.name,
            key_messages.all_settings(wanted),
            key_messages.accept(wanted),
            expires_at=message_fields.moment(wanted, "expire_time"),
            by=_actor(context),
        )
        key, secret = await self._keys.run(create)
        return pb.CreateApiKeyResponse(api_key=key_messages.message(key), key=secret)

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
        return pb.ListApiKeysResponse(
            api_keys=map(key_messages.message, page), next_page_token=more
        )

    async def GetApiKey(self, request: pb.GetApiKeyRequest, context: Any) -> pb.GetApiKeyResponse:
        """See admin.proto."""
        if request.id and request.name:
            raise InvalidArgument("id and name each name a key: give one of them")
        if request.name:
            key = await self._keys.run(self._store.keys.find, request.name)
        else:
            key = await self._keys.run(self._store.keys.get, request.id)
        return pb.GetApiKeyResponse(api_key=key_messages.message(key))

    async def UpdateApiKey(
        self, request: pb.UpdateApiKeyRequest, context: Any
    ) -> pb.UpdateApiKeyResponse:
        """See admin.proto."""
        wanted = request.api_key
        paths = key_messages.checked_paths(request.update_mask.paths)
        changes = key_messages.changes(wanted, paths)
        key = await self._keys.run(
            self._store.keys.update, wanted.id, changes, wanted.etag, by=_actor(context)
        )
        return pb.UpdateApiKeyResponse(api_key=key_messages.message(key))

    async def RevokeApiKey(
        self, request: pb.RevokeApiKeyRequest, context: Any
    ) -> pb.RevokeApiKeyResponse:
        """See admin.proto."""
        key = await self._keys.run(
            self._store.keys.revoke, request.id, request.etag, by=_actor(context)
        )
        return pb.RevokeApiKeyResponse(api_key=key_messages.message(key))

    async def RotateApiKey(
        self, request: pb.RotateApiKeyRequest, context: Any
    ) -> pb.RotateApiKeyResponse:
        """See admin.proto."""
        keep = key_messages.keep(request)
        key, secret = await self._keys.run(
            self._store.keys.rotate, request.id, keep, request.etag, by=_actor(context)
        )
        return pb.RotateApiKeyResponse(api_key=key_messages.message(key), key=secret)

    async def Apply(self, request: pb.ApplyRequest, context: Any) -> pb.ApplyResponse:
        """See admin.proto."""
        apply = partial(
            self._store.apply,
            [key_messages.declared(one) for one in request.keys],
            key_messages.declared_defaults(request),
            prune=request.prune,
            dry_run=request.dry_run,
            by=_actor(context),
        )
        # It may take as long as a call for the log, as it may change many keys.
        return key_messages.applied_message(await self._log.run(apply))

    async def GetDefaults(
        self, request: pb.GetDefaultsRequest, context: Any
    ) -> pb.GetDefaultsResponse:
        """See admin.proto."""
        found = await self._keys.run(self._store.defaults)
        return pb.GetDefaultsResponse(defaults=key_messages.defaults_message(found))

    async def ListAuditRecords(
        self, request: pb.ListAuditRecordsRequest, context: Any
    ) -> pb.ListAuditRecordsResponse:
        """See admin.proto."""
        size = _page_size(request.page_size)
        query = partial(
            self._store.audit.list,
            key_id=request.api_key_id,
            action=request.action,
            since=message_fields.moment(request, "start_time"),
            until=message_fields.moment(request, "end_time"),
            before_id=_before_id(request.page_token),
            limit=size + 1,
        )
        found = await self._log.run(query)
        page = found[:size]
        more = str(page[-1].id) if len(found) > size else ""
        return pb.ListAuditRecordsResponse(
            records=map(key_messages.audit_message, page), next_page_token=more
        )

    async def ListDecisions(
        self, request: pb.ListDecisionsRequest, context: Any
    ) -> pb.ListDecisionsResponse:
        """See admin.proto."""
        size = _page_size(request.page_size)
        wanted = log_messages.log_filter(request)
        if request.export_format and not request.page_token:
            what = log_messages.exported(request)
            await self._log.run(self._store.audit.add, Action.LOG_EXPORT, _actor(context), what)
        found, reached = await self._log.run(
            self._store.log.search, wanted, after=request.page_token, limit=size + 1
        )
        page = found[:size]
        more = page[-1].id if len(found) > size else reached
        return pb.ListDecisionsResponse(
            decisions=map(log_messages.message, page), next_page_token=more
        )

    async def GetDecision(
        self, request: pb.GetDecisionRequest, context: Any
    ) -> pb.GetDecisionResponse:
        """See admin.proto."""
        record = await self._log.run(self._store.log.get, request.id)
        return pb.GetDecisionResponse(decision=log_messages.message(record))

    def _read_status(self) -> tuple[LogStatus, int, Standstill, list[Worker], str]:
        log = self._store.log
        running = self._store.workers.list()
        refused, problem = self._store.refused_keys.total(), self._store.why_unchangeable()
        return log.status(), refused, log.standstill(), running, problem

    def _followed(self) -> Any:
        if not self._table.is_known:
            return None
        return timestamp(datetime.now(UTC) - timedelta(seconds=self._table.staleness()))

    async def GetLogStatus(
        self, request: pb.GetLogStatusRequest, context: Any
    ) -> pb.GetLogStatusResponse:
        """See admin.proto."""
        status, refused, stands, running, problem = await self._log.run(self._read_status)
        oldest = timestamp(status.oldest) if status.oldest else None
        host, offset = furthest_off(running) or ("", None)
        gateways = sum(one.is_gateway for one in running)
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
            database_problem=problem,
            workers=len(running) - gateways,
            gateways=gateways,
        )


def _page_size(wanted: int) -> int:
    if wanted < 0:
        raise InvalidArgument("page_size is a number of rows, 0 or more")
    return min(wanted or _PAGE, _MAX_PAGE)


def _before_id(page_token: str) -> int:
    if not page_token:
        return 0
    if not page_token.isascii() or not page_token.isdecimal() or len(page_token) > 18:
        raise InvalidArgument("page_token is not one that ListAuditRecords gave")
    return int(page_token)


def _actor(context: Any) -> str:
    """The actor of a call to this API, as the audit trail names it: by the caller's address."""
    kind, _, peer = unquote(context.peer()).partition(":")
    host = peer.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else peer
    return f"admin api {host}"
