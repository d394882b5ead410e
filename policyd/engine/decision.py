"""decide(): the one place where a request is allowed or denied. Pure and total.

It knows no policy by name. For each policy that a route, a key, the server or a header sets, it
finds the setting in force (plan.py), asks the policy whether the request violates it, and joins the
answers: messages, flags and explanations, in the contract's order. The rules that belong to no one
policy are docs/contract.md, sections 1 to 4 and 7:

- in scope, a request that violates a policy is denied (enforce) or flagged (audit);
- an end user counts in the places that the key accepts; where the endpoint has none of those,
  `user` counts, if it has that;
- what cannot be known never passes: a body that cannot be read is denied where a policy that needs
  it is enforced, and so is any request where a policy that is enforced is not known or fails;
- a path that servers may read as different endpoints never goes upstream, whatever the mode.
"""

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from policyd.engine import denial, summary
from policyd.engine.model import (
    Decision,
    DecisionInput,
    Denial,
    Explanation,
    Flag,
    Result,
    Violation,
)
from policyd.engine.places import HEADER_PLACE, NO_END_USER, USER, Endpoint, EndUser
from policyd.engine.plan import Plan, overridden, plan_of
from policyd.engine.policy import Attributes, Need, Policy, Table
from policyd.engine.settings import KeySettings, RouteSettings, Settings
from policyd.engine.states import Credential, Ignored, Mode, ModelState, UserState

INVALID_OVERRIDE = "invalid_override"
"""The type of the flag of a request with an override header that is not valid."""
NO_ROUTE = RouteSettings()
# Python takes longer to look up a member of an enumeration than to compare it.
_OFF, _NAMED = Mode.OFF, ModelState.GIVEN
_UNKNOWN, _VALID, _ABSENT = UserState.UNKNOWN, UserState.VALID, UserState.ABSENT
_MAX_CACHED = 8
"""Values of one header up to which a plan is cached: of more, a client could send ever new sets."""


class _Verdict(NamedTuple):
    """What all policies found. There are few different ones, so each is put into words once."""

    results: tuple[Result, ...]
    in_scope: bool
    operation: str = ""
    place: str = ""
    state: UserState = UserState.UNKNOWN
    unreadable: UserState = UserState.UNKNOWN


def decide(
    table: Table,
    given: DecisionInput,
    settings: KeySettings | None,
    defaults: Settings = (),
    route: RouteSettings = NO_ROUTE,
) -> Decision:
    """Decide one request by the policies of `table`.

    `settings` are the key's, None where no key in force was given. `defaults` hold where neither
    `route` nor the key sets a policy.
    """
    if settings is None:
        return _deny_key(given.credential)
    headers = frozenset(name for name, _ in given.overrides) if given.overrides else None
    plan = plan_of(table, route.policies, settings.policies, defaults, headers)
    if headers:
        plan = tuple(_overridden(one, given) for one in plan)
    accept = route.accept or settings.accept
    target = given.target
    if not target.is_in_scope_for(accept):
        return _decision(table, _Verdict(tuple(one.result for one in plan), in_scope=False))
    unreadable = given.unreadable if given.unreadable.is_unreadable else _UNKNOWN
    attributes = _attributes(given, accept, unreadable)
    judged = [_judge(one, attributes, unreadable) for one in plan]
    results, user = tuple([one.result for one in judged]), attributes.end_user
    verdict = _Verdict(results, True, attributes.operation, user.place, user.state, unreadable)
    decision = _decision(table, verdict)
    if target.is_ambiguous:
        return _deny_path(decision)
    missing = tuple([text for one in judged for text in one.missing])
    failures = tuple([one.failure for one in judged if one.failure])
    if missing or failures:
        return replace(decision, missing=missing, failures=failures)
    return decision


# --- what is known of the request --------------------------------------------------------------


def _attributes(given: DecisionInput, accept: tuple[str, ...], unreadable: UserState) -> Attributes:
    target, endpoint = given.target, given.target.endpoint
    models = (given.model,) if given.model_state is _NAMED else ()
    if target.model and target.model not in models:
        models = (target.model, *models)
    return Attributes(
        endpoint.operation if endpoint else "",
        endpoint is None or endpoint.takes_model,
        *_end_users(given, accept, unreadable),
        ModelState.CONFLICTING if target.has_unclear_model else given.model_state,
        models,
        given.token_limit,
        given.prompt_chars,
    )


def _end_users(
    given: DecisionInput, accept: tuple[str, ...], unreadable: UserState
) -> tuple[EndUser, list[EndUser]]:
    """The end user that counts, and all in the places up to it. The first valid one counts, else
    the first that is neither absent nor unknown, else the first."""
    found: list[EndUser] = []
    for place in _places(accept, given.target.endpoint):
        here = [one for one in given.end_users if one.place == place]
        here = here or [_not_given(place, unreadable)]
        found += here
        for user in here:
            if user.state is _VALID:
                return user, found
    telling = [one for one in found if one.state not in (_ABSENT, _UNKNOWN)]
    return next(iter(telling or found), NO_END_USER), found


def _not_given(place: str, unreadable: UserState) -> EndUser:
    # A caller sends all headers that it has, but not the members of a body that it did not read.
    is_header = place.startswith(HEADER_PLACE)
    return EndUser(place, _ABSENT if is_header else unreadable)


@lru_cache(maxsize=1024)
def _places(accept: tuple[str, ...], endpoint: Endpoint | None) -> tuple[str, ...]:
    """The places that count. Where the endpoint has none that is accepted, `user` counts if the
    endpoint has that, lest a key be shut out of it."""
    if endpoint is None:
        return accept
    return endpoint.places(accept) or tuple(one for one in endpoint.identifiers if one == USER)


# --- what each policy finds --------------------------------------------------------------------


class _Judged(NamedTuple):
    """What a policy found, and why it could not judge."""

    result: Result
    missing: tuple[str, ...] = ()
    failure: tuple[str, Exception] | None = None


def _overridden(one: Plan, given: DecisionInput) -> Plan:
    header = one.policy.header
    values = tuple([value for name, value in given.overrides if name == header]) if header else ()
    if len(values) > _MAX_CACHED:
        return overridden.__wrapped__(one, values)
    return overridden(one, values) if values else one


def _judge(one: Plan, attributes: Attributes, unreadable: UserState) -> _Judged:
    policy, result = one.policy, one.result
    if result.mode is _OFF or not policy.applies_to(attributes.operation):
        return _Judged(result)
    if policy.needs:
        unknown = [need for need in policy.needs if not need.is_known(attributes)]
        if unknown and unreadable and policy.subject:
            return _Judged(result._replace(violation=_unreadable(policy, unreadable)))
        if unknown:
            return _Judged(result, tuple(_missing(policy, need) for need in unknown))
    try:
        if one.problem:
            raise one.problem
        violation = policy.decide(attributes, one.parsed)
    except Exception as error:  # noqa: BLE001  # A policy's fault must not let a request pass.
        return _Judged(result._replace(has_failed=True), failure=(policy.name, error))
    return _Judged(result._replace(violation=violation) if violation else result)


def _unreadable(policy: Policy, state: UserState) -> Violation:
    words = f"the {policy.subject} {summary.STATE_WORDS[state]}"
    return Violation(f"{policy.title} could not be checked", words)


def _missing(policy: Policy, need: Need) -> str:
    return f"{policy.title} needs {need.value}"


# --- what becomes of the request ---------------------------------------------------------------


def _deny_key(credential: Credential) -> Decision:
    text = summary.for_credential(credential)
    explanation = Explanation(
        None, None, Ignored.NOT_IGNORED, False, "", UserState.UNKNOWN, "", text
    )
    return Decision(denial.for_credential(credential), False, (), explanation)


@lru_cache(maxsize=4096)
def _deny_path(decision: Decision) -> Decision:
    explanation = replace(decision.explanation, summary=summary.AMBIGUOUS_PATH)
    return replace(
        decision, denial=denial.AMBIGUOUS_PATH, would_deny=False, explanation=explanation
    )


@lru_cache(maxsize=4096)
def _decision(table: Table, verdict: _Verdict) -> Decision:
    results = verdict.results
    denied = _denial(table, verdict)
    would_deny = denied is None and any(one.violation for one in results)
    first = next(one for one in results if one.policy == table.original.name)
    why = Explanation(
        first.mode,
        first.source,
        first.ignored,
        verdict.in_scope,
        verdict.operation,
        verdict.state,
        verdict.place,
        "",
    )
    text = summary.of(table, why, results, is_denied=denied is not None)
    return Decision(denied, would_deny, _flags(table, results), replace(why, summary=text), results)


def _denial(table: Table, verdict: _Verdict) -> Denial | None:
    enforced = [one for one in verdict.results if one.mode is Mode.ENFORCE]
    if any(one.has_failed for one in enforced):
        return denial.NO_DECISION
    violated = [one for one in enforced if one.violation]
    if not violated:
        return None
    if verdict.unreadable:
        subjects = [table.by_name[one.policy].subject for one in violated]
        if subjects := [one for one in subjects if one]:
            return denial.for_unreadable(verdict.unreadable, tuple(subjects))
    return denial.for_violations(tuple(one.violation.message for one in violated if one.violation))


def _flags(table: Table, results: tuple[Result, ...]) -> tuple[Flag, ...]:
    flags = []
    for one in results:
        if one.violation:
            policy = table.by_name[one.policy]
            flags.append(Flag(policy.flag, policy.description or one.violation.message))
    for one in results:
        if one.ignored is Ignored.INVALID:
            policy = table.by_name[one.policy]
            text = f"{policy.header} is not {policy.kind.header_usage}, and was not followed"
            flags.append(Flag(INVALID_OVERRIDE, text))
    return tuple(flags)
