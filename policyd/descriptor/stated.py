"""What a request states besides its end user: its model, its token limit, its number of choices.

What some server may read otherwise counts as the worst that any may read.
"""

from collections.abc import Iterable, Mapping, Sequence

from policyd.engine.model import ModelState, Number, NumberState

TOKEN_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
CHOICES = "n"
NUMBERS = (*TOKEN_LIMITS, CHOICES)
MOST = 10**15
"""What a larger number counts as."""
MAX_MODEL = 256
"""Characters of a model's name."""

ABSENT = Number(NumberState.ABSENT)
INVALID = Number(NumberState.INVALID)
NULL = b"null"
_DIGITS = len(str(MOST))

NOT_STRING = object()
"""Stands for a model that is no string."""

Occurrence = tuple[bool, bytes]
"""One of a number: whether every server takes its name for the number's, and its text."""
Occurrences = Mapping[str, Sequence[Occurrence]]
"""Those of each number, by its name."""


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

    Of a limit that only some servers read, it is no less; but none is stated then, as the others
    limit nothing.
    """
    is_limited = any(_is_certain(found.get(name, ())) for name in TOKEN_LIMITS)
    numbers = [number(text) for name in TOKEN_LIMITS for _, text in found.get(name, ())]
    if INVALID in numbers or choices(found) == INVALID:
        return INVALID
    return _largest(numbers) if is_limited else ABSENT


def choices(found: Occurrences) -> Number:
    """How many answers a request asks for at most. ABSENT means one."""
    numbers = [number(text) for _, text in found.get(CHOICES, ())]
    stated = [one for one in numbers if one is not ABSENT]
    if not all(one.value for one in stated):
        return INVALID
    return _largest(stated) if stated else ABSENT


def number(text: bytes) -> Number:
    """The number that `text` is, in JSON or in decimal digits; null is none."""
    if text == NULL:
        return ABSENT
    if not text.isdigit():
        return INVALID
    digits = text.lstrip(b"0")[: _DIGITS + 1]
    return Number(NumberState.GIVEN, min(int(digits or b"0"), MOST))


def _is_certain(occurrences: Sequence[Occurrence]) -> bool:
    """Whether every server reads a number there, whichever of them it reads."""
    is_there = any(is_certain for is_certain, _ in occurrences)
    return is_there and all(text != NULL for _, text in occurrences)


def _largest(numbers: Iterable[Number]) -> Number:
    return max(numbers, key=lambda one: one.value)
