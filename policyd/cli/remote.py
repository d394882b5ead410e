"""The administrator of a running server, over AdminService: see administration.py."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from google.protobuf.timestamp_pb2 import Timestamp

from policyd import errors
from policyd.cli import remote_log
from policyd.cli.administration import Status
from policyd.client.admin import AdminClient, CallFailed
from policyd.decision_log.record import Record
from policyd.descriptor import message_fields
from policyd.engine.settings import ApiKey, ServerDefaults, Settings
from policyd.keys.audit import Action, AuditRecord
from policyd.keys.settings import Applied, AppliedChange, DeclaredKey
from policyd.services import key_messages
from policyd.services.errors import TABLE
from policyd.services.log_messages import duration, timestamp
from policyd.store import LogFilter
from policyd.v1 import admin_pb2 as pb

_PAGE = 1000
_LONG = 120.0
"""Seconds for calls that may look at many rows."""
_TRIES = 5
"""Updates in a row that may find that another administrator has changed the key."""
_ERRORS = {reason: kind for kind, (_, reason) in TABLE.items()}
_ACTIONS = {
    pb.APPLIED_ACTION_UNSPECIFIED: Action.DEFAULTS_UPDATE,
    pb.APPLIED_ACTION_CREATE: Action.KEY_CREATE,
    pb.APPLIED_ACTION_UPDATE: Action.KEY_UPDATE,
    pb.APPLIED_ACTION_REVOKE: Action.KEY_REVOKE,
}


class OfServer:
    """An administrator of the server that `client` calls."""

    def __init__(self, client: AdminClient) -> None:
        self._client = client
        self._export_format = ""
        """The format of the file to which pages of the log are exported; "" for no file."""

    def _call(self, method: str, request: Any, timeout: float | None = None) -> Any:
        try:
            if timeout is None:
                return self._client.call(method, request)
            return self._client.call(method, request, timeout)
        except CallFailed as error:
            _raise(error)

    def create(
        self,
        name: str,
        policies: Settings,
        accept: tuple[str, ...],
        expires_at: datetime | None,
    ) -> tuple[ApiKey, str]:
        """See Administrator."""
        wanted = _key_message(name, policies, accept, expires_at)
        made = self._call("CreateApiKey", pb.CreateApiKeyRequest(api_key=wanted))
        return _api_key(made.api_key), made.key

    def all_keys(self, *, show_revoked: bool = False) -> list[ApiKey]:
        """See Administrator."""
        found: list[ApiKey] = []
        request = pb.ListApiKeysRequest(page_size=_PAGE, show_revoked=show_revoked)
        while True:
            page = self._call("ListApiKeys", request)
            found += map(_api_key, page.api_keys)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def get(self, key_id: str) -> ApiKey:
        """See Administrator."""
        return _api_key(self._call("GetApiKey", pb.GetApiKeyRequest(id=key_id)).api_key)

    def named(self, name: str) -> ApiKey:
        """See Administrator."""
        return _api_key(self._call("GetApiKey", pb.GetApiKeyRequest(name=name)).api_key)

    def update(self, key_id: str, changes: Mapping[str, Any]) -> ApiKey:
        """See Administrator."""
        if not callable(changes.get("policies")):
            return self._update(pb.ApiKey(id=key_id), changes)
        # The new settings are made from the current ones, so these must not change meanwhile.
        for left in reversed(range(_TRIES)):
            current = self.get(key_id)
            policies = changes["policies"](current.policies)
            wanted = pb.ApiKey(id=key_id, etag=current.etag)
            try:
                return self._update(wanted, {**changes, "policies": policies})
            except errors.EtagMismatch:
                if not left:
                    raise
        raise AssertionError

    def _update(self, wanted: pb.ApiKey, changes: Mapping[str, Any]) -> ApiKey:
        request = pb.UpdateApiKeyRequest(api_key=wanted)
        given = request.api_key
        for name, value in changes.items():
            if name == "policies":
                given.MergeFrom(pb.ApiKey(policies=_policies(value)))
            elif name == "accept":
                given.accept.extend(value)
            elif name == "expires_at":
                given.MergeFrom(pb.ApiKey(expire_time=_stamp(value)))
            else:
                given.name = value
            request.update_mask.paths.append(_PATHS.get(name, name))
        return _api_key(self._call("UpdateApiKey", request).api_key)

    def rotate(self, key_id: str, keep: timedelta) -> tuple[ApiKey, str]:
        """See Administrator."""
        request = pb.RotateApiKeyRequest(id=key_id, keep_previous=duration(keep))
        made = self._call("RotateApiKey", request)
        return _api_key(made.api_key), made.key

    def revoke(self, key_id: str) -> ApiKey:
        """See Administrator."""
        return _api_key(self._call("RevokeApiKey", pb.RevokeApiKeyRequest(id=key_id)).api_key)

    def defaults(self) -> ServerDefaults | None:
        """See Administrator."""
        found = _defaults(self._call("GetDefaults", pb.GetDefaultsRequest()).defaults)
        return found if found.revision else None

    def apply(
        self,
        declared: Sequence[DeclaredKey],
        defaults: ServerDefaults | None,
        *,
        prune: bool,
        dry_run: bool,
    ) -> Applied:
        """See Administrator."""
        request = pb.ApplyRequest(
            keys=map(_declared_message, declared),
            defaults=None if defaults is None else key_messages.defaults_message(defaults),
            prune=prune,
            dry_run=dry_run,
        )
        done = self._call("Apply", request, _LONG)
        return Applied(tuple(map(_change, done.changes)), done.revision)

    def audit(
        self, key_id: str, action: str, since: datetime | None, limit: int
    ) -> list[AuditRecord]:
        """See Administrator."""
        request = pb.ListAuditRecordsRequest(
            api_key_id=key_id, action=action, start_time=_stamp(since)
        )
        found: list[AuditRecord] = []
        while len(found) < limit:
            request.page_size = min(limit - len(found), _PAGE)
            page = self._call("ListAuditRecords", request)
            found += map(_audit_record, page.records)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        return found

    def page(self, wanted: LogFilter, *, after: str = "", limit: int = 50) -> list[Record]:
        """See Administrator."""
        if not limit:
            return []
        request = remote_log.request(wanted, after, min(limit, _PAGE))
        request.export_format = self._export_format
        answer = self._call("ListDecisions", request, _LONG)
        while answer.next_page_token and not answer.decisions:
            # The server has looked at many decisions that do not fit, and goes on from there.
            request.page_token = answer.next_page_token
            answer = self._call("ListDecisions", request, _LONG)
        return [*map(remote_log.record, answer.decisions)]

    def decision(self, decision_id: str) -> Record:
        """See Administrator."""
        answer = self._call("GetDecision", pb.GetDecisionRequest(id=decision_id))
        return remote_log.record(answer.decision)

    def status(self) -> Status:
        """See Administrator."""
        return remote_log.status(self._call("GetLogStatus", pb.GetLogStatusRequest(), _LONG))

    def shipped(self, spool: str) -> dict[str, int]:
        """See Administrator."""
        return {}

    def time(self) -> datetime:
        """See Administrator."""
        newest = self.page(LogFilter(), limit=1)
        return newest[0].time if newest else datetime.now(UTC)

    def note_export(self, what: Mapping[str, Any]) -> None:
        """See Administrator. The server records it, with the filter, when it is asked for the first
        page."""
        self._export_format = str(what["format"])


_PATHS = {"expires_at": "expire_time"}
"""Fields of a key that have another name in AdminService."""


def _raise(error: CallFailed) -> NoReturn:
    kind = _ERRORS.get(error.reason)
    # The client's text about the token says more than the server's.
    if kind is None or kind is errors.Unauthenticated:
        raise error
    raise kind(str(error)) from None


def _key_message(
    name: str, policies: Settings, accept: tuple[str, ...], expires_at: datetime | None
) -> pb.ApiKey:
    return pb.ApiKey(
        name=name, policies=_policies(policies), accept=accept, expire_time=_stamp(expires_at)
    )


def _declared_message(one: DeclaredKey) -> pb.DeclaredKey:
    key = _key_message(one.name, one.policies, one.accept, one.expires_at)
    return pb.DeclaredKey(api_key=key, digest=one.digest or "")


def _policies(settings: Settings) -> Mapping[str, pb.PolicySetting]:
    return key_messages.defaults_message(ServerDefaults(settings)).policies


def _stamp(at: datetime | None) -> Timestamp | None:
    return timestamp(at) if at else None


def _api_key(message: pb.ApiKey) -> ApiKey:
    return ApiKey(
        id=message.id,
        name=message.name,
        policies=key_messages.all_settings(message),
        accept=tuple(message.accept),
        created_at=_at(message, "create_time"),
        updated_at=_at(message, "update_time"),
        revoked_at=message_fields.moment(message, "revoke_time"),
        revision=message.revision,
        expires_at=message_fields.moment(message, "expire_time"),
        previous_until=message_fields.moment(message, "previous_secret_expire_time"),
        suffix=message.suffix,
    )


def _at(message: pb.ApiKey, field: str) -> datetime:
    return message_fields.moment(message, field) or datetime.fromtimestamp(0, UTC)


def _defaults(message: pb.Defaults) -> ServerDefaults:
    found = key_messages.declared_defaults(pb.ApplyRequest(defaults=message))
    assert found is not None
    return replace(found, revision=message.revision)


def _change(one: pb.AppliedChange) -> AppliedChange:
    def key(field: str) -> ApiKey | None:
        found = message_fields.optional(one, field)
        return None if found is None else _api_key(found)

    def held(field: str) -> ServerDefaults | None:
        found = message_fields.optional(one, field)
        return None if found is None else _defaults(found)

    return AppliedChange(
        _ACTIONS.get(one.action, Action.KEY_UPDATE),
        key("before"),
        key("after"),
        one.key,
        held("defaults_before"),
        held("defaults_after"),
    )


def _audit_record(one: pb.AuditRecord) -> AuditRecord:
    return AuditRecord(
        id=one.id,
        at=one.time.ToDatetime(tzinfo=UTC),
        by=one.actor,
        action=one.action,
        key_id=one.api_key_id,
        key_name=one.api_key_name,
        before=json.loads(one.before or "{}"),
        after=json.loads(one.after or "{}"),
        revision=one.revision,
    )
