"""How a string counts as an end-user identifier: characters that show nothing, and lengths."""

import re
import time
import unicodedata
from functools import cache

import pytest
import regex

from policyd.descriptor.identifiers import (
    MAX_VALUE,
    MISSING,
    Identifier,
    classify,
    from_value,
    is_blank,
)
from policyd.engine.places import MAX_SAFETY_IDENTIFIER, SAFETY_IDENTIFIER, USER
from policyd.engine.states import UserState

# The rule of the module's docstring, written with a library that knows Unicode's properties.
BLANK = regex.compile(
    r"[\p{White_Space}\p{Control}\p{Format}\p{Surrogate}\p{Mark}\p{Default_Ignorable_Code_Point}"
    r"\p{Noncharacter_Code_Point}\x1c-\x1f\u2800\ufffc\U0001d159\U00013441\U00013442]"
)
# The words by which Unicode's names tell that a character shows nothing.
NAMED = re.compile(
    r"\b(BLANK|FILLER|NULL|EMPTY|INVISIBLE|SPACE|VOID|PLACEHOLDER|HIDDEN|TRANSPARENT|REPLACEMENT)\b"
)
# Such names of characters that are drawn all the same.
DRAWN = (
    r"SYMBOL FOR (NULL|SPACE)|BLANK SYMBOL",
    r"EMPTY (SET.*|NOTE.*|DOCUMENT|PAGES?|NEST)|REVERSED EMPTY SET",
    r"(DEVANAGARI|NEWA|DIVES AKURU|BHAIKSUKI) GAP FILLER.*|MANICHAEAN PUNCTUATION LINE FILLER",
    r"(NORTH INDIC|NEWA) PLACEHOLDER MARK|INDIC SIYAQ PLACEHOLDER",
    r"IDEOGRAPHIC HALF FILL SPACE|MUSICAL SYMBOL VOID NOTEHEAD|REPLACEMENT CHARACTER",
    r"SIGNWRITING LOCATION-(WALL|FLOOR)PLANE SPACE",
)


@cache
def everything() -> list[str]:
    """Each character of the code space."""
    return [chr(number) for number in range(0x110000)]


@pytest.mark.slow
def test_every_character() -> None:
    """Each character of the code space is blank exactly if the library calls it so.

    The library may know characters that this Python does not know yet: those count as unassigned
    here.
    """
    mine = {character for character in everything() if is_blank(character)}
    theirs = set(BLANK.findall("".join(everything())))
    assert not mine - theirs
    assert {unicodedata.category(character) for character in theirs - mine} <= {"Cn"}
    ignorable = set(regex.findall(r"\p{Default_Ignorable_Code_Point}", "".join(everything())))
    assert len(ignorable) > 4000
    assert ignorable <= mine


@pytest.mark.slow
def test_names_of_blanks() -> None:
    """A character whose Unicode name says that it is blank is blank, or known to be drawn."""
    drawn = re.compile("|".join(DRAWN))
    named = {one: unicodedata.name(one, "") for one in everything() if not is_blank(one)}
    missed = {one for one, name in named.items() if NAMED.search(name)}
    assert not {named[one] for one in missed if not drawn.fullmatch(named[one])}


@pytest.mark.parametrize(
    "value", ["alice", "0", "\u00e9", "\u5f20", "\u0628", "\U0001f43c", "\ue000", "\u0378"]
)
def test_what_names_an_end_user(value: str) -> None:
    """Letters, digits and symbols name an end user, as do private-use and unassigned characters."""
    assert classify(value) is UserState.VALID
    assert classify(f"\u3164{value}\u2800") is UserState.VALID


@pytest.mark.parametrize(
    ("value", "identifier", "found"),
    [
        ("ada", USER, Identifier(UserState.VALID, "ada")),
        ("a" * 1025, USER, Identifier(UserState.VALID, "a" * 1024)),
        ("a" * 129, SAFETY_IDENTIFIER, Identifier(UserState.TOO_LONG, "a" * 129)),
        ("", USER, Identifier(UserState.EMPTY)),
        (MISSING, USER, Identifier(UserState.ABSENT)),
        (None, USER, Identifier(UserState.EMPTY)),
        (False, USER, Identifier(UserState.EMPTY)),
        (0, USER, Identifier(UserState.EMPTY)),
        (-0.0, USER, Identifier(UserState.EMPTY)),
        (True, USER, Identifier(UserState.NOT_STRING)),
        (7, USER, Identifier(UserState.NOT_STRING)),
        (0.5, USER, Identifier(UserState.NOT_STRING)),
        ([], USER, Identifier(UserState.NOT_STRING)),
        ({}, USER, Identifier(UserState.NOT_STRING)),
    ],
)
def test_a_value_of_json(value: object, identifier: str, found: Identifier) -> None:
    """A value that a JSON reader gives counts as it does in a body: null, false and 0 are empty."""
    assert from_value(value, identifier) == found


def test_lengths() -> None:
    """A safety_identifier has up to 128 characters. `user` has no bound."""
    longest = "\U0001f43c" * MAX_SAFETY_IDENTIFIER
    assert MAX_SAFETY_IDENTIFIER == 128
    assert classify(longest, SAFETY_IDENTIFIER) is UserState.VALID
    assert classify(longest + "x", SAFETY_IDENTIFIER) is UserState.TOO_LONG
    assert classify(longest + "x", USER) is UserState.VALID
    assert classify(" " * 129, SAFETY_IDENTIFIER) is UserState.BLANK


@pytest.mark.parametrize("blank", [" ", "\u3164", "\u0301", "\U000e0001"])
def test_the_time_it_takes(blank: str) -> None:
    """However long a value of blanks is, a bounded number of characters is looked at."""
    assert classify(blank * MAX_VALUE + "a") is UserState.BLANK
    assert _seconds(blank * MAX_VALUE * 1024) < 16 * _seconds(blank * MAX_VALUE)


def _seconds(value: str) -> float:
    """The shortest of several measurements."""
    return min(_once(value) for _ in range(5))


def _once(value: str) -> float:
    start = time.thread_time()
    classify(value)
    return time.thread_time() - start
