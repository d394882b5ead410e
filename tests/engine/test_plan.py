"""Which setting of a policy is in force, beside the decision tables."""

import pytest

from policyd.engine.decision import decide
from policyd.engine.endpoints import resolve
from policyd.engine.model import DecisionInput
from policyd.engine.places import EndUser
from policyd.engine.plan import overridden, plan_of
from policyd.engine.settings import KeySettings, Setting
from policyd.engine.states import (
    Credential,
    Ignored,
    Mode,
    Number,
    NumberState,
    Override,
    Source,
    UserState,
)
from policyd.policies import TABLE

ORIGINAL = TABLE.original.name
NEWER = "n" * 65


def test_where_no_level_sets_anything() -> None:
    """The original policy is off by the server's default, and any header may override that."""
    [plan] = plan_of(TABLE, (), (), (), None)
    assert plan.result[:6] == (
        (ORIGINAL, Mode.OFF, "", Source.DEFAULT, Override.ANY, Ignored.NOT_IGNORED)
    )


@pytest.mark.parametrize(
    ("values", "ignored"), [(("true",), Ignored.NOT_IGNORED), (("true", "x"), Ignored.INVALID)]
)
def test_a_header_keeps_the_override(values: tuple[str, ...], ignored: Ignored) -> None:
    """A header that is followed changes the mode in force, not which headers may override it."""
    held = TABLE.with_original(Mode.AUDIT, Override.TIGHTEN_ONLY)
    [plan] = plan_of(TABLE, (), held, (), None)
    assert overridden(plan, values).result[1:6] == (
        (Mode.ENFORCE, "", Source.HEADER, Override.TIGHTEN_ONLY, ignored)
    )


@pytest.mark.parametrize(
    ("name", "value", "kind", "error"),
    [
        (
            NEWER,
            "1",
            LookupError,
            f"this version of policyd does not know the policy '{NEWER[:64]}'",
        ),
        (
            "max_tokens",
            "many",
            ValueError,
            "a limit is a whole number from 1 to 1,000,000,000, not 'many'",
        ),
    ],
)
def test_settings_of_another_version(
    name: str, value: str, kind: type[Exception], error: str
) -> None:
    """A policy or a value that this version does not know is a failure, which says so."""
    target, user = resolve("POST", "/v1/responses"), EndUser("user", UserState.VALID, "ada")
    limit = Number(NumberState.GIVEN, 1)
    asked = DecisionInput(target, Credential.GIVEN, "up-key", end_users=(user,), token_limit=limit)
    settings = KeySettings("key", ((name, Setting(Mode.ENFORCE, value)),))
    [(failed, problem)] = decide(TABLE, asked, settings).failures
    assert (failed, type(problem), str(problem)) == (name, kind, error)
