"""The flags of a decision: what their descriptions say to an operator."""

import pytest

from policyd.engine.decision import decide
from policyd.engine.endpoints import resolve
from policyd.engine.model import DecisionInput, Flag
from policyd.engine.places import EndUser
from policyd.engine.settings import KeySettings, Setting
from policyd.engine.states import Credential, Mode, UserState
from policyd.policies import TABLE

ENFORCE = Mode.ENFORCE
ASKED = DecisionInput(resolve("POST", "/v1/embeddings"), Credential.GIVEN, "up-key")
NAMED = ASKED._replace(end_users=(EndUser("user", UserState.VALID, "al"),))
UNREAD = ASKED._replace(
    end_users=(EndUser("user", UserState.NOT_JSON),), unreadable=UserState.NOT_JSON
)
FORMAT = ("user_format", Setting(ENFORCE, "min=3"))


@pytest.mark.parametrize(
    ("asked", "setting", "flag"),
    [
        (
            UNREAD,
            ("enforce_user_ids", Setting(ENFORCE)),
            Flag("policy_enforce_user_ids", "Config set to block requests without user field"),
        ),
        (
            NAMED,
            FORMAT,
            Flag(
                "policy_user_format",
                "Config set to block user fields that have fewer than 3 characters",
            ),
        ),
        (UNREAD, FORMAT, Flag("policy_user_format", "User ID Format could not be checked")),
        (
            NAMED._replace(overrides=(("x-usagepanda-enforce-user-ids", "1"),)),
            ("enforce_user_ids", Setting(ENFORCE)),
            Flag(
                "invalid_override",
                "x-usagepanda-enforce-user-ids is not true or false, and was not followed",
            ),
        ),
    ],
)
def test_descriptions(asked: DecisionInput, setting: tuple[str, Setting], flag: Flag) -> None:
    """A flag has its policy's description, or else the message of the violation; that of an
    override says what the header takes."""
    assert decide(TABLE, asked, KeySettings("key_1", (setting,))).flags == (flag,)
