"""AdminService: API keys and their settings, and the decision log.

The store blocks, so calls to it run in threads: _AT_ONCE of them for keys, and as many for the log,
whose calls may take longer. Further calls wait for a turn, up to _WAITING of them.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from policyd.command.deadline import TIMEOUT
from policyd.command.threads import StoreThreads
from policyd.engine.places import IDENTIFIERS
from policyd.engine.settings import ApiKey, Setting, Settings
from policyd.engine.states import Mode, Override
from policyd.errors import InvalidArgument, KeyNotFound
from policyd.keys.key_table import KeyTable
from policyd.policies import TABLE
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
        wanted = request.api_key
        key, secret = await self._keys.run(
            self._store.keys.create, wanted.name, _all_settings(wanted), _accept(wanted)
        )
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
        paths = request.update_mask.paths
        key = await self._keys.run(self._update, wanted, _checked_paths(paths))
        return pb.UpdateApiKeyResponse(api_key=_message(key))

    def _update(self, wanted: pb.ApiKey, paths: frozenset[str]) -> ApiKey:
        changes: dict[str, Any] = {}
        if "name" in paths:
            changes["name"] = wanted.name
        if "accept" in paths:
            changes["accept"] = _accept(wanted)
        if policies := paths - {"name", "accept"}:
            changes["policies"] = lambda current: _changed_settings(wanted, policies, current)
        return self._store.keys.update(wanted.id, changes, wanted.etag)

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


_ORIGINAL = frozenset({"enforce_user_ids", "override_policy"})
_PATHS = frozenset({"name", "accept", "policies"}) | _ORIGINAL
_ONE = "policies."


def _checked_paths(paths: Iterable[str]) -> frozenset[str]:
    named = frozenset(paths)
    if unknown := sorted(path for path in named - _PATHS if not path.startswith(_ONE)):
        known = ", ".join(sorted(_PATHS))
        raise InvalidArgument(
            f"{', '.join(unknown)} cannot be changed: {known} and policies.NAME can"
        )
    return named


def _accept(key: pb.ApiKey) -> tuple[str, ...]:
    return tuple(key.accept) or IDENTIFIERS


def _all_settings(key: pb.ApiKey) -> Settings:
    """The settings of a new key. The older fields are a view of one of them."""
    others = {name: _setting(name, one) for name, one in key.policies.items()}
    mode, may = _mode(key.enforce_user_ids, ""), _override(key.override_policy, "")
    if TABLE.original.name not in others:
        return TABLE.with_original(mode, may, tuple(others.items()))
    named = others[TABLE.original.name]
    _check_alike("enforce_user_ids", mode, named.mode)
    _check_alike("override_policy", may, named.override)
    return TABLE.in_order(others.items())


def _check_alike(field: str, given: object, in_map: object) -> None:
    """Raises InvalidArgument where the older field and the map set the same differently."""
    if given and in_map and given != in_map:
        raise InvalidArgument(
            f"{field} and policies[{TABLE.original.name}] differ: they are one setting, so give one"
        )


def _changed_settings(key: pb.ApiKey, paths: frozenset[str], current: Settings) -> Settings:
    """A key's settings after a change of those that `paths` name."""
    given = {name: _setting(name, one) for name, one in key.policies.items()}
    settings = given if "policies" in paths else dict(current)
    for path in paths:
        if path.startswith(_ONE):
            name = path.removeprefix(_ONE)
            settings[name] = given.get(name, Setting())
    held = TABLE.original_of(tuple(settings.items()))
    if "enforce_user_ids" in paths:
        held = held._replace(mode=_mode(key.enforce_user_ids, ""))
    if "override_policy" in paths:
        held = held._replace(override=_override(key.override_policy, ""))
    return TABLE.with_original(held.mode, held.override, tuple(settings.items()))


def _setting(name: str, one: pb.PolicySetting) -> Setting:
    return Setting(_mode(one.mode, name), one.value, _override(one.override_policy, name))


def _mode(number: int, policy: str) -> Mode | None:
    field = f"policies[{policy}].mode" if policy else "enforce_user_ids"
    return _one_of(Mode, number, field) if number else None


def _override(number: int, policy: str) -> Override | None:
    field = f"policies[{policy}].override_policy" if policy else "override_policy"
    return _one_of(Override, number, field) if number else None


def _one_of(enumeration: type[_Enum], number: int, field: str) -> _Enum:
    try:
        return enumeration(number)
    except ValueError:
        raise InvalidArgument(f"{field} has no value {number}: see admin.proto") from None


def _message(key: ApiKey) -> pb.ApiKey:
    original = TABLE.original_of(key.policies)
    return pb.ApiKey(
        id=key.id,
        name=key.name,
        enforce_user_ids=policy_pb2.EnforceMode.ValueType(original.mode or 0),
        override_policy=pb.OverridePolicy.ValueType(original.override or Override.ANY),
        policies={name: _policy_message(setting) for name, setting in key.policies},
        accept=key.accept,
        create_time=timestamp(key.created_at),
        update_time=timestamp(key.updated_at),
        revoke_time=timestamp(key.revoked_at) if key.revoked_at else None,
        revision=key.revision,
        etag=key.etag,
    )


def _policy_message(setting: Setting) -> pb.PolicySetting:
    return pb.PolicySetting(
        mode=policy_pb2.EnforceMode.ValueType(setting.mode or 0),
        value=setting.value,
        override_policy=pb.OverridePolicy.ValueType(setting.override or 0),
    )
