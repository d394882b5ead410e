"""A declaration as the file that `policyd export` writes."""

from typing import Any

import yaml

from policyd.cli.declaration import DEFAULT, VERSION, Declaration
from policyd.engine.settings import Setting, Settings
from policyd.engine.states import Override
from policyd.keys.settings import DeclaredKey
from policyd.policies import TABLE


def write(declaration: Declaration) -> str:
    """The file that declares this, without digests and files of secrets: policyd tells neither."""
    top: dict[str, Any] = {"version": VERSION}
    if (held := declaration.defaults) is not None:
        lists = {
            "end_user_headers": list(held.end_user_headers),
            "end_user_callers": list(held.end_user_callers),
        }
        top["defaults"] = {"policies": _policies_as_written(held.policies), **lists}
    top["keys"] = {one.name: _key_as_written(one) for one in declaration.keys}
    text: str = yaml.safe_dump(top, sort_keys=False, allow_unicode=True, width=100)
    return text


def _key_as_written(key: DeclaredKey) -> dict[str, Any]:
    # A key always has an override of the original policy.
    policies = TABLE.in_order((name, _without_any(name, one)) for name, one in key.policies)
    expires = key.expires_at.isoformat().replace("+00:00", "Z") if key.expires_at else None
    fields = {
        "policies": _policies_as_written(policies),
        "accept": list(key.accept),
        "expires": expires,
    }
    return {name: value for name, value in fields.items() if value}


def _without_any(name: str, one: Setting) -> Setting:
    is_usual = name == TABLE.original.name and one.override is Override.ANY
    return one._replace(override=None) if is_usual else one


def _policies_as_written(settings: Settings) -> dict[str, Any]:
    return {name: _setting_as_written(one) for name, one in settings if one != Setting()}


def _setting_as_written(one: Setting) -> str | dict[str, str]:
    mode = one.mode.name.lower() if one.mode else DEFAULT
    if one.override is None:
        return f"{mode}:{one.value}" if one.value else mode
    fields = {"mode": mode, "value": one.value, "override": one.override.name.lower()}
    return {name: word for name, word in fields.items() if word}
