"""Which setting of a policy is in force: the levels, and the header that may override them.

- The route's setting holds where it has one, else the key's, else the server's default.
- A valid override header beats it, where the route's, key's or server's override allows that.
- An invalid header never weakens it. Of several values, the strictest valid one may tighten it.
"""

from functools import lru_cache, reduce
from typing import Any, NamedTuple

from policyd.engine.kinds import Anything, Kind, Wanted
from policyd.engine.model import Result
from policyd.engine.policy import Policy, Table
from policyd.engine.settings import Setting, Settings, setting_of
from policyd.engine.states import Ignored, Mode, Override, Source


class Plan(NamedTuple):
    """A policy, and the setting by which it is to judge."""

    policy: Policy
    result: Result
    """The policy's result before it has judged: without a violation."""
    parsed: Any = None
    """The setting's value as the policy's kind has parsed it. None where the policy is off."""
    problem: Exception | None = None
    """Why the policy cannot judge by this setting, if it cannot."""


@lru_cache(maxsize=4096)
def plan_of(
    table: Table,
    route: Settings,
    key: Settings,
    defaults: Settings,
    headers: frozenset[str] | None,
) -> tuple[Plan, ...]:
    """The policies that a level sets or one of these headers names, with the setting that holds
    without a header. The original one is always there."""
    names = {name for level in (route, key, defaults) for name, _ in level}
    names.add(table.original.name)
    if headers:
        names |= {table.by_header[header].name for header in headers if header in table.by_header}
    known = [policy for policy in table.policies if policy.name in names]
    unknown = [_unknown(name) for name in sorted(names - set(table.by_name))]
    return tuple(_plan(policy, route, key, defaults) for policy in (*known, *unknown))


def _plan(policy: Policy, route: Settings, key: Settings, defaults: Settings) -> Plan:
    levels = (
        (setting_of(route, policy.name), Source.ROUTE),
        (setting_of(key, policy.name), Source.KEY),
        (setting_of(defaults, policy.name), Source.DEFAULT),
    )
    nothing = Setting(), Source.DEFAULT
    setting, source = next((one for one in levels if one[0].mode), nothing)
    override = next((one.override for one, _ in levels if one.override), Override.ANY)
    mode = setting.mode or Mode.OFF
    return _made(policy, mode, setting.value, source, override, Ignored.NOT_IGNORED)


def _made(
    policy: Policy, mode: Mode, value: str, source: Source, override: Override, ignored: Ignored
) -> Plan:
    result = Result(policy.name, mode, value, source, override, ignored)
    if mode is Mode.OFF:
        return Plan(policy, result)
    try:
        return Plan(policy, result, policy.kind.parse(value))
    except ValueError as error:
        return Plan(policy, result, problem=error)


def _unknown(name: str) -> Policy:
    def decide(*_: object) -> None:
        raise LookupError(f"this version of policyd does not know the policy {name[:64]!r}")

    return Policy(
        name=name,
        order=0,
        title=name,
        hint="",
        kind=Anything(),
        needs=(),
        subject="",
        decide=decide,
        tooltip="",
    )


@lru_cache(maxsize=4096)
def overridden(plan: Plan, values: tuple[str, ...]) -> Plan:
    """The same policy where its override header has `values`, one or more."""
    held, kind = plan.result, plan.policy.kind
    wanted = {kind.wanted(value.strip(" \t")) for value in values}
    valid = [one for one in wanted if one]
    is_clear = len(wanted) == 1 and valid != []
    if held.override is Override.LOCKED:
        return _ignoring(plan, Ignored.LOCKED if is_clear else Ignored.INVALID)
    if not valid or plan.problem:
        return _ignoring(plan, Ignored.INVALID)
    strictest = reduce(lambda one, other: one if _is_as_strict(kind, one, other) else other, valid)
    tightens = _is_as_strict(kind, strictest, held)
    if not is_clear:
        # What the client wants is not certain, so the header may tighten, and never weaken.
        is_tighter = tightens and not _is_as_strict(kind, held, strictest)
        return (
            _following(plan, strictest, Ignored.INVALID)
            if is_tighter
            else _ignoring(plan, Ignored.INVALID)
        )
    if held.override is Override.TIGHTEN_ONLY and not tightens:
        return _ignoring(plan, Ignored.TIGHTEN_ONLY)
    return _following(plan, strictest, Ignored.NOT_IGNORED)


def _ignoring(plan: Plan, why: Ignored) -> Plan:
    return plan._replace(result=plan.result._replace(ignored=why))


def _following(plan: Plan, wanted: Wanted, ignored: Ignored) -> Plan:
    override = plan.result.override
    return _made(plan.policy, wanted.mode, wanted.value, Source.HEADER, override, ignored)


def _is_as_strict(kind: Kind, one: Wanted | Result, other: Wanted | Result) -> bool:
    """Whether `one` denies and flags all that `other` does."""
    if other.mode is Mode.OFF:
        return True
    return one.mode >= other.mode and kind.is_as_strict(one.value, other.value)
