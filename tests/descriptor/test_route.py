"""A route's settings in texts: docs/contract.md, section 1."""

import pytest

from policyd.descriptor.route import route_settings
from policyd.engine.settings import RouteSettings, Setting
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


PLACES = "give a list of places, as accept names"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, RouteSettings()),
        (
            {"max_tokens": "enforce:5", "max_tokens.override": "locked"},
            RouteSettings((("max_tokens", Setting(Mode.ENFORCE, "5", Override.LOCKED)),)),
        ),
        ({"mode": "off"}, RouteSettings(((NAME, Setting(Mode.OFF)),))),
        ({"override": "any"}, RouteSettings(((NAME, Setting(None, "", Override.ANY)),))),
        (
            {NAME: "audit", "max_tokens": "audit:7"},
            RouteSettings((("max_tokens", Setting(Mode.AUDIT, "7")), (NAME, Setting(Mode.AUDIT)))),
        ),
        ({"accept": " header:x-user , user"}, RouteSettings((), ("header:x-user", "user"))),
    ],
)
def test_what_a_route_sets(given: dict[str, str], expected: RouteSettings) -> None:
    """A route may set each policy's mode, value and override, and which places it accepts."""
    assert route_settings(frozenset(given.items()), "the test") == expected


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("mode", "on", "mode to 'on': give one of off, audit, enforce"),
        ("mode", "", "mode to '': give one of off, audit, enforce"),
        ("mode", "x" * 81, f"mode to '{'x' * 80}': give one of off, audit, enforce"),
        ("override", "no", "override to 'no': give one of any, tighten_only, locked"),
        (
            f"{NAME}.override",
            "no",
            f"{NAME}.override to 'no': give one of any, tighten_only, locked",
        ),
        (NAME, "on", f"{NAME} to 'on': {NAME} takes off, audit or enforce, not 'on'"),
        (
            "max_tokens",
            "enforce:" + "x" * 73,
            f"max_tokens to 'enforce:{'x' * 72}': max_tokens: "
            f"a limit is a whole number from 1 to 1,000,000,000, not '{'x' * 64}'",
        ),
        (
            "accept",
            "user,user",
            f"accept to 'user,user': {PLACES} user more than once: name it once",
        ),
    ],
)
def test_values_that_are_unknown(name: str, value: str, error: str) -> None:
    """The error says where the value stands, what it is, and which there are."""
    with pytest.raises(InvalidArgument) as found:
        route_settings(frozenset({(name, value)}), "the test", "route.")
    assert str(found.value) == f"the test set route.{error}"


@pytest.mark.parametrize("name", ["modes", "max_tokens.value", f"{NAME}.", "Mode", "x" * 81])
def test_names_that_are_unknown(name: str) -> None:
    """The error names, as they are spelt there, all that a route may set."""
    with pytest.raises(InvalidArgument) as found:
        route_settings(frozenset({(name, "enforce")}), "the test", "route.")
    assert str(found.value) == (
        f"the test set route.{name[:80]}, which policyd does not know: it knows route.mode, "
        "route.override, route.accept, route.POLICY, route.POLICY.override, where POLICY is one of "
        f"{', '.join(policy.name for policy in TABLE.policies)}"
    )
