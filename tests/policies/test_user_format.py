"""How long a user may be, where its key sets rules: beside the decision tables."""

from collections.abc import Sequence

import pytest

from policyd.engine import endpoints
from policyd.engine.model import Decision, DecisionInput
from policyd.engine.places import SAFETY_IDENTIFIER, USER, EndUser
from policyd.engine.settings import KeySettings, Setting
from policyd.engine.states import Credential, Mode, UserState
from policyd.policies import decide
from policyd.policies.user_format import MAX_LENGTH

TARGET = endpoints.resolve("POST", "/v1/responses")


def decided(users: Sequence[EndUser], rules: str) -> Decision:
    """What is decided of a request with these users where its key enforces these rules."""
    given = DecisionInput(TARGET, Credential.GIVEN, "k", end_users=tuple(users))
    return decide(given, KeySettings("key_1", (("user_format", Setting(Mode.ENFORCE, rules)),)))


def valid(value: str | None, *further: str) -> EndUser:
    """A valid user with these values."""
    return EndUser(USER, UserState.VALID, value, further)


def safe(value: str) -> EndUser:
    """A valid safety identifier."""
    return EndUser(SAFETY_IDENTIFIER, UserState.VALID, value)


@pytest.mark.parametrize("rules", ["min=3", f"max={MAX_LENGTH}", "no_placeholder"])
@pytest.mark.parametrize(("more", "is_allowed"), [(0, True), (1, False)])
def test_the_longest_user(rules: str, more: int, is_allowed: bool) -> None:
    """A user that is longer than any bound breaks any rule, as only its beginning is known."""
    decision = decided([valid("a" * (MAX_LENGTH + more))], rules)
    assert (decision.denial is None) is is_allowed


@pytest.mark.parametrize(
    ("users", "is_allowed"),
    [
        ([valid("ada")], True),
        ([valid("ada", "eve")], True),
        ([valid("al", "ada")], False),
        ([valid("ada", "al")], False),
        ([valid("ada", "eve", "al")], False),
        # A header and a body's member may stand in one place.
        ([valid("ada"), valid("eve")], True),
        ([valid("ada"), valid("al")], False),
        ([valid("ada"), valid("eve", "al")], False),
        ([valid("ada", "al"), valid("eve")], False),
        ([valid("ada"), EndUser(USER, UserState.BLANK)], True),
        ([EndUser(USER, UserState.BLANK), valid("al")], False),
        # A server may read the one that is good, too, where another one is not.
        ([EndUser(USER, UserState.EMPTY, "ada", ("eve",))], True),
        ([EndUser(USER, UserState.EMPTY, "ada", ("al",))], False),
        ([valid("ada"), EndUser(USER, UserState.EMPTY, "al")], False),
        ([EndUser(USER, UserState.EMPTY, "al"), valid("ada")], False),
        ([EndUser(USER, UserState.TOO_LONG, "al")], False),
        ([EndUser(USER, UserState.ABSENT)], True),
        ([EndUser(USER, UserState.DUPLICATE)], False),
        ([valid("ada"), EndUser(USER, UserState.DUPLICATE)], False),
        # The safety identifier is looked at where no user is valid.
        ([EndUser(USER, UserState.EMPTY, "al"), safe("ada")], False),
        ([EndUser(USER, UserState.DUPLICATE), safe("ada")], False),
        ([EndUser(USER, UserState.EMPTY), safe("ada")], True),
        ([EndUser(USER, UserState.EMPTY), safe("al")], False),
        ([valid("ada"), safe("al")], True),
    ],
)
def test_several_values(users: list[EndUser], is_allowed: bool) -> None:
    """Each value in the places up to the first valid user has to keep the rules."""
    decision = decided(users, "min=3")
    assert not decision.missing
    assert (decision.denial is None) is is_allowed


@pytest.mark.parametrize("users", [[valid("ada"), valid(None)], [valid(None), valid("ada")]])
def test_a_value_that_is_not_known(users: list[EndUser]) -> None:
    """Where one of several values is not known, policyd asks for it."""
    assert decided(users, "min=3").missing
