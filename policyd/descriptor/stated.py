"""What a request states besides its end user: its model, its token limit, its number of choices.

Where servers may read it differently, the worst that any may read counts.
"""

from collections.abc import Mapping, Sequence

from policyd.engine.endpoints import MAX_MODEL
from policyd.engine.states import ModelState, Number, NumberState

TOKEN_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
CHOICES = "n"
NUMBERS = (*TOKEN_LIMITS, CHOICES)
MOST = 10**15
"""A larger number counts as this one."""

ABSENT = Number(NumberState.ABSENT)
INVALID = Number(NumberState.INVALID)
NULL = b"null"
_NONE, _INVALID = -1, -2
_DIGITS = len(str(MOST))

NOT_STRING = object()
"""Stands for a model that is no string."""

Occurrences = Mapping[str, Sequence[tuple[bool, int]]]
"""For each number's name, its occurrences in a body: whether every server takes the member for that
number, and its value()."""


def model_state(certain: Sequence[object], others: Sequence[object]) -> ModelState:
    """What is known of a model, each value of which is a string, None or NOT_STRING.

    `others` are the values of names that only some servers take for the model's.
    """
    values = {*certain, *others}
    if not certain:
        values.add(None)
    if len(values) > 1:
        return ModelState.CONFLICTING
    (value,) = values
    if value is None:
        return ModelState.ABSENT
    if not isinstance(value, str):
        return ModelState.NOT_STRING
    return ModelState.GIVEN if len(value) <= MAX_MODEL else ModelState.TOO_LONG


def token_limit(found: Occurrences) -> Number:
    """The largest of the limits that a request states.

    It is ABSENT where a server may find none, which limits nothing, and INVALID where the choices
    are.
    """
    if not found:
        return ABSENT
    limits = [found[name] for name in TOKEN_LIMITS if name in found]
    values = [value for given in limits for _, value in given]
    if _INVALID in values or choices(found) is INVALID:
        return INVALID
    return Number(NumberState.GIVEN, max(values)) if any(map(_is_certain, limits)) else ABSENT


def _is_certain(given: Sequence[tuple[bool, int]]) -> bool:
    """Whether every server finds a number there, whichever of several it reads."""
    return True in [is_sure for is_sure, _ in given] and _NONE not in [value for _, value in given]


def choices(found: Occurrences) -> Number:
    """How many answers a request asks for at most. ABSENT means one."""
    if CHOICES not in found:
        return ABSENT
    values = [value for _, value in found[CHOICES]]
    if _INVALID in values or 0 in values:
        return INVALID
    largest = max(values)
    return ABSENT if largest == _NONE else Number(NumberState.GIVEN, largest)


def value(text: bytes) -> int:
    """The whole number that `text` is; a negative one where it is null, or no such number."""
    if not text.isdigit():
        return _NONE if text == NULL else _INVALID
    if len(text) > _DIGITS:
        text = text.lstrip(b"0")[:_DIGITS] or b"0"
    return min(int(text), MOST)
