"""A stand-in until the core is merged: what a policy declares, as far as the store needs it."""

from collections.abc import Callable
from dataclasses import dataclass

from policyd.engine.model import Mode, Setting


@dataclass(frozen=True, slots=True)
class Policy:
    name: str
    parse: Callable[[str], object]


def parse_setting(policy: Policy, text: str) -> Setting:
    word, _, value = text.partition(":")
    try:
        mode = Mode[word.upper()]
    except KeyError:
        raise ValueError(f"{word!r} is no mode: give off, audit or enforce") from None
    if value or mode is not Mode.OFF:
        policy.parse(value)
    return Setting(mode, value)
