"""What holds for every policy and every kind of setting, tested with hypothesis."""

from dataclasses import replace

from hypothesis import example, given
from hypothesis import strategies as st

from policyd.engine import endpoints
from policyd.engine.endpoints import ENDPOINTS
from policyd.engine.kinds import MAX_LIMIT
from policyd.engine.model import Decision, DecisionInput
from policyd.engine.places import EndUser, Target
from policyd.engine.policy import Policy, checked_value, parse_setting
from policyd.engine.settings import KeySettings, Setting, Settings
from policyd.engine.states import (
    Credential,
    Mode,
    ModelState,
    Number,
    NumberState,
    Override,
    UserState,
)
from policyd.policies import TABLE, decide

VALUES = {policy.name: [policy.kind.example] for policy in TABLE.policies} | {
    "max_tokens": ["1", "500", "1000", str(MAX_LIMIT)],
    "max_prompt_chars": ["1", "500", "1000"],
    "user_format": ["min=3", "no_email", "max=8,no_placeholder", "pattern=[a-z]+"],
    "disabled_models": ["gpt-4*", "*", "o1,gpt-4o"],
    "allowed_models": ["gpt-4*", "*", "o1,gpt-4o"],
    "allowed_operations": ["embedding", "chat_completion,response"],
}
"""Values of each policy's setting."""


def setting(name: str, override: st.SearchStrategy[Override | None]) -> st.SearchStrategy[Setting]:
    values = st.sampled_from(VALUES[name])
    return st.builds(Setting, st.sampled_from([Mode.AUDIT, Mode.ENFORCE]), values, override) | (
        st.builds(Setting, st.just(Mode.OFF), st.just(""), override)
    )


def settings(override: st.SearchStrategy[Override | None]) -> st.SearchStrategy[Settings]:
    """Settings of any of the policies."""
    each = {name: st.none() | setting(name, override) for name in TABLE.by_name}
    return st.fixed_dictionaries(each).map(
        lambda found: tuple((name, one) for name, one in found.items() if one)
    )


numbers = st.builds(Number, st.just(NumberState.GIVEN), st.integers(0, 2000)) | st.sampled_from(
    [Number(NumberState.ABSENT), Number(NumberState.INVALID)]
)
users = st.sampled_from(["al", "ada", "ada@example.com", "test", "alan-turing"])
end_users = st.builds(
    lambda state, value: EndUser("user", state, value if state is UserState.VALID else None),
    st.sampled_from([one for one in UserState if one and not one.is_unreadable]),
    users,
)
header_values = st.sampled_from(
    ["true", "false", "0", "1", "500", "1000", "-1", "1e3", "0.5", "", "500, 600", "\u0661", "0500"]
)
headers = st.lists(st.tuples(st.sampled_from(sorted(TABLE.by_header)), header_values)).map(tuple)
targets = st.sampled_from([endpoints.resolve("POST", "/v1" + path) for path in ENDPOINTS])


def _request(
    target: Target,
    user: EndUser,
    model: tuple[ModelState, str],
    token_limit: Number,
    prompt_chars: Number,
) -> DecisionInput:
    assert target.endpoint is not None
    places = tuple(user._replace(place=place) for place in target.endpoint.identifiers)
    return DecisionInput(
        target, Credential.GIVEN, "k", (), places, *model, token_limit, prompt_chars
    )


models = st.sampled_from(
    [
        (ModelState.GIVEN, "gpt-4o"),
        (ModelState.GIVEN, "o1"),
        (ModelState.ABSENT, ""),
        (ModelState.NOT_STRING, ""),
        (ModelState.CONFLICTING, ""),
    ]
)
requests = st.builds(_request, targets, end_users, models, numbers, numbers)


def denied_by(decision: Decision) -> set[str]:
    """The policies that deny a request."""
    return {one.policy for one in decision.results if one.violation and one.mode is Mode.ENFORCE}


def flagged_by(decision: Decision) -> set[str]:
    """The policies that deny a request, or would."""
    return {one.policy for one in decision.results if one.violation}


@given(requests, settings(st.none()), headers)
def test_every_request_is_decided(
    asked: DecisionInput, policies: Settings, given_headers: tuple[tuple[str, str], ...]
) -> None:
    """decide() is total, and what it denies is what some policy that is enforced finds."""
    decision = decide(asked._replace(overrides=given_headers), KeySettings("key_1", policies))
    assert not decision.missing
    assert not decision.failures
    if decision.explanation.in_scope:
        assert (decision.denial is not None) == bool(denied_by(decision))
        assert decision.would_deny == (bool(flagged_by(decision)) and decision.denial is None)
    flags = {TABLE.by_flag[one.type].name for one in decision.flags if one.type in TABLE.by_flag}
    assert flags == flagged_by(decision)


@given(requests, settings(st.just(Override.LOCKED)), headers)
def test_no_header_changes_a_locked_policy(
    asked: DecisionInput, policies: Settings, given_headers: tuple[tuple[str, str], ...]
) -> None:
    """A policy that a key locks holds, whatever the headers are."""
    key = KeySettings("key_1", policies)
    before, after = decide(asked, key), decide(asked._replace(overrides=given_headers), key)
    locked = {name for name, _ in policies}
    assert denied_by(after) & locked == denied_by(before) & locked
    assert flagged_by(after) & locked == flagged_by(before) & locked


@given(requests, settings(st.just(Override.TIGHTEN_ONLY)), headers)
def test_a_header_only_tightens_a_policy_that_says_so(
    asked: DecisionInput, policies: Settings, given_headers: tuple[tuple[str, str], ...]
) -> None:
    """A request that was denied or flagged without the headers still is with them."""
    key = KeySettings("key_1", policies)
    before, after = decide(asked, key), decide(asked._replace(overrides=given_headers), key)
    assert denied_by(before) <= denied_by(after)
    assert flagged_by(before) <= flagged_by(after)


@given(requests, settings(st.none()), headers)
@example(
    _request(
        endpoints.resolve("POST", "/v1/responses"),
        EndUser("user", UserState.VALID, "ada"),
        (ModelState.GIVEN, "o1"),
        Number(NumberState.GIVEN, 600),
        Number(NumberState.GIVEN, 1),
    ),
    (("max_tokens", Setting(Mode.ENFORCE, "500")),),
    (("x-usagepanda-max-tokens", "700"), ("x-usagepanda-max-tokens", "0")),
)
def test_only_a_clear_header_weakens(
    asked: DecisionInput, policies: Settings, given_headers: tuple[tuple[str, str], ...]
) -> None:
    """Where the header of a policy is not one valid value, the policy finds no less than before."""
    key = KeySettings("key_1", policies)
    before, after = decide(asked, key), decide(asked._replace(overrides=given_headers), key)
    for name, policy in TABLE.by_name.items():
        values = {value for header, value in given_headers if header == policy.header}
        if len(values) > 1 or not all(policy.kind.wanted(value) for value in values):
            assert denied_by(before) & {name} <= denied_by(after)
            assert flagged_by(before) & {name} <= flagged_by(after)


@given(requests, settings(st.none()), settings(st.none()))
def test_more_policies_never_allow_more(
    asked: DecisionInput, policies: Settings, more: Settings
) -> None:
    """A request that some policies deny is denied where others are set beside them."""
    key = KeySettings("key_1", policies)
    both = replace(key, policies=TABLE.in_order({**dict(more), **dict(policies)}.items()))
    before, after = decide(asked, key), decide(asked, both)
    assert denied_by(before) <= denied_by(after)
    assert before.denial is None or after.denial is not None


@given(st.sampled_from(TABLE.policies), st.text())
def test_any_text_is_a_setting_or_an_error_that_says_why(policy: Policy, text: str) -> None:
    """Settings are read in their canonical form, and everything else is a ValueError."""
    for written in (text, f"enforce:{text}"):
        problem = ""
        try:
            found = parse_setting(policy, written)
        except ValueError as error:
            problem = str(error)
        if problem:
            assert problem.startswith(policy.name)
        else:
            assert found.mode is Mode.OFF or found.value == checked_value(policy, found.value)


def test_every_policy_has_values() -> None:
    """The properties above set every policy."""
    for policy in TABLE.policies:
        for value in VALUES[policy.name]:
            assert policy.kind.canonical(value) == value
