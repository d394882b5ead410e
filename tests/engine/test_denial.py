"""The denial, to the byte: docs/contract.md, section 4."""

import json
from pathlib import Path

import pytest

from policyd.engine import denial
from policyd.engine.states import Credential, UserState
from policyd.policies import TABLE

GOLDEN = Path(__file__).parents[1] / "golden"


def test_a_request_without_user() -> None:
    """A request without a user is denied with 422 and the very bytes of the contract."""
    denied = denial.for_violations((TABLE.original.description,))
    assert denied.status == 422
    assert denied.body == (GOLDEN / "no_user.json").read_bytes()
    assert denied.headers == (
        ("Access-Control-Allow-Headers", "*"),
        ("Access-Control-Allow-Origin", "*"),
        ("Access-Control-Allow-Methods", "OPTIONS,POST,GET"),
        ("Content-Type", "application/json"),
    )


def test_several_violations_share_one_prefix() -> None:
    """Several violations are joined with a comma behind one prefix."""
    denied = denial.render(422, ("one", "two"), "invalid_request")
    assert json.loads(denied.body)["error"]["message"] == "Usage Panda: one, two"


UNREADABLE = [state for state in UserState if state.is_unreadable]


@pytest.mark.parametrize("state", UNREADABLE)
@pytest.mark.parametrize("subjects", [("user field",), ("token limit", "user field", "model")])
def test_every_state_has_a_denial(state: UserState, subjects: tuple[str, ...]) -> None:
    """The denial for each state of a body that cannot be read has the shape of OpenAI's errors, and
    one line of text, which names what is not known."""
    denied = denial.for_unreadable(state, subjects)
    error = json.loads(denied.body)["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["type"] == "invalid_request"
    assert error["message"].startswith("Usage Panda: ")
    assert "\n" not in error["message"]
    assert denied.status in (400, 413, 415)
    assert all(subject in error["message"] for subject in subjects)


KEY_WORDS = {
    Credential.MISSING: "No API key was given",
    Credential.CONFLICTING: "Two different API keys were given",
    Credential.GIVEN: "is not valid here",
}


@pytest.mark.parametrize("credential", list(Credential))
def test_a_key_that_is_not_in_force(credential: Credential) -> None:
    """Each way to send no key in force has a message of its own, and is a 403."""
    denied = denial.for_credential(credential)
    assert denied.status == 403
    error = json.loads(denied.body)["error"]
    assert error["type"] == "access_denied"
    found = [one for one, words in KEY_WORDS.items() if words in error["message"]]
    assert found == [credential]
