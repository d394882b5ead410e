"""What was changed, as a record of the audit trail says, in words."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from policyd.console.view import labels
from policyd.engine.policy import MODES, OVERRIDES
from policyd.keys.audit import AuditRecord

_NAMES = {
    "name": "Name",
    "accept": "Accepted identifiers",
    "expires_at": "Expires",
    "revoked_at": "Revoked",
    "suffix": "Last characters of the key",
    "previous_until": "Previous secret valid until",
    "end_user_headers": "End-user headers",
    "end_user_callers": "End-user callers",
    "with": "With",
    "sessions": "Sessions",
    "format": "Format",
    "filter": "Filter",
}
_NONE = labels.UNKNOWN
_DEFAULT = "Server's default"


class Change(NamedTuple):
    """One field that changed."""

    name: str
    before: str
    after: str


def changes(record: AuditRecord) -> list[Change]:
    """The fields that changed, with the values before and after. Of a new key: those set."""
    return [one for one in _changes(record) if one.before != one.after]


def _changes(record: AuditRecord) -> Iterator[Change]:
    for name in {**record.before, **record.after}:
        before, after = record.before.get(name), record.after.get(name)
        if name == "policies":
            yield from _policies(_mapping(before), _mapping(after))
        else:
            yield Change(_NAMES.get(name, labels.label(name)), _text(before), _text(after))


def _policies(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for name in {**before, **after}:
        title = labels.POLICIES.get(name, name)
        yield Change(title, _setting(before.get(name)), _setting(after.get(name)))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _setting(value: Any) -> str:
    setting = _mapping(value)
    mode = MODES.get(setting.get("mode") or "")
    may = OVERRIDES.get(setting.get("override") or "")
    parts = [labels.MODES[mode][0] if mode else "", str(setting.get("value") or "")]
    shown = ": ".join(filter(None, parts))
    if may and may.name != "ANY":
        shown = f"{shown or _DEFAULT}, override: {labels.OVERRIDES[may][0].lower()}"
    return shown or _NONE


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or _NONE
    text = "" if value is None else str(value)
    # A moment as the trail writes it: 2026-11-26T20:00:00+00:00.
    is_moment = text[10:11] == "T" and text.endswith("+00:00")
    return (f"{text[:10]} {text[11:19]} UTC" if is_moment else text) or _NONE
