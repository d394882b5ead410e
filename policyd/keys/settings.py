"""Changes of a key's settings, checked against what each policy takes.

A key may have a setting of a policy that this version does not know, as a newer version has written
it. Such a setting stays as it is until an administrator removes it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from policyd.engine.model import Mode, Override, Setting
from policyd.engine.policy import parse_setting
from policyd.errors import InvalidArgument
from policyd.policies import BY_NAME, TABLE

Settings = tuple[tuple[str, Setting], ...]
"""Policies' settings by name, in the contract's order; those that this version does not know come
last."""
Change = Setting | Mapping[str, Any]
"""A policy's new setting, or only those of its fields that change. Setting() removes it."""
Changes = Mapping[str, Change] | Iterable[tuple[str, Change]]
"""Changes of policies' settings by name."""

MAX_VALUE = 100_000
"""Characters of a setting's value."""
_ORDER = {policy.name: number for number, policy in enumerate(TABLE)}
_NOTHING = Setting()


def changed(current: Settings, changes: Changes) -> Settings:
    """The settings after `changes`. Raises InvalidArgument."""
    found = dict(current)
    for name, change in dict(changes).items():
        before = found.pop(name, _NOTHING)
        wanted = change if isinstance(change, Setting) else before._replace(**change)
        # What is there already may stay, though this version may not know it.
        setting = wanted if wanted in (before, _NOTHING) else _valid(name, wanted)
        if setting != _NOTHING:
            found[name] = setting
    return in_order(found)


def in_order(settings: Mapping[str, Setting]) -> Settings:
    """Settings by name as a key has them."""
    last = len(_ORDER)
    names = sorted(settings, key=lambda name: (_ORDER.get(name, last), name))
    return tuple((name, settings[name]) for name in names)


def _valid(name: str, setting: Setting) -> Setting:
    policy = BY_NAME.get(name)
    if policy is None:
        raise InvalidArgument(
            f"there is no policy {name[:64]!r}: the policies are {', '.join(BY_NAME)}"
        )
    mode, value, override = setting
    if len(value) > MAX_VALUE:
        raise InvalidArgument(f"{name} takes a value of up to {MAX_VALUE} characters")
    try:
        mode = None if mode is None else Mode(mode)
        override = None if override is None else Override(override)
        if mode or value:
            word = (mode or Mode.ENFORCE).name.lower()
            value = parse_setting(policy, f"{word}:{value}" if value else word).value
    except ValueError as error:
        raise InvalidArgument(f"{name} cannot be set so: {error}") from None
    return Setting(mode, value, override)
