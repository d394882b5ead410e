"""AdminService's messages -> keys, settings and the server's defaults, and back."""

import json
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration

from policyd.descriptor.message_fields import moment
from policyd.engine.places import IDENTIFIERS
from policyd.engine.settings import ApiKey, ServerDefaults, Setting, Settings
from policyd.engine.states import Mode, Override
from policyd.errors import InvalidArgument
from policyd.keys.audit import Action, AuditRecord
from policyd.keys.settings import Applied, AppliedChange, DeclaredKey
from policyd.policies import TABLE
from policyd.services.log_messages import timestamp
from policyd.store import MAX_KEEP
from policyd.v1 import admin_pb2 as pb
from policyd.v1 import policy_pb2

_Enum = TypeVar("_Enum", Mode, Override)
_KEEP = timedelta(days=1)
"""How long the secret before a rotation stays in force unless the request says."""


_ORIGINAL = frozenset({"enforce_user_ids", "override_policy"})
_PATHS = frozenset({"name", "accept", "policies", "expire_time"}) | _ORIGINAL
_ONE = "policies."


def checked_paths(paths: Iterable[str]) -> frozenset[str]:
    """The fields that a mask names. Raises InvalidArgument where one of them cannot be changed."""
    named = frozenset(paths)
    if unknown := sorted(path for path in named - _PATHS if not path.startswith(_ONE)):
        known = ", ".join(sorted(_PATHS))
        raise InvalidArgument(
            f"{', '.join(unknown)} cannot be changed: {known} and policies.NAME can"
        )
    return named


def changes(wanted: pb.ApiKey, paths: frozenset[str]) -> dict[str, Any]:
    """What an update changes, as Keys.update() takes it. Raises InvalidArgument."""
    found: dict[str, Any] = {}
    if "name" in paths:
        found["name"] = wanted.name
    if "accept" in paths:
        found["accept"] = accept(wanted)
    if "expire_time" in paths:
        found["expires_at"] = moment(wanted, "expire_time")
    if policies := paths - {"name", "accept", "expire_time"}:
        found["policies"] = lambda current: _changed_settings(wanted, policies, current)
    return found


def accept(key: pb.ApiKey) -> tuple[str, ...]:
    """The places that a key is to accept."""
    return tuple(key.accept) or IDENTIFIERS


def all_settings(key: pb.ApiKey) -> Settings:
    """The settings of a new key. The older fields are a view of one of them."""
    others = _settings(key.policies)
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
    given = _settings(key.policies)
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


def _settings(given: Mapping[str, pb.PolicySetting]) -> dict[str, Setting]:
    return {name: _setting(name, one) for name, one in given.items()}


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


def keep(request: pb.RotateApiKeyRequest) -> timedelta:
    """How long the previous secret stays in force. Raises InvalidArgument."""
    if not request.HasField("keep_previous"):
        return _KEEP
    given: Duration = request.keep_previous
    try:
        return given.ToTimedelta()
    except (ValueError, OverflowError):
        raise InvalidArgument(f"keep_previous takes 0 to {MAX_KEEP.days} days") from None


def declared(one: pb.DeclaredKey) -> DeclaredKey:
    """A key that should be there. Raises InvalidArgument."""
    key = one.api_key
    try:
        return DeclaredKey(
            key.name, all_settings(key), accept(key), moment(key, "expire_time"), one.digest or None
        )
    except InvalidArgument as error:
        raise InvalidArgument(f"the key {key.name[:64]!r}: {error}") from None


def declared_defaults(request: pb.ApplyRequest) -> ServerDefaults | None:
    """The defaults that a request declares. None: they stay as they are."""
    if not request.HasField("defaults"):
        return None
    given = request.defaults
    return ServerDefaults(
        tuple(_settings(given.policies).items()),
        tuple(given.end_user_headers),
        tuple(given.end_user_callers),
    )


def defaults_message(defaults: ServerDefaults | None) -> pb.Defaults:
    """The message for the server's defaults."""
    held = defaults or ServerDefaults()
    return pb.Defaults(
        policies={name: _policy_message(setting) for name, setting in held.policies},
        end_user_headers=held.end_user_headers,
        end_user_callers=held.end_user_callers,
        revision=held.revision,
    )


def applied_message(applied: Applied) -> pb.ApplyResponse:
    """The message for what a declaration changed."""
    changes = map(_change_message, applied.changes)
    return pb.ApplyResponse(changes=changes, revision=applied.revision)


_ACTIONS = {
    Action.KEY_CREATE: pb.APPLIED_ACTION_CREATE,
    Action.KEY_UPDATE: pb.APPLIED_ACTION_UPDATE,
    Action.KEY_REVOKE: pb.APPLIED_ACTION_REVOKE,
    Action.DEFAULTS_UPDATE: pb.APPLIED_ACTION_UNSPECIFIED,
}


def _change_message(one: AppliedChange) -> pb.AppliedChange:
    old, new = one.defaults_before, one.defaults_after
    return pb.AppliedChange(
        action=_ACTIONS[one.action],
        before=message(one.before) if one.before else None,
        after=message(one.after) if one.after else None,
        key=one.secret,
        defaults_before=defaults_message(old) if old else None,
        defaults_after=defaults_message(new) if new else None,
    )


def audit_message(record: AuditRecord) -> pb.AuditRecord:
    """The message for a record of the audit trail."""
    return pb.AuditRecord(
        id=record.id,
        time=timestamp(record.at),
        actor=record.by,
        action=record.action,
        api_key_id=record.key_id,
        api_key_name=record.key_name,
        before=json.dumps(record.before, ensure_ascii=False),
        after=json.dumps(record.after, ensure_ascii=False),
        revision=record.revision,
    )


def message(key: ApiKey) -> pb.ApiKey:
    """The message for a key."""
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
        expire_time=timestamp(key.expires_at) if key.expires_at else None,
        previous_secret_expire_time=timestamp(key.previous_until) if key.previous_until else None,
        suffix=key.suffix,
    )


def _policy_message(setting: Setting) -> pb.PolicySetting:
    return pb.PolicySetting(
        mode=policy_pb2.EnforceMode.ValueType(setting.mode or 0),
        value=setting.value,
        override_policy=pb.OverridePolicy.ValueType(setting.override or 0),
    )
