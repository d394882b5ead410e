"""Changes of a key's settings are checked against what each policy takes."""

import pytest

from policyd.engine.settings import Setting, Settings
from policyd.engine.states import Mode, Override
from policyd.errors import InvalidArgument
from policyd.keys.settings import changed
from policyd.policies import TABLE

LIMIT = ("max_tokens", Setting(Mode.ENFORCE, "500", Override.LOCKED))
FORMAT = ("user_format", Setting(Mode.AUDIT, "min=3,no_email"))
UNKNOWN = ("of_a_newer_version", Setting(Mode.ENFORCE, "x"))


def test_they_are_in_the_contracts_order() -> None:
    """Whatever order they come in, policies that this version does not know are last."""
    original = TABLE.with_original(Mode.AUDIT)
    assert changed((UNKNOWN,), (UNKNOWN, FORMAT, *original, LIMIT)) == (
        LIMIT,
        *original,
        FORMAT,
        UNKNOWN,
    )


def test_what_is_there_stays() -> None:
    """A change of one policy leaves those alone that this version does not know, until they are
    removed."""

    def limited(current: Settings) -> Settings:
        return (*current, LIMIT)

    assert changed((UNKNOWN,), limited) == (LIMIT, UNKNOWN)
    assert changed((UNKNOWN, LIMIT), (LIMIT,)) == (LIMIT,)
    assert changed((LIMIT,), ((LIMIT[0], Setting()),)) == ()
    assert changed((UNKNOWN, LIMIT), ((UNKNOWN[0], Setting()), LIMIT)) == (LIMIT,)


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        (UNKNOWN, "there is no policy 'of_a_newer_version': the policies are max_tokens, "),
        (("max_tokens", Setting(Mode.ENFORCE, "1e3")), "max_tokens: a limit is a whole number"),
        (("max_tokens", Setting(Mode.ENFORCE)), "max_tokens: a limit is a whole number"),
        (("user_format", Setting(Mode.AUDIT, "most=3")), "user_format: there is no rule"),
        (("enforce_user_ids", Setting(Mode.AUDIT, "3")), "it takes no value"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_what_cannot_be_set(setting: tuple[str, Setting], why: str) -> None:
    """Each impossible setting is rejected with the reason."""
    with pytest.raises(InvalidArgument, match=why):
        changed((LIMIT,), (setting,))


def test_a_policy_is_set_once() -> None:
    """Two settings of one policy do not hide each other."""
    with pytest.raises(InvalidArgument, match="set twice"):
        changed((LIMIT,), (LIMIT, (LIMIT[0], Setting(Mode.OFF))))
