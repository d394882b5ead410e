"""What administrators do, as the audit trail keeps it. It holds no secret."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from policyd.engine.settings import ApiKey, ServerDefaults, Setting, Settings
from policyd.engine.states import Mode, Override

Fields = dict[str, Any]
"""Names of fields, and their values as in JSON."""


class Action(StrEnum):
    """What was done."""

    KEY_CREATE = "key.create"
    KEY_UPDATE = "key.update"
    KEY_REVOKE = "key.revoke"
    KEY_ROTATE = "key.rotate"
    DEFAULTS_UPDATE = "defaults.update"
    SIGN_IN = "sign_in"
    SIGN_IN_FAILED = "sign_in.failed"
    SIGN_OUT = "sign_out"
    PASSWORD_SET = "password.set"  # noqa: S105  # no password
    LOG_EXPORT = "log.export"
    LOG_RETIRE = "log.retire"


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One thing that an administrator did."""

    id: int
    """Its number. Later changes have larger ones."""
    at: datetime
    """By the database's clock."""
    by: str
    """The actor: "cli ada@host", "console 192.0.2.7", "admin api 192.0.2.7". "": not known."""
    action: str
    """An Action, or one of a newer version."""
    key_id: str
    """The ID of the API key that it is about. "": it is about none."""
    key_name: str
    """The name that the key had then."""
    before: Fields
    """The fields that changed, as they were."""
    after: Fields
    """The same fields, as they are from then on."""
    revision: int
    """The revision that the change made. 0: it changed no settings."""


def changed_fields(before: ApiKey | None, after: ApiKey) -> tuple[Fields, Fields]:
    """The fields in which two states of a key differ. None: there was no key before."""
    old = _key_fields(before) if before else {}
    return _differing(old, _key_fields(after))


def changed_defaults(before: ServerDefaults, after: ServerDefaults) -> tuple[Fields, Fields]:
    """The fields in which two states of the server's defaults differ."""
    return _differing(_default_fields(before), _default_fields(after))


def _differing(old: Fields, new: Fields) -> tuple[Fields, Fields]:
    names = [name for name in new if old.get(name) != new[name]]
    before = {name: old[name] for name in names if name in old}
    after = {name: new[name] for name in names}
    if before and "policies" in names:
        before["policies"], after["policies"] = _of_both(old["policies"], new["policies"])
    return before, after


def _of_both(old: Fields, new: Fields) -> tuple[Fields, Fields]:
    """The policies whose settings differ. null: it was, or is, not set."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return {name: old.get(name) for name in names}, {name: new.get(name) for name in names}


def _key_fields(key: ApiKey) -> Fields:
    return {
        "name": key.name,
        "policies": _settings(key.policies),
        "accept": list(key.accept),
        "expires_at": _time(key.expires_at),
        "revoked_at": _time(key.revoked_at),
        "suffix": key.suffix,
        "previous_until": _time(key.previous_until),
    }


def _default_fields(defaults: ServerDefaults) -> Fields:
    return {
        "policies": _settings(defaults.policies),
        "end_user_headers": list(defaults.end_user_headers),
        "end_user_callers": list(defaults.end_user_callers),
    }


def _settings(settings: Settings) -> Fields:
    return {name: _setting(one) for name, one in settings}


def _setting(setting: Setting) -> Fields:
    return {
        "mode": _word(setting.mode),
        "value": setting.value,
        "override": _word(setting.override),
    }


def _word(member: Mode | Override | None) -> str | None:
    return member.name.lower() if member else None


def _time(at: datetime | None) -> str | None:
    return at.isoformat() if at else None
