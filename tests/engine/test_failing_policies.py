"""A policy that fails: what it enforces is denied, and nothing else happens."""

from dataclasses import replace

import pytest

from policyd.decider.policy_failures import PolicyFailures
from policyd.engine import endpoints
from policyd.engine.decision import decide
from policyd.engine.denial import NO_DECISION
from policyd.engine.kinds import Switch
from policyd.engine.model import DecisionInput
from policyd.engine.places import EndUser
from policyd.engine.policy import Attributes, Policy, Table
from policyd.engine.settings import KeySettings, Setting
from policyd.engine.states import Credential, Mode, UserState
from policyd.policies import TABLE


def _fail(attributes: Attributes, _: bool) -> None:
    raise ZeroDivisionError(f"while judging {attributes.operation}")


BROKEN = Policy(
    name="broken",
    order=5,
    title="Broken",
    hint="Fails.",
    kind=Switch(),
    needs=(),
    subject="user field",
    decide=_fail,
    tooltip="This request met a fault",
)
POLICIES = Table([*TABLE.policies, BROKEN])
USER = (EndUser("user", UserState.VALID, "ada"),)
ASKED = DecisionInput(
    endpoints.resolve("POST", "/v1/embeddings"), Credential.GIVEN, "k", end_users=USER
)


def key(mode: Mode) -> KeySettings:
    return KeySettings("key_1", (("broken", Setting(mode)),))


def test_it_is_denied_where_it_is_enforced() -> None:
    """The request is denied with 503, and the failure is there to be counted."""
    decision = decide(POLICIES, ASKED, key(Mode.ENFORCE))
    assert decision.denial is NO_DECISION
    assert decision.denial.status == 503
    assert not decision.would_deny
    [(name, error)] = decision.failures
    assert (name, str(error)) == ("broken", "while judging embedding")
    assert decision.explanation.summary.startswith("Denied: the policy broken could not judge it.")


def test_it_changes_nothing_where_it_is_audited() -> None:
    """The request is allowed and not flagged, and the failure is counted all the same."""
    decision = decide(POLICIES, ASKED, key(Mode.AUDIT))
    assert decision.denial is None
    assert not decision.flags
    assert [name for name, _ in decision.failures] == ["broken"]


@pytest.mark.parametrize("mode", [Mode.OFF, None])
def test_it_is_not_asked_where_it_is_off(mode: Mode | None) -> None:
    """A policy that is off judges nothing, so it cannot fail."""
    settings = KeySettings("key_1", (("broken", Setting(mode)),))
    assert not decide(POLICIES, ASKED, settings).failures


def test_it_is_not_asked_out_of_scope() -> None:
    """Out of scope nothing is judged."""
    asked = ASKED._replace(target=endpoints.resolve("GET", "/v1/models"))
    assert decide(POLICIES, asked, key(Mode.ENFORCE)).denial is None


def test_what_another_policy_denies_is_denied_as_a_failure() -> None:
    """A failure comes first: what the policy would have said is not known."""
    settings = replace(
        key(Mode.ENFORCE),
        policies=(("broken", Setting(Mode.ENFORCE)), *TABLE.with_original(Mode.ENFORCE)),
    )
    asked = ASKED._replace(end_users=(EndUser("user", UserState.ABSENT),))
    decision = decide(POLICIES, asked, settings)
    assert decision.denial is NO_DECISION
    assert [flag.type for flag in decision.flags] == [TABLE.original.flag]


def test_failures_are_counted_and_told_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand failures are one line in the log, and a number."""
    failures = PolicyFailures()
    for _ in range(1000):
        failures.add(decide(POLICIES, ASKED, key(Mode.ENFORCE)).failures)
    assert failures.counts == {"broken": 1000}
    assert len(caplog.messages) == 1
    assert "the policy broken could not judge a request" in caplog.messages[0]
    assert "ZeroDivisionError: while judging embedding" in caplog.messages[0]


def test_a_name_breaks_no_line(caplog: pytest.LogCaptureFixture) -> None:
    """A policy that is not known has whatever name the database has."""
    PolicyFailures().add((("of\na newer version", LookupError("it is not known")),))
    assert "\n" not in caplog.messages[0]
