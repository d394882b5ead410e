"""End-user identifiers: the attributes of a body that name one, and the state of a string as one.

A string of blank characters alone names no end user. A character is blank where no reader sees
anything of its own: white space, control and format characters, what Unicode tells programs to show
nothing for (Default_Ignorable_Code_Point), the few symbols that are drawn as nothing, marks that
have no letter to stand on, surrogates and noncharacters. Private use characters count, as an
organization may write names with them, and so do code points that Unicode has not assigned: which
those are depends on Python's version, and a verdict must not.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from policyd.engine.places import (
    END_USER_ID,
    MAX_SAFETY_IDENTIFIER,
    METADATA_USER_ID,
    SAFETY_IDENTIFIER,
    USER,
)
from policyd.engine.states import UNKNOWN_NUMBER, ModelState, Number, UserState

# Python takes longer to look up a member of an enumeration than to compare it.
_VALID = UserState.VALID
MAX_VALUE = 1024
"""Characters of a value that are looked at, and kept."""
MAX_VALUES = 8
"""Different values of one identifier that are kept. If there are more, it is a DUPLICATE."""
NAMING = (UserState.VALID, UserState.TOO_LONG)
"""The states of strings that are not blank."""

FURTHER_PLACES = (METADATA_USER_ID, END_USER_ID)
"""The places in a body, besides `user` and `safety_identifier`, in which an end user can stand."""


class Identifier(NamedTuple):
    """An end-user identifier as found in a body."""

    state: UserState
    value: str = ""
    """The first 1,024 characters of a string that is not blank."""
    further_values: tuple[str, ...] = ()
    """The other such strings, where a body has it several times. Its state is that of the worst."""


class BodyAttributes(NamedTuple):
    """What a body holds that a policy or the decision log needs."""

    user: Identifier
    safety_identifier: Identifier
    model: str = ""
    """Its first 1,024 characters, where it is a string; of several, one."""
    model_state: ModelState = ModelState.UNKNOWN
    token_limit: Number = UNKNOWN_NUMBER
    """How many tokens one choice may have. INVALID also where `choices` is."""
    choices: Number = UNKNOWN_NUMBER
    """How many answers are asked for. ABSENT means one."""
    prompt_chars: Number = UNKNOWN_NUMBER
    """Code points of all text in the prompt."""
    others: tuple[tuple[str, Identifier], ...] = ()
    """The identifiers in FURTHER_PLACES, by their places, without those that are just ABSENT."""


ABSENT = Identifier(UserState.ABSENT)
"""An identifier that a body does not have."""


def unreadable(state: UserState) -> BodyAttributes:
    """The attributes of a body that was not read, for the reason that `state` names."""
    found = Identifier(state)
    return BodyAttributes(found, found, others=tuple((place, found) for place in FURTHER_PLACES))


NOT_READ = BodyAttributes(Identifier(UserState.UNKNOWN), Identifier(UserState.UNKNOWN))
"""The attributes of a body of which nothing is known."""
TOO_LARGE = unreadable(UserState.TOO_LARGE)
"""The attributes of a body over the bound."""


MISSING = object()
"""Stands for the value of a field that is not there."""


def from_value(value: object, identifier: str) -> Identifier:
    """The end-user identifier `identifier` in a field with this value, as a JSON reader gives it.

    `value` is MISSING where there is no such field.
    """
    if isinstance(value, str):
        return from_string(value, identifier)
    if value is MISSING:
        return ABSENT
    is_empty = value is None or value is False or (isinstance(value, int | float) and not value)
    return Identifier(UserState.EMPTY if is_empty else UserState.NOT_STRING)


def from_string(value: str, identifier: str) -> Identifier:
    """The string `value` as the end-user identifier `identifier`."""
    state = classify(value, identifier)
    return Identifier(state, value[:MAX_VALUE] if state in NAMING else "")


def together(occurrences: Sequence[Identifier]) -> Identifier:
    """What one or more occurrences of an identifier are together: the worst of them, with the
    values of all in their order, as a server may read any of them."""
    if len(occurrences) == 1:
        return occurrences[0]
    worst = max(occurrences).state
    given = [value for one in occurrences for value in (one.value, *one.further_values)]
    first, *further = dict.fromkeys(filter(None, given)) or ("",)
    if len(further) >= MAX_VALUES:
        return Identifier(UserState.DUPLICATE)
    return Identifier(worst, first, tuple(further))


def classify(value: str, identifier: str = USER) -> UserState:
    """The state of the string `value` as the end-user identifier `identifier`."""
    if not value:
        return UserState.EMPTY
    # Only the first characters count: a name after a thousand blank ones names no end user. Most
    # values begin with a visible ASCII character, which is quick to see.
    if not "!" <= value[0] <= "~" and all(map(is_blank, value[:MAX_VALUE])):
        return UserState.BLANK
    if identifier == SAFETY_IDENTIFIER and len(value) > MAX_SAFETY_IDENTIFIER:
        return UserState.TOO_LONG
    return _VALID


# --- which characters name no end user ---------------------------------------------------------

# All of Unicode's property, which Python does not know. A test compares it with a library's.
_IGNORABLE = (
    *("\u00ad", "\u034f", "\u061c"),  # soft hyphen, grapheme joiner, Arabic letter mark
    *("\u115f\u1160", "\u3164", "\uffa0"),  # Hangul fillers
    *("\u17b4\u17b5", "\u180b\u180f"),  # Khmer inherent vowels, Mongolian variation selectors
    *("\u200b\u200f", "\u202a\u202e", "\u2060\u206f", "\ufeff"),  # zero width, direction
    *("\ufe00\ufe0f", "\ufff0\ufff8"),  # variation selectors, kept for more of the kind
    *("\U0001bca0\U0001bca3", "\U0001d173\U0001d17a"),  # shorthand and musical format controls
    "\U000e0000\U000e0fff",  # tags, more variation selectors
)
_BLANK_SYMBOLS = (
    "\u2800",  # Braille pattern blank
    "\ufffc",  # object replacement: it stands for what plain text does not have
    "\U0001d159",  # musical null notehead
    "\U00013441\U00013442",  # Egyptian hieroglyph full and half blank
)
_NONCHARACTERS = (
    "\ufdd0\ufdef",
    *(chr(plane + 0xFFFE) + chr(plane + 0xFFFF) for plane in range(0, 0x110000, 0x10000)),
)
_RANGES = (f"{each[0]}-{each[-1]}" for each in _IGNORABLE + _BLANK_SYMBOLS + _NONCHARACTERS)
_BLANK = re.compile(f"[{''.join(_RANGES)}]")
# Control, format, surrogate; marks that are drawn over, beside and around a letter.
_BLANK_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Mn", "Mc", "Me"})


def is_blank(character: str) -> bool:
    """Whether this one character names no end user, however often it is repeated."""
    return (
        character.isspace()
        or unicodedata.category(character) in _BLANK_CATEGORIES
        or _BLANK.match(character) is not None
    )
