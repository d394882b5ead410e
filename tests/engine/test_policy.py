"""The table of policies, and their settings: in which order and form they are kept."""

import re

import pytest

from policyd.engine.policy import Table, check_settings, parse_setting
from policyd.engine.settings import Setting, Settings
from policyd.engine.states import Mode, Override
from policyd.policies import TABLE

OFF, AUDIT, ENFORCE = Mode
LIMIT, FORMAT = TABLE.by_name["max_tokens"], TABLE.by_name["user_format"]
NAME = TABLE.original.name
KNOWN = ", ".join(policy.name for policy in TABLE.policies)


def test_a_table_finds_its_policies() -> None:
    """A policy is found by its name, its flag, and its header where it has one."""
    table = Table([FORMAT, TABLE.original, LIMIT])
    assert table.policies == (LIMIT, TABLE.original, FORMAT)
    assert table.by_name == {policy.name: policy for policy in table.policies}
    assert table.by_flag == {f"policy_{policy.name}": policy for policy in table.policies}
    assert table.by_header == {policy.header: policy for policy in (LIMIT, TABLE.original)}


def test_the_order_of_settings() -> None:
    """Settings stand in the order of their policies; those of unknown policies last, by name."""
    zeal, able = ("zeal", Setting(AUDIT)), ("able", Setting(ENFORCE))
    first, second = ("max_tokens", Setting(ENFORCE, "1")), ("allowed_models", Setting(AUDIT, "o1"))
    given = [zeal, second, first, able]
    assert TABLE.in_order(given) == (first, second, able, zeal)


def test_the_original_policy() -> None:
    """What is set for the original policy, and settings with another one for it."""
    limit = ("max_tokens", Setting(ENFORCE, "1"))
    held = (limit, (NAME, Setting(AUDIT, "", Override.LOCKED)))
    assert TABLE.original_of(held) == Setting(AUDIT, "", Override.LOCKED)
    assert TABLE.original_of((limit,)) == Setting()
    assert TABLE.with_original(ENFORCE, others=held) == (limit, (NAME, Setting(ENFORCE)))
    assert TABLE.with_original(None, Override.ANY) == ((NAME, Setting(None, "", Override.ANY)),)
    assert TABLE.with_original(None, others=held) == (limit,)


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("off", Setting(OFF)),
        (" Audit : 5 ", Setting(AUDIT, "5")),
        ("off:5", Setting(OFF, "5")),
        ("off:", Setting(OFF)),
    ],
)
def test_a_written_setting(text: str, setting: Setting) -> None:
    """A setting is a mode in any letter case, and a value behind a colon, which off need not
    have."""
    assert parse_setting(LIMIT, text) == setting


def test_what_is_no_setting() -> None:
    """The error says how a setting is written, and repeats its first 64 characters."""
    error = f"max_tokens takes off, audit:N or enforce:N, not '{'x' * 64}'"
    with pytest.raises(ValueError, match=f"^{error}$"):
        parse_setting(LIMIT, "x" * 65)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ((), ()),
        (
            ((NAME, Setting(ENFORCE)), ("max_tokens", Setting(AUDIT, " 5 "))),
            (("max_tokens", Setting(AUDIT, "5")), (NAME, Setting(ENFORCE))),
        ),
        (((NAME, Setting()),), ()),
        ((("max_tokens", Setting(OFF)),), (("max_tokens", Setting(OFF)),)),
        ((("max_tokens", Setting(OFF, " 5 ")),), (("max_tokens", Setting(OFF, "5")),)),
        # Without a mode, the next level's value counts.
        ((("max_tokens", Setting(None, "5")),), ()),
        (
            (("max_tokens", Setting(None, "5", Override.LOCKED)),),
            (("max_tokens", Setting(None, "", Override.LOCKED)),),
        ),
    ],
)
def test_settings_as_they_are_stored(given: Settings, kept: Settings) -> None:
    """Settings are kept in order and in canonical form, without those that set nothing."""
    assert check_settings(TABLE, given) == kept


WHOLE = "a limit is a whole number from 1 to 1,000,000,000, not"


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (
            ((NAME, Setting(ENFORCE)), ("y" * 65, Setting(ENFORCE)), ("z", Setting())),
            f"there is no policy '{'y' * 64}': the policies are {KNOWN}",
        ),
        (
            (("z", Setting(ENFORCE)),),
            f"there is no policy 'z': the policies are {KNOWN}",
        ),
        (((NAME, Setting(AUDIT)), (NAME, Setting(OFF))), "a policy is set twice: set each once"),
        ((("max_tokens", Setting(ENFORCE)),), f"max_tokens: {WHOLE} ''"),
        ((("max_tokens", Setting(AUDIT)),), f"max_tokens: {WHOLE} ''"),
        ((("max_tokens", Setting(OFF, "many")),), f"max_tokens: {WHOLE} 'many'"),
        ((("max_tokens", Setting(None, "many")),), f"max_tokens: {WHOLE} 'many'"),
    ],
)
def test_settings_that_are_not_stored(given: Settings, error: str) -> None:
    """The error says which setting is wrong, and which policies or values there are."""
    with pytest.raises(ValueError, match=f"^{re.escape(error)}$"):
        check_settings(TABLE, given)
