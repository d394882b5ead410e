"""How long a user may be, where its key sets rules: beside the decision tables."""

import pytest

from policyd.engine import endpoints
from policyd.engine.model import Decision, DecisionInput
from policyd.engine.places import USER, EndUser
from policyd.engine.settings import KeySettings, Setting
from policyd.engine.states import Credential, Mode, UserState
from policyd.policies import decide
from policyd.policies.user_format import MAX_LENGTH

TARGET = endpoints.resolve("POST", "/v1/embeddings")


def decided(user: str, rules: str) -> Decision:
    """What is decided of a request with this user where its key enforces these rules."""
    named = (EndUser(USER, UserState.VALID, user),)
    given = DecisionInput(TARGET, Credential.GIVEN, "k", end_users=named)
    return decide(given, KeySettings("key_1", (("user_format", Setting(Mode.ENFORCE, rules)),)))


@pytest.mark.parametrize("rules", ["min=3", f"max={MAX_LENGTH}", "no_placeholder"])
@pytest.mark.parametrize(("more", "is_allowed"), [(0, True), (1, False)])
def test_the_longest_user(rules: str, more: int, is_allowed: bool) -> None:
    """A user that is longer than any bound breaks any rule, as only its beginning is known."""
    decision = decided("a" * (MAX_LENGTH + more), rules)
    assert (decision.denial is None) is is_allowed
