"""What a gateway's operator sets for a route: texts of a configuration -> RouteSettings.

mode        the mode of the original policy
override    which requests may override it
accept      the places in which an end user counts, with commas between them
POLICY      any policy's setting, as MODE or MODE:VALUE
POLICY.override
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import TypeVar

from policyd.engine.places import accept_problem
from policyd.engine.policy import MODES, OVERRIDES, parse_setting
from policyd.engine.settings import RouteSettings, Setting
from policyd.errors import InvalidArgument
from policyd.policies import TABLE

_Member = TypeVar("_Member")
_OVERRIDE = ".override"
_KNOWN = ("mode", "override", "accept", "POLICY", "POLICY.override")


# Routes are few, and each sends the same with every request.
@lru_cache(maxsize=1024)
def route_settings(
    given: frozenset[tuple[str, str]], where: str, prefix: str = ""
) -> RouteSettings:
    """The settings that pairs of a name and a value make.

    `where` names for errors what holds the pairs; each name has `prefix` before it there.

    Raises InvalidArgument where a name or a value is unknown: a slip must allow nothing.
    """
    found = dict(given)
    where = f"{where} set {prefix}"
    settings: dict[str, Setting] = {}
    original = TABLE.original.name
    for short, full in (("mode", original), ("override", original + _OVERRIDE)):
        if short in found and full in found:
            raise InvalidArgument(f"{where}{short} and {full}, which are one setting: give one")
    if "mode" in found or "override" in found:
        settings[original] = Setting(
            _one_of("mode", found, MODES, where), "", _one_of("override", found, OVERRIDES, where)
        )
    for name in sorted(found.keys() - {"mode", "override", "accept"}):
        policy = name.removesuffix(_OVERRIDE)
        if policy not in TABLE.by_name:
            raise InvalidArgument(
                f"{where}{name[:80]}, which policyd does not know: it knows "
                f"{', '.join(prefix + one for one in _KNOWN)}, where POLICY is one of "
                f"{', '.join(TABLE.by_name)}"
            )
        held = settings.get(policy, Setting())
        settings[policy] = _set(held, policy, name, found, where)
    return RouteSettings(TABLE.in_order(settings.items()), _accept(found, where))


def _set(held: Setting, policy: str, name: str, found: Mapping[str, str], where: str) -> Setting:
    if name != policy:
        return held._replace(override=_one_of(name, found, OVERRIDES, where))
    try:
        written = parse_setting(TABLE.by_name[policy], found[name])
    except ValueError as error:
        raise InvalidArgument(f"{where}{name} to {found[name][:80]!r}: {error}") from None
    return held._replace(mode=written.mode, value=written.value)


def _one_of(
    name: str, found: Mapping[str, str], members: Mapping[str, _Member], where: str
) -> _Member | None:
    if name not in found:
        return None
    if found[name] not in members:
        raise _unknown(name, found[name], f"one of {', '.join(members)}", where)
    return members[found[name]]


def _accept(found: Mapping[str, str], where: str) -> tuple[str, ...]:
    if "accept" not in found:
        return ()
    accepted = tuple(one.strip() for one in found["accept"].split(","))
    if problem := accept_problem(accepted):
        raise _unknown("accept", found["accept"], f"a list of places, as {problem}", where)
    return accepted


def _unknown(name: str, value: str, fix: str, where: str) -> InvalidArgument:
    return InvalidArgument(f"{where}{name} to {value[:80]!r}: give {fix}")
