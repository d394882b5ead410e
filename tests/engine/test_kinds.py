"""The kinds of settings: what a value means, and which of two is as strict."""

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.engine.decision import decide
from policyd.engine.endpoints import resolve
from policyd.engine.kinds import (
    MAX_LIMIT,
    MAX_PATTERN,
    MAX_PATTERNS,
    Anything,
    Limit,
    Names,
    Patterns,
    Switch,
    Wanted,
)
from policyd.engine.model import DecisionInput
from policyd.engine.settings import KeySettings, Setting
from policyd.engine.states import Credential, Mode, ModelState
from policyd.policies import TABLE

few = st.text("ab*", min_size=1, max_size=8)


@given(st.lists(few, min_size=1, max_size=3), st.text("ab", max_size=10))
def test_patterns(patterns: list[str], text: str) -> None:
    """A list of patterns matches what the standard library's globs match."""
    matches = Patterns().parse(",".join(patterns))
    assert matches(text) == any(fnmatch.fnmatchcase(text, one) for one in patterns)


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("a*b*c", "a-b-b-c", True),
        ("a*b*c", "acb", False),
        ("ab*ba", "aba", False),
        ("*a*a*", "a", False),
        ("ab*b*c", "abc", False),
        ("*a*b*", "aba", True),
        ("*mini", "gpt-4o-mini", True),
        ("GPT-4*", " gpt-4o\t", True),
    ],
)
def test_a_pattern(pattern: str, text: str, expected: bool) -> None:
    """Parts stand one behind the other, and none is used twice."""
    assert Patterns(ignores_case=True).parse(pattern)(text) is expected


def test_the_case_of_a_pattern() -> None:
    """Unless a list ignores it, letter case counts."""
    matches = Patterns().parse("GPT-4*,o1")
    assert matches("GPT-4o")
    assert matches("o1")
    assert not matches("gpt-4o")
    assert not matches("O1")


@pytest.mark.parametrize("kind", [Patterns(), Names("operation", ["chat", "audio"])])
def test_long_lists(kind: Patterns | Names) -> None:
    """The error says how long a list may be, or repeats little of a part that is too long."""
    what = "pattern" if isinstance(kind, Patterns) else "operation"
    many = [f"chat-{number}" for number in range(MAX_PATTERNS + 1)]
    with pytest.raises(ValueError, match=r"^the list has 1,001 parts: give at most 1,000$"):
        kind.canonical(",".join(many))
    for part in ("x" * (MAX_PATTERN + 1), "x" * 65 + "\n" + "x"):
        error = f"^a {what} has up to 256 printable characters, not '{'x' * 64}'$"
        with pytest.raises(ValueError, match=error):
            kind.canonical(part)


def test_the_longest_lists() -> None:
    """A list may have a thousand parts of 256 characters."""
    longest = ",".join(f"{number:0256}" for number in range(MAX_PATTERNS))
    assert (MAX_PATTERNS, MAX_PATTERN) == (1000, 256)
    assert Patterns().canonical(longest) == longest


@pytest.mark.parametrize("kind", [Patterns(), Names("operation", ["chat", "audio"]), Anything()])
def test_values_that_no_header_overrides(kind: Patterns | Names | Anything) -> None:
    """Only an equal value is as strict, and no header asks for anything."""
    assert kind.is_as_strict("chat", "chat")
    assert not kind.is_as_strict("chat", "chat,audio")
    assert kind.wanted("chat") is None


@pytest.mark.parametrize(
    "value", ["0", "01", "1.5", "-1", "\u0661", "", str(MAX_LIMIT + 1), "9" * 65]
)
def test_what_is_no_limit(value: str) -> None:
    """The error repeats little of a value that is no limit; as a header, such a value sets
    nothing."""
    with pytest.raises(ValueError, match="a limit is a whole number from 1 to") as raised:
        Limit().canonical(value)
    assert "9" * 65 not in str(raised.value)
    assert Limit().wanted(value) == (Wanted(Mode.OFF, "") if value == "0" else None)


def test_limits() -> None:
    """The bounds are limits, and the smaller or the same number is as strict."""
    for value in ("1", str(MAX_LIMIT)):
        assert Limit().parse(f" {value} ") == int(value)
        assert Limit().wanted(value) == Wanted(Mode.ENFORCE, value)
    assert Limit().is_as_strict("5", "5")
    assert Limit().is_as_strict("5", "10")
    assert not Limit().is_as_strict("10", "5")


def test_names() -> None:
    """Names stay in the order given, each once; the help shows which there are."""
    kind = Names("operation", ["chat", "audio", "image"])
    assert kind.canonical("image, chat,image") == "image,chat"
    assert kind.parse("image,chat") == {"image", "chat"}
    assert (kind.choices, kind.example) == (("audio", "chat", "image"), "audio,chat")
    assert kind.usage == "off, audit:OPERATION,… or enforce:OPERATION,…"
    assert kind.value_usage == "operations with commas between them: audio, chat, image"
    with pytest.raises(ValueError, match="no operation 'video': the operations are audio, chat"):
        kind.canonical("chat,video")
    with pytest.raises(ValueError, match="the list is empty: name at least one operation"):
        kind.canonical(" , ")


def test_a_switch_has_no_value() -> None:
    """A switch rejects a value, with an error that repeats its first characters."""
    assert Switch().canonical("") == ""
    assert Switch().parse("") is True
    with pytest.raises(ValueError, match=r"^it takes no value, but 'true' was given$"):
        Switch().parse("true")
    with pytest.raises(ValueError, match=f"^it takes no value, but '{'x' * 64}' was given$"):
        Switch().canonical("x" * 65)


def test_a_path_that_hides_a_model() -> None:
    """Where a path may name another model to another reader, no model is known to be allowed."""
    target = resolve("POST", "/openai/deployments/gpt%252D4/chat/completions")
    asked = DecisionInput(
        target, Credential.GIVEN, "up-key", model="o1", model_state=ModelState.GIVEN
    )
    for patterns in ("o1", "*"):
        settings = KeySettings("key", (("allowed_models", Setting(Mode.ENFORCE, patterns)),))
        [violated] = [one for one in decide(TABLE, asked, settings).results if one.violation]
        assert violated.policy == "allowed_models"
