"""The settings of policies, in words and as JSON values."""

from typing import Any

from policyd.cli.terminal import printable
from policyd.decision_log.results import LoggedResult
from policyd.engine.model import Result, cut
from policyd.engine.settings import Setting, Settings
from policyd.engine.states import Ignored, Mode, Override, Source
from policyd.policies import TABLE

_SOURCES = {
    Source.HEADER: "the header",
    Source.KEY: "the key",
    Source.DEFAULT: "the server",
    Source.ROUTE: "the route",
}
_IGNORED = {
    Ignored.NOT_IGNORED: "",
    Ignored.LOCKED: "header ignored, as the setting is locked",
    Ignored.TIGHTEN_ONLY: "header ignored, as it may only tighten",
    Ignored.INVALID: "header not valid",
}
_BRIEF = 24
"""Characters of a value in a list."""


def word(member: Mode | Override | None) -> str | None:
    """The word that operators use for a mode or override."""
    return member.name.lower() if member else None


def as_dict(settings: Settings) -> dict[str, Any]:
    """Settings by policy, as JSON values. What is not set is null."""
    return {
        name: {"mode": word(one.mode), "value": one.value, "override": word(one.override)}
        for name, one in settings
    }


def original(settings: Settings) -> tuple[str | None, str]:
    """The mode and the override of the original policy, which have fields of their own."""
    setting = TABLE.original_of(settings)
    return word(setting.mode), (setting.override or Override.ANY).name.lower()


def text(setting: Setting) -> str:
    """A setting as people write it: "enforce:500", with its override where that is set."""
    mode = word(setting.mode) or "default"
    shown = f"{mode}:{printable(setting.value)}" if setting.value else mode
    return f"{shown} ({word(setting.override)})" if setting.override else shown


def others(settings: Settings, *, are_brief: bool = False) -> list[str]:
    """The settings of all policies but the original one: "NAME=enforce:500"."""
    return [
        f"{name}={text(_shortened(one) if are_brief else one)}"
        for name, one in settings
        if name != TABLE.original.name
    ]


def _shortened(setting: Setting) -> Setting:
    return setting._replace(value=cut(setting.value, _BRIEF))


def finding(result: Result | LoggedResult, told: str) -> str:
    """The setting of a policy that judged, where it came from, and what it found."""
    setting = text(Setting(result.mode, result.value))
    parts = (f"{setting} by {_SOURCES[result.source]}", told, _IGNORED[result.ignored])
    return "; ".join(filter(None, parts))


def logged(result: LoggedResult) -> str:
    """The setting of a policy that judged a logged request, and what it found."""
    message = result.message
    told = "" if message is None else f"violated: {message}" if message else "failed"
    return printable(f"{result.policy}={finding(result, told)}")
