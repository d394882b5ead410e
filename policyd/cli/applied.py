"""What applying a declaration changes, for people and as JSON values."""

from collections.abc import Iterator
from typing import Any

import click

from policyd.cli import setting_words
from policyd.cli.keys import as_dict
from policyd.cli.terminal import printable
from policyd.engine.settings import ApiKey, ServerDefaults, Setting, Settings
from policyd.engine.states import Override
from policyd.keys.audit import Action
from policyd.keys.settings import Applied, AppliedChange
from policyd.policies import TABLE

_NOT_SET = "(not set)"
# Of a key; each other change of one is told field by field.
_VERBS = {Action.KEY_CREATE: "is created", Action.KEY_REVOKE: "is revoked for good"}


def lines(applied: Applied) -> Iterator[str]:
    """The changes, a line for each field, coloured as a terminal shows them."""
    for change in applied.changes:
        mark, colour = _mark(change.action)
        yield click.style(f"{mark} {printable(_title(change))}", fg=colour)
        for field, text in _differences(change):
            yield printable(f"    {field}: {text}")


def _mark(action: Action) -> tuple[str, str]:
    if action is Action.KEY_CREATE:
        return "+", "green"
    return ("-", "red") if action is Action.KEY_REVOKE else ("~", "yellow")


def summary(applied: Applied) -> str:
    """How many changes of each kind there are."""
    words = {
        "created": Action.KEY_CREATE,
        "changed": Action.KEY_UPDATE,
        "revoked": Action.KEY_REVOKE,
    }
    counts = {
        word: sum(one.action == action for one in applied.changes) for word, action in words.items()
    }
    told = [
        f"{count} {'key' if count == 1 else 'keys'} {word}"
        for word, count in counts.items()
        if count
    ]
    if any(one.action == Action.DEFAULTS_UPDATE for one in applied.changes):
        told.append("defaults changed")
    return ", ".join(told)


def as_values(applied: Applied, *, dry_run: bool) -> dict[str, Any]:
    """The changes as JSON values."""
    return {
        "dry_run": dry_run,
        "revision": applied.revision,
        "changes": [_change(one) for one in applied.changes],
    }


def _change(one: AppliedChange) -> dict[str, Any]:
    if one.action == Action.DEFAULTS_UPDATE:
        before, after = one.defaults_before, one.defaults_after
        return {
            "action": one.action.value,
            "before": _defaults(before or ServerDefaults()),
            "after": _defaults(after or ServerDefaults()),
        }
    found = {
        "action": one.action.value,
        "before": as_dict(one.before) if one.before else None,
        "after": as_dict(one.after) if one.after else None,
    }
    return found | ({"key": one.secret} if one.secret else {})


def _defaults(held: ServerDefaults) -> dict[str, Any]:
    return {
        "policies": setting_words.as_dict(held.policies),
        "end_user_headers": list(held.end_user_headers),
        "end_user_callers": list(held.end_user_callers),
    }


def _title(change: AppliedChange) -> str:
    key = change.after or change.before
    if key is None:
        return "the server's defaults"
    return f"key {key.name} {_VERBS.get(change.action, 'changes')}"


def _differences(change: AppliedChange) -> Iterator[tuple[str, str]]:
    if change.action == Action.KEY_REVOKE:
        return
    if change.action == Action.DEFAULTS_UPDATE:
        old, new = (
            _fields_of_defaults(one) for one in (change.defaults_before, change.defaults_after)
        )
    else:
        old, new = (_fields_of_key(one) for one in (change.before, change.after))
    for field in {**old, **new}:
        before, after = old.get(field, _NOT_SET), new.get(field, _NOT_SET)
        if before != after:
            yield (
                field,
                after if before == _NOT_SET and change.before is None else f"{before} -> {after}",
            )
    if _has_new_secret(change):
        yield "secret", "that of the declared digest, from now on; the previous one ends"


def _has_new_secret(change: AppliedChange) -> bool:
    before, after = change.before, change.after
    return bool(before and after and before.suffix and before.suffix != after.suffix)


def _fields_of_key(key: ApiKey | None) -> dict[str, str]:
    if key is None:
        return {}
    found = _policies(key.policies)
    found["accept"] = ", ".join(key.accept)
    if key.expires_at:
        found["expires"] = key.expires_at.isoformat()
    return found


def _fields_of_defaults(held: ServerDefaults | None) -> dict[str, str]:
    held = held or ServerDefaults()
    found = _policies(held.policies)
    if held.end_user_headers:
        found["end_user_headers"] = ", ".join(held.end_user_headers)
        found["end_user_callers"] = ", ".join(held.end_user_callers)
    return found


def _policies(settings: Settings) -> dict[str, str]:
    # A key always has an override of the original policy.
    unset = (Setting(), Setting(override=Override.ANY))
    return {
        f"policies.{name}": setting_words.text(one)
        for name, one in settings
        if one not in unset or (name != TABLE.original.name and one != Setting())
    }
