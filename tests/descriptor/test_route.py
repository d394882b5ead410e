"""A route's settings in texts: docs/contract.md, section 1."""

import pytest

from policyd.descriptor.route import route_settings
from policyd.engine.settings import Setting
from policyd.engine.states import Mode, Override
from policyd.errors import InvalidArgument
from policyd.policies import TABLE

NAME = TABLE.original.name


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("mode", "enforce"), (NAME, "off")),
        (("mode", "enforce"), (NAME, "enforce")),
        (("override", "locked"), (f"{NAME}.override", "any")),
    ],
)
def test_one_setting_by_two_names(first: tuple[str, str], second: tuple[str, str]) -> None:
    """The original policy's setting has two names. By both at once, neither counts."""
    with pytest.raises(InvalidArgument, match="which are one setting: give one"):
        route_settings(frozenset((first, second)), "the test")


def test_two_settings_of_a_policy() -> None:
    """A route sets a policy's mode and its override apart, by either name of the policy."""
    expected = ((NAME, Setting(Mode.ENFORCE, "", Override.LOCKED)),)
    for mode in ("mode", NAME):
        for override in ("override", f"{NAME}.override"):
            given = frozenset(((mode, "enforce"), (override, "locked")))
            assert route_settings(given, "the test").policies == expected
