"""The kinds of settings: what a value means, and which of two is as strict."""

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.engine.decision import decide
from policyd.engine.endpoints import resolve
from policyd.engine.kinds import MAX_LIMIT, Limit, Names, Patterns, Switch, Wanted
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
        ("*mini", "gpt-4o-mini", True),
        ("GPT-4*", " gpt-4o\t", True),
    ],
)
def test_a_pattern(pattern: str, text: str, expected: bool) -> None:
    """Parts stand one behind the other, and none is used twice."""
    assert Patterns(ignores_case=True).parse(pattern)(text) is expected


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
    with pytest.raises(ValueError, match=f"^it takes no value, but '{'x' * 64}' was given$"):
        Switch().canonical("x" * 65)


def test_a_path_that_hides_a_model() -> None:
    """Where a path may name another model to another reader, no model is known to be allowed."""
    target = resolve("POST", "/openai/deployments/gpt%252D4/chat/completions")
    asked = DecisionInput(
        target, Credential.GIVEN, "up-key", model="o1", model_state=ModelState.GIVEN
    )
    settings = KeySettings("key", (("allowed_models", Setting(Mode.ENFORCE, "o1")),))
    [violated] = [one for one in decide(TABLE, asked, settings).results if one.violation]
    assert violated.policy == "allowed_models"
